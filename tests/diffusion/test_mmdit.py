"""MM-DiT: weights per stream, one attention, and what it has in common with DiT."""

import copy
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from offdiff.core.errors import InputError
from offdiff.core.types import Spec
from offdiff.data.codec import Codec
from offdiff.diffusion.config import ModelConfig
from offdiff.diffusion.denoiser import Denoiser, LevelLaw, LevelMode, draw_levels
from offdiff.diffusion.dit import DiT
from offdiff.diffusion.mmdit import JointBlock, MMDiT, StreamBlock
from offdiff.diffusion.networks import build_network, forward_flops
from offdiff.diffusion.world_model import MODEL, ErrorCurve, WorldModel, load_model, make_denoiser

STREAMS, EXTRA = (3, 1, 2), 4
INPUTS = sum(STREAMS) + EXTRA


def small(streams: Sequence[int] = STREAMS, extra: int = EXTRA) -> MMDiT:
    return MMDiT(sum(streams) + extra, streams, width=32, depth=2, heads=4)


def randomised(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn_like(p)
    return net


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


CODEC = Codec(
    spec=Spec(3, 2), horizon=4, action_map="linear", mean=torch.zeros(7), std=torch.ones(7)
)


def config(levels: LevelMode) -> ModelConfig:
    return ModelConfig(horizon=4, network="mmdit-xs", levels=levels)


@pytest.mark.parametrize(
    ("streams", "extra", "d", "depth", "heads"),
    [((17, 6, 2), 0, 48, 4, 3), ((11, 3, 2), 4, 144, 6, 6), ((5,), 0, 32, 1, 4)],
)
def test_count(streams: tuple[int, ...], extra: int, d: int, depth: int, heads: int) -> None:
    blocks = len(streams) * depth * (18 * d**2 + 15 * d + 2 * d // heads)
    embedding = 256 * d + d + d**2 + d
    ends = sum((n + extra) * d + d + 2 * d**2 + 2 * d + n * d + n for n in streams)
    with torch.device("meta"):
        net = MMDiT(sum(streams) + extra, streams, width=d, depth=depth, heads=heads)
    assert count(net) == blocks + embedding + ends


@pytest.mark.parametrize(("name", "dit"), [("mmdit-xs", "dit-xs"), ("mmdit-s-", "dit-s-")])
def test_named_sizes_cost_what_their_formula_says(name: str, dit: str) -> None:
    widths, rows = (17, 6, 1, 1), 32
    with torch.device("meta"):
        net = build_network(name, 25, 25, rows=rows, widths=widths)
        same = build_network(dit, 25, 25, rows=rows)
    assert isinstance(net, MMDiT)
    d, depth, streams, tokens = net.heads[0].in_features, len(net.blocks), 3, 3 * rows
    block = 12 * d**2 * tokens + 2 * tokens**2 * d + streams * 6 * d**2
    ends = 256 * d + d**2 + streams * 2 * d**2 + 2 * rows * 25 * d
    assert forward_flops(name, 25, rows, widths=widths) == 2 * (depth * block + ends)
    assert 0.9 < count(net) / count(same) < 1.8


def test_it_starts_as_zero_and_its_blocks_as_the_identity() -> None:
    net = small()
    assert not net(torch.randn(2, 7, INPUTS), torch.randn(2)).any()
    xs = [torch.randn(2, 7, 32) for _ in STREAMS]
    for block in net.blocks:
        for before, after in zip(xs, block(xs, torch.randn(2, 32)), strict=True):
            assert torch.equal(before, after)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_gradients_reach_every_parameter_at_any_length(rows: int) -> None:
    torch.manual_seed(0)
    net = randomised(small())
    out = net(torch.randn(4, rows, INPUTS), torch.randn(4))
    assert out.shape == (4, rows, sum(STREAMS))
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 1, 0)])
def test_the_order_of_streams_does_not_matter(order: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = randomised(small())
    ends = torch.tensor(STREAMS).cumsum(0).tolist()
    columns = [list(range(a, b)) for a, b in pairwise((0, *ends))]
    moved = [c for i in order for c in columns[i]]
    other = small([STREAMS[i] for i in order])
    other.load_state_dict(net.state_dict() | reordered(net, order))
    x, c_noise = torch.randn(2, 5, INPUTS), torch.randn(2)
    inputs = [*moved, *range(sum(STREAMS), INPUTS)]
    assert_close(other(x[..., inputs], c_noise), net(x, c_noise)[..., moved], rtol=0, atol=1e-5)


def reordered(net: MMDiT, order: Sequence[int]) -> dict[str, Tensor]:
    """The weights of the streams, with the stream order[i] at place i."""
    net = copy.deepcopy(net)
    for lists, name in [(net, n) for n in ("tokens", "modulations", "heads")] + [
        (block, "streams") for block in net.blocks
    ]:
        streams = getattr(lists, name)
        setattr(lists, name, nn.ModuleList(streams[i] for i in order))
    return net.state_dict()


def test_streams_attend_to_each_other_at_all_times_and_see_every_level() -> None:
    torch.manual_seed(0)
    net, c_noise = randomised(small()), torch.zeros(1)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: net(x, c_noise), torch.randn(1, 4, INPUTS)
    )
    assert (jacobian != 0).all()


