"""RF-Edit: what is carried over from a window's way to its noise, and that nothing else is."""

import pytest
import torch
from torch import Tensor, nn

from offdiff.core.errors import InputError
from offdiff.data.codec import GROUPS
from offdiff.diffusion.denoiser import Denoiser
from offdiff.diffusion.dit import DiT
from offdiff.diffusion.editing import attention_layers, edit, on_values
from offdiff.diffusion.flow_solvers import invert, restore
from offdiff.diffusion.mmdit import MMDiT
from offdiff.diffusion.unet import UNet

ROWS, COLUMNS, STEPS = 5, 6, 8
WIDTHS = (3, 1, 1, 1)


def denoiser(network: nn.Module) -> Denoiser:
    """Untrained, with gates that let every block act."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    assert len(WIDTHS) == len(GROUPS)
    slots = torch.ones(ROWS, COLUMNS, dtype=torch.bool)
    model = Denoiser(network, slots, WIDTHS, level_channels=False)
    return model.double().eval().requires_grad_(False)


@pytest.fixture(params=["dit", "mmdit"])
def model(request: pytest.FixtureRequest) -> Denoiser:
    if request.param == "dit":
        return denoiser(DiT(COLUMNS, COLUMNS, width=16, depth=4, heads=2))
    return denoiser(MMDiT(COLUMNS, (3, 1, 2), width=16, depth=4, heads=2))


def windows() -> Tensor:
    return torch.randn(7, ROWS, COLUMNS, generator=torch.Generator().manual_seed(1)).double()


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt())


def test_nothing_shared_is_the_way_there_and_back(model: Denoiser) -> None:
    x = windows()
    made = edit(model, model, x, network=model.network, steps=STEPS, inject=0)
    assert torch.equal(made, restore(model, invert(model, x, steps=STEPS), steps=STEPS))


def test_everything_shared_under_the_same_condition_gives_the_window_back(model: Denoiser) -> None:
    x = windows()
    plain = edit(model, model, x, network=model.network, steps=STEPS, inject=0)
    shared = edit(model, model, x, network=model.network, steps=STEPS, inject=STEPS)
    assert distance(shared, x) < 1.5 * distance(plain, x)
    assert not torch.equal(shared, plain), "values were exchanged"


def test_two_evaluations_a_step_are_kept_of_the_later_blocks(model: Denoiser) -> None:
    layers = attention_layers(model.network)
    streams = 3 if isinstance(model.network, MMDiT) else 1
    assert len(layers) == 2 * streams
    asked = []
    with on_values(layers, lambda number, values: asked.append((number, values.shape))):
        invert(model, windows(), steps=STEPS)
    assert len(asked) == 2 * STEPS * len(layers)
    assert set(asked) == {(k, (7, 2, ROWS, 8)) for k in range(len(layers))}


def test_hooks_are_gone_afterwards_whatever_happened(model: Denoiser) -> None:
    def failing(_x: Tensor, _sigma: Tensor) -> Tensor:
        raise RuntimeError("no plan")

    with pytest.raises(RuntimeError, match="no plan"):
        edit(model, failing, windows(), network=model.network, steps=2, inject=1)
    for layer in attention_layers(model.network):
        assert not layer.values._forward_hooks


def test_what_cannot_be_shared(model: Denoiser) -> None:
    x, net = windows(), model.network
    with pytest.raises(InputError, match="inject must lie in"):
        edit(model, model, x, network=net, steps=2, inject=3)
    with pytest.raises(InputError, match="different numbers below 4"):
        edit(model, model, x, network=net, blocks=[4])
    with pytest.raises(InputError, match="not in a UNet"):
        edit(model, model, x, network=UNet(COLUMNS, COLUMNS, width=32))
    other = denoiser(DiT(COLUMNS, COLUMNS, width=16, depth=4, heads=2))
    with pytest.raises(InputError, match="do not call the network"):
        edit(model, model, x, network=other.network, steps=2, inject=1)
