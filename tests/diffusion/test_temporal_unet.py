"""The temporal U-Net: its published size, its layers in torch's terms, what the condition does."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from offdiff.diffusion.networks import NETWORKS
from offdiff.diffusion.temporal_unet import ConvolutionLayer, HalveRows, TemporalUNet


def small(*, conditional: bool = False) -> TemporalUNet:
    torch.manual_seed(0)
    return TemporalUNet(3, 2, width=8, multipliers=(1, 2, 4), conditional=conditional)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("obs_dim", [11, 17])
def test_size_is_that_of_trajectory_diffusers_network(obs_dim: int) -> None:
    with torch.device("meta"):
        net = TemporalUNet(obs_dim, obs_dim, width=64, conditional=True)
    assert count(net) / 1e6 == pytest.approx(16.03, abs=0.005)


@pytest.mark.parametrize(
    ("rows", "gflop"), [(8, 0.040), (16, 0.079), (32, 0.157), (64, 0.312), (128, 0.623)]
)
def test_cost_of_a_pass_is_that_of_trajectory_diffusers_network(rows: int, gflop: float) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net = TemporalUNet(11, 11, width=64, conditional=True)
        net(torch.empty(1, rows, 11), torch.empty(1), torch.empty(1))
    # rounded to 0.001, and counted of convolutions where ours are matrix products
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflop, rel=2e-3, abs=5e-4)


def test_convolution_layer_is_torchs() -> None:
    torch.manual_seed(0)
    layer, x = ConvolutionLayer(3, 16), torch.randn(2, 7, 3)
    weight = layer.convolution.weight.view(16, 5, 3).transpose(1, 2)
    convolved = F.conv1d(x.transpose(1, 2), weight, layer.convolution.bias, padding=2)
    expected = F.mish(F.group_norm(convolved, 8, eps=1e-5)).transpose(1, 2)
    torch.testing.assert_close(layer(x), expected)


def test_halving_is_torchs_strided_convolution() -> None:
    torch.manual_seed(0)
    layer, x = HalveRows(4), torch.randn(2, 6, 4)
    weight = layer.weight.view(4, 3, 4).transpose(1, 2)
    expected = F.conv1d(x.transpose(1, 2), weight, layer.bias, stride=2, padding=1)
    torch.testing.assert_close(layer(x), expected.transpose(1, 2))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 16])
def test_any_length_is_kept_by_repeating_the_last_row(rows: int) -> None:
    net, x, level = small(), torch.randn(2, rows, 3), torch.tensor([0.0, 4.0])
    filled = torch.cat((x, x[:, -1:].expand(-1, -rows % 4, -1)), dim=1)
    out = net(x, level)
    assert out.shape == (2, rows, 2)
    torch.testing.assert_close(out, net(filled, level)[:, :rows])


def test_the_null_condition_is_a_zero_embedding_and_not_a_zero() -> None:
    net, x, level = small(conditional=True), torch.randn(3, 4, 3), torch.zeros(3)
    given, null = net(x, level, torch.ones(3)), net(x, level)
    mixed = net(x, level, torch.ones(3), torch.tensor([True, False, True]))
    torch.testing.assert_close(mixed, torch.stack((given[0], null[1], given[2])))
    for other in (given, net(x, level, torch.zeros(3))):
        assert (other - null).abs().amax() > 1e-3


def test_the_condition_of_a_network_without_one_is_refused() -> None:
    with pytest.raises(ValueError, match="conditional=True"):
        small()(torch.zeros(1, 4, 3), torch.zeros(1), torch.zeros(1))


def test_the_level_changes_the_output_and_windows_do_not_mix() -> None:
    net, x = small(), torch.randn(1, 4, 3).expand(2, -1, -1)
    low, high = net(x, torch.tensor([1.0, 2.0]))
    assert (low - high).abs().amax() > 1e-3
    torch.testing.assert_close(net(x[:1], torch.tensor([2.0]))[0], high)


def test_gradients_reach_every_parameter() -> None:
    net = small(conditional=True)
    net(torch.randn(4, 8, 3), torch.randn(4), torch.randn(4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_named_networks_tell_neighbouring_noise_levels_apart() -> None:
    torch.manual_seed(0)
    net = NETWORKS["temporal-32"](3, 3)
    sigma = torch.tensor([0.1, 0.15])  # neighbours among ten levels of a sampler
    low, high = net(torch.randn(1, 8, 3).expand(2, -1, -1), sigma.log() / 4)
    assert (low - high).abs().amax() > 1e-2
    assert {"temporal-32", "temporal-64", "temporal-128"} <= NETWORKS.keys()


@pytest.mark.parametrize(("width", "multipliers"), [(12, (1, 2)), (0, (1,)), (8, ()), (8, (0,))])
def test_impossible_sizes_are_refused(width: int, multipliers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be (positive|a positive)"):
        TemporalUNet(3, 3, width=width, multipliers=multipliers)