def logits(block: JointBlock, xs: Sequence[Tensor], embedding: Tensor) -> Tensor:
    """The largest |attention logit|."""
    parts = [
        stream.before_attention(x, stream.modulate(embedding))
        for stream, x in zip(block.streams, xs, strict=True)
    ]
    query, key, _ = (torch.cat(tokens, dim=2) for tokens in zip(*parts, strict=True))
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).abs().max()


def test_large_weights_do_not_enlarge_the_attention_logits() -> None:
    torch.manual_seed(0)
    block = randomised(JointBlock(32, 4, 3))
    xs, embedding = [torch.randn(2, 7, 32) for _ in range(3)], torch.randn(2, 32)
    before = logits(block, xs, embedding)
    with torch.no_grad():
        for stream in block.streams:
            stream.queries_keys_values.weight *= 100
            stream.queries_keys_values.bias *= 100
    after = logits(block, xs, embedding)
    assert_close(after, before, rtol=0.01, atol=0)
    query_gain = max(stream.query_gain.abs().max() for stream in block.streams)
    key_gain = max(stream.key_gain.abs().max() for stream in block.streams)
    assert after <= 8**0.5 * query_gain * key_gain


def test_one_stream_is_a_dit() -> None:
    torch.manual_seed(0)
    dit = randomised(DiT(9, 5, width=32, depth=2, heads=4))
    net = small([5])
    weights = {
        key.replace("tokens.", "tokens.0.")
        .replace("head.", "heads.0.")
        .replace("blocks.0.", "blocks.0.streams.0.")
        .replace("blocks.1.", "blocks.1.streams.0."): value
        for key, value in dit.state_dict().items()
        if not key.startswith("modulation.")
    }
    weights |= {f"modulations.0.{k}": v for k, v in dit.modulation.state_dict().items()}
    missing, unexpected = net.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(key.endswith("_gain") for key in missing)
    x, c_noise = torch.randn(2, 6, 9), torch.randn(2)
    expected = dit(x, c_noise)
    assert expected.abs().max() > 0.1
    assert_close(net(x, c_noise), expected, rtol=0, atol=1e-6)


def test_gains_change_how_sharply_a_stream_attends() -> None:
    torch.manual_seed(0)
    net = randomised(small())
    x, c_noise = torch.randn(1, 5, INPUTS), torch.zeros(1)
    before = net(x, c_noise)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, StreamBlock):
                module.query_gain *= 3
    assert (net(x, c_noise) - before).abs().max() > 1e-3


@pytest.mark.parametrize("levels", ["shared", "mixed"])
def test_a_world_model_learns_with_it(levels: LevelMode) -> None:
    torch.manual_seed(0)
    model = make_denoiser(config(levels), CODEC)
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(16, 1, 7) * model.slots
    clean[..., -1] = clean[..., -1].sign()
    noise = torch.randn(clean.shape)
    sigma = draw_levels(levels, LevelLaw(), 16, 5, generator=generator)
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    losses = []
    for _ in range(30):
        loss = model.loss(clean, noise, sigma).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_a_model_is_read_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    denoiser = randomised(make_denoiser(config("mixed"), CODEC))
    assert isinstance(denoiser, Denoiser)
    model = WorldModel(
        config=config("mixed"),
        denoiser=denoiser,
        codec=CODEC,
        errors=ErrorCurve(torch.zeros(2), torch.zeros(2, 2)),
        data_hash="",
        validation=(),
    )
    model.save(tmp_path / MODEL)
    x, sigma = torch.randn(2, 5, 7), torch.ones(2)
    read = load_model(tmp_path, torch.device("cpu"))
    assert torch.equal(read.denoiser(x, sigma), denoiser(x, sigma))


def test_half_precision_stays_near() -> None:
    torch.manual_seed(0)
    model = randomised(make_denoiser(config("mixed"), CODEC))
    x, sigma = torch.randn(4, 5, 7), torch.ones(4)
    exact = model(x, sigma)
    model.half_precision = True
    assert (model(x, sigma) - exact).norm() < 0.02 * exact.norm()


def test_planners_are_told_to_choose_another() -> None:
    with pytest.raises(InputError, match="'mmdit-xs' is for world models"):
        build_network("mmdit-xs", 4, 4, rows=5)


@pytest.mark.parametrize("streams", [(3, 3), (3, 0)])
def test_impossible_streams_are_refused(streams: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not divide 5 inputs"):
        MMDiT(5, streams, width=32, depth=1, heads=4)


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4 heads"):
        MMDiT(5, (5,), width=30, depth=1, heads=4)
