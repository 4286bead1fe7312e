"""RF-Edit: attention values of the way to the noise, used on the way back."""

import gc

import pytest
import torch
from torch import Tensor, nn

from offdiff.core.errors import InputError
from offdiff.diffusion import editing
from offdiff.diffusion.denoiser import Denoise, Denoiser
from offdiff.diffusion.dit import Block, DiT
from offdiff.diffusion.editing import edit
from offdiff.diffusion.flow_solvers import invert, restore
from offdiff.diffusion.guidance import guided
from offdiff.diffusion.mlp import WindowMLP
from offdiff.diffusion.mmdit import MMDiT
from offdiff.diffusion.unet import UNet

B, T, WIDTHS = 7, 6, (2, 1, 1, 1)
D, STEPS = sum(WIDTHS), 20


def make(kind: str) -> Denoiser:
    """Gates of 1, so that blocks do something, the same at all levels; attention is uniform."""
    torch.manual_seed(0)
    net: DiT | MMDiT
    if kind == "dit":
        net = DiT(D, D, width=16, depth=4, heads=2)
        heads = [net.head]
    else:
        net = MMDiT(D, (2, 1, 2), width=16, depth=4, heads=2)
        heads = [module for module in net.heads if isinstance(module, nn.Linear)]
    for head in heads:
        nn.init.xavier_uniform_(head.weight)
    for block in (module for module in net.modules() if isinstance(module, Block)):
        with torch.no_grad():
            block.modulation.bias.view(6, -1)[[2, 5]] = 1
            block.queries_keys_values.weight[: 2 * 16] = 0
    slots = torch.ones(T, D, dtype=torch.bool)
    return Denoiser(net, slots, WIDTHS, level_channels=False).requires_grad_(False)


def windows() -> Tensor:
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)


def to_goal(denoise: Denoise) -> Denoise:
    """Row 0 is that of a goal, whatever it was."""

    def conditional(x: Tensor, sigma: Tensor, /) -> Tensor:
        return denoise(torch.cat((torch.full_like(x[:, :1], 2.0), x[:, 1:]), dim=1), sigma)

    return conditional


def moved(out: Tensor, clean: Tensor) -> float:
    """RMS without the terminal column, whose estimate is a bit that does not depend on x."""
    return float((out - clean)[..., :-1].square().mean().sqrt())


def there_and_back(source: Denoise, new: Denoise, clean: Tensor) -> Tensor:
    return restore(new, invert(source, clean, steps=STEPS), steps=STEPS)


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in network.modules())


kinds = pytest.mark.parametrize("kind", ["dit", "mmdit"])


@kinds
def test_nothing_shared_is_there_and_back(kind: str) -> None:
    model, clean = make(kind), windows()
    new = to_goal(model)
    out = edit(model, new, clean, network=model.network, steps=STEPS, inject=0)
    assert torch.equal(out, there_and_back(model, new, clean))


@kinds
def test_an_unchanged_condition_gives_the_window_back(kind: str) -> None:
    """All is shared, but at the points where it came about: 0.0040 and 0.0010, plain a bit more."""
    model, clean = make(kind), windows()
    plain = moved(there_and_back(model, model, clean), clean)
    out = edit(model, model, clean, network=model.network, steps=STEPS, inject=STEPS)
    assert moved(out, clean) < 1.05 * plain < 0.006


@kinds
def test_what_is_shared_stays(kind: str) -> None:
    """Attention is uniform: rows learn of another one by its values alone.

    With all values shared, the rows beside the goal come back as if there were none.
    """
    model, clean = make(kind), windows()
    new = guided(to_goal(model), lambda estimate, _: estimate)

    def others_moved(inject: int, blocks: range | None = None) -> float:
        out = edit(
            model, new, clean, network=model.network, steps=STEPS, inject=inject, blocks=blocks
        )
        return moved(out[:, 1:], clean[:, 1:])

    every = range(4)
    plain = moved(there_and_back(model, model, clean), clean)
    assert others_moved(STEPS, every) < 1.2 * plain
    assert others_moved(0) > 5 * others_moved(STEPS, every)
    for few in (None, every):
        assert others_moved(0) > others_moved(3, few) > others_moved(STEPS, few)


@kinds
@pytest.mark.parametrize("inject", [1, 4])
def test_memory_is_what_is_said(kind: str, inject: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 inject values of B T width numbers per layer, of the second half, and none afterwards."""
    model, clean = make(kind), windows()
    shape = (B, 2, T, 8)

    def alive() -> list[Tensor]:
        gc.collect()
        return [x for x in gc.get_objects() if type(x) is Tensor and x.shape == shape]

    found: list[Tensor] = []

    def restore_and_look(*args: object, **options: object) -> Tensor:
        found.extend(alive())
        return restore(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(editing, "restore", restore_and_look)
    edit(model, model, clean, network=model.network, steps=4, inject=inject)
    assert len(found) == 2 * inject * 2 * (3 if kind == "mmdit" else 1)
    assert {x.untyped_storage().nbytes() for x in found} == {4 * B * T * 16}
    del found[:]
    assert not alive()


@kinds
def test_hooks_are_gone_even_after_an_error(kind: str) -> None:
    model, clean = make(kind), windows()
    seen = []

    def fails(x: Tensor, sigma: Tensor, /) -> Tensor:
        seen.append(hooks(model.network))
        if len(seen) == 3:
            raise RuntimeError("of the caller")
        return model(x, sigma)

    for source, new in ((fails, model), (model, fails)):
        seen.clear()
        with pytest.raises(RuntimeError, match="of the caller"):
            edit(source, new, clean, network=model.network, steps=4, inject=2)
        assert seen == [2 * (3 if kind == "mmdit" else 1)] * 3
        assert hooks(model.network) == 0


def test_what_cannot_be_edited_is_told() -> None:
    model, clean = make("dit"), windows()
    other = make("dit")

    def twice(x: Tensor, sigma: Tensor, /) -> Tensor:
        return (model(x, sigma) + model(-x, sigma)) / 2

    for network in (UNet(D, D, width=32), WindowMLP(D, D, rows=T, width=16, depth=1)):
        with pytest.raises(InputError, match=r"transformer, not those of a (UNet|WindowMLP)"):
            edit(model, model, clean, network=network)
    with pytest.raises(InputError, match="inject must lie"):
        edit(model, model, clean, network=model.network, steps=3, inject=4)
    with pytest.raises(InputError, match="below 4"):
        edit(model, model, clean, network=model.network, blocks=[4])
    for source, new in ((other, other), (model, other), (other, model)):
        with pytest.raises(InputError, match="do not call the network"):
            edit(source, new, clean, network=model.network, steps=3, inject=1)
    with pytest.raises(InputError, match="more than once"):
        edit(twice, model, clean, network=model.network, steps=3, inject=1)
