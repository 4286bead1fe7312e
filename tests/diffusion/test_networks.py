"""Denoising networks: sizes, costs, and the structure that their papers promise."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offdiff.core.errors import InputError
from offdiff.diffusion.dit import DiT
from offdiff.diffusion.networks import NAMES, NETWORKS, build_network, forward_flops
from offdiff.diffusion.unet import GroupNorm, RowConvolution, UNet, halve

CHANNELS = 5
SMALL = {
    "unet": lambda: UNet(CHANNELS, 3, width=32),
    "unet-over-time": lambda: UNet(CHANNELS, 3, width=32, row_norm=False),
    "dit": lambda: DiT(CHANNELS, 3, width=32, depth=2, heads=4),
    "dit-causal": lambda: DiT(CHANNELS, 3, width=32, depth=2, heads=4, causal=True),
}


@pytest.fixture(params=SMALL)
def net(request: pytest.FixtureRequest) -> nn.Module:
    """A small network with random weights everywhere, also where it starts at zero."""
    torch.manual_seed(0)
    return randomised(SMALL[request.param]())


def randomised(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn_like(p)
    return net


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def time_jacobian(net: nn.Module, rows: int) -> Tensor:
    """(T, T): does output row i depend on input row j?"""
    x, c_noise = torch.randn(1, rows, CHANNELS), torch.zeros(1)
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, c_noise).sum((0, 2)), x)
    return jacobian.abs().sum((1, 3)) > 0


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 16, 17])
def test_any_length_is_kept(net: nn.Module, rows: int) -> None:
    assert net(torch.randn(2, rows, CHANNELS), torch.zeros(2)).shape == (2, rows, 3)


def test_gradients_reach_every_parameter(net: nn.Module) -> None:
    net(torch.randn(4, 7, CHANNELS), torch.randn(4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_windows_of_a_batch_do_not_mix(net: nn.Module) -> None:
    x, c_noise = torch.randn(4, 7, CHANNELS), torch.randn(4)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(net(x[order], c_noise[order]), net(x, c_noise)[order])


def test_noise_level_changes_the_output(net: nn.Module) -> None:
    x = torch.randn(1, 7, CHANNELS).expand(2, -1, -1)
    low, high = net(x, torch.tensor([-1.0, 1.0]))
    assert (low - high).abs().amax() > 1e-3


def test_every_row_sees_itself_and_the_one_before(net: nn.Module) -> None:
    depends = time_jacobian(net, 7)
    assert depends.diagonal().all()
    assert depends.diagonal(-1).all()


def test_unet_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        assert count(UNet(16, 16, width=1024, blocks=3)) == 177_619_984


@pytest.mark.parametrize(
    ("name", "rows", "gflop"),
    # the published sizes at even lengths; 129 rows are pooled to 65, not 64, so cost 2 % more
    [
        ("unet-1024", 16, 2.34),
        ("unet-1024", 32, 4.66),
        ("unet-1024", 129, 18.9),
        ("unet-256", 32, 0.29),
    ],
)
def test_unet_flops(name: str, rows: int, gflop: float) -> None:
    assert forward_flops(name, 16, rows) / 1e9 == pytest.approx(gflop, rel=0.007)


def test_row_norm_is_group_norm_of_rows_and_so_permutes_with_them() -> None:
    torch.manual_seed(0)
    norm = randomised(GroupNorm(32, per_row=True))
    x, order = torch.randn(2, 6, 32), torch.randperm(6)
    expected = F.group_norm(x.flatten(0, 1), 8, norm.weight, norm.bias, 1e-6).view_as(x)
    torch.testing.assert_close(norm(x), expected)
    torch.testing.assert_close(norm(x[:, order]), norm(x)[:, order])
    outlier = x.clone()
    outlier[:, 0] *= 100
    torch.testing.assert_close(norm(outlier)[:, 1:], norm(x)[:, 1:])


def test_norm_over_time_mixes_rows() -> None:
    norm = GroupNorm(16, per_row=False)
    x = torch.randn(2, 6, 16)
    expected = nn.GroupNorm(8, 16, eps=1e-6)(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_convolution_is_torchs(kernel: int) -> None:
    layer, x = RowConvolution(4, 6, kernel), torch.randn(2, 5, 4)
    weight = layer.weight.view(6, kernel, 4).transpose(1, 2)
    padded = F.pad(x.transpose(1, 2), ((kernel - 1) // 2, kernel // 2))
    torch.testing.assert_close(layer(x), F.conv1d(padded, weight, layer.bias).transpose(1, 2))


def test_halving_pools_pairs_and_keeps_an_odd_last_row() -> None:
    x = torch.tensor([[3.0, 1.0, 2.0, 5.0, 4.0]]).unsqueeze(-1)
    assert halve(x).flatten().tolist() == [3, 5, 4]
    assert halve(x[:, :4]).flatten().tolist() == [3, 5]


def test_unet_shifts_with_its_input_away_from_the_borders() -> None:
    torch.manual_seed(0)
    net, pattern = UNet(CHANNELS, 3, width=32), torch.randn(1, 4, CHANNELS)
    x = F.pad(pattern, (0, 0, 40, 40))
    shifted = x.roll(4, dims=1)  # by a multiple of the pooling
    out, moved = net(x, torch.zeros(1)), net(shifted, torch.zeros(1))
    torch.testing.assert_close(moved[:, 34:54], out[:, 30:50])


@pytest.mark.parametrize(("width", "blocks"), [(24, 3), (36, 3), (32, 0)])
def test_unet_refuses_impossible_sizes(width: int, blocks: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        UNet(4, 4, width=width, blocks=blocks)


@pytest.mark.parametrize(("inputs", "outputs", "d", "depth"), [(23, 23, 128, 4), (30, 7, 64, 3)])
def test_dit_count(inputs: int, outputs: int, d: int, depth: int) -> None:
    blocks = depth * (18 * d**2 + 15 * d)
    embedding = 256 * d + d + d**2 + d
    ends = (inputs * d + d) + (2 * d**2 + 2 * d) + (outputs * d + outputs)
    with torch.device("meta"):
        assert count(DiT(inputs, outputs, width=d, depth=depth, heads=4)) == (
            blocks + embedding + ends
        )


@pytest.mark.parametrize(
    ("name", "millions", "mflop"),
    [("dit-tiny", 1.276, 51.7), ("dit-s-", 7.376, 308), ("dit-s", 32.48, 1382)],
)
def test_dit_sizes_are_the_tables(name: str, millions: float, mflop: float) -> None:
    net, rows = NETWORKS[name], 32
    with torch.device("meta"):
        dit = net(23, 23)
    assert isinstance(dit, DiT)
    assert count(dit) / 1e6 == pytest.approx(millions, rel=5e-4)
    # the table leaves out queries x keys and weights x values
    attention = 2 * len(dit.blocks) * 2 * rows**2 * dit.head.in_features / 1e6
    assert forward_flops(name, 23, rows) / 1e6 == pytest.approx(mflop + attention, rel=2e-3)


def test_dit_starts_as_zero_and_its_blocks_as_the_identity() -> None:
    net = DiT(CHANNELS, 3, width=32, depth=2, heads=4)
    assert not net(torch.randn(2, 7, CHANNELS), torch.randn(2)).any()
    x = torch.randn(2, 7, 32)
    for block in net.blocks:
        assert torch.equal(block(x, torch.randn(2, 32)), x)


@pytest.mark.parametrize("causal", [False, True])
def test_causal_dit_sees_no_later_row(causal: bool) -> None:
    torch.manual_seed(0)
    net = randomised(DiT(CHANNELS, 3, width=32, depth=2, heads=4, causal=causal))
    expected = torch.ones(7, 7).tril() if causal else torch.ones(7, 7)
    assert torch.equal(time_jacobian(net, 7), expected.bool())


def test_dit_tells_times_apart() -> None:
    net = randomised(DiT(CHANNELS, 3, width=32, depth=2, heads=4))
    x = torch.randn(1, 1, CHANNELS).expand(1, 7, -1)  # the same row seven times
    out = net(x, torch.zeros(1))[0]
    assert (out[1:] - out[:-1]).abs().amax(1).min() > 1e-4


def test_dit_refuses_a_width_that_heads_do_not_divide() -> None:
    with pytest.raises(ValueError, match="multiple of 4 heads"):
        DiT(4, 4, width=30, depth=1, heads=4)


@pytest.mark.parametrize("name", NAMES)
def test_named_networks_can_be_built(name: str) -> None:
    with torch.device("meta"):
        net = build_network(name, 7, 6, rows=5, widths=(3, 1, 1, 1))
        out = net(torch.empty(2, 5, 7), torch.empty(2))
    assert out.shape == (2, 5, 6)


def test_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown network 'unet-65'; did you mean 'unet-64'"):
        build_network("unet-65", 4, 4, rows=5)
