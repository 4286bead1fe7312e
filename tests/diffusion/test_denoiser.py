"""Preconditioning, loss weights, levels and the terminal head."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from offdiff.diffusion.denoiser import SIGMA_MAX, Denoiser, LevelLaw, draw_levels
from offdiff.diffusion.sampling import karras_sigmas, pinned, sample_heun

WIDTHS = (3, 2, 1, 1)
COLUMNS = sum(WIDTHS)


class Fixed(nn.Module):
    """Puts out the same numbers whatever it sees, and keeps what it saw."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output)
        self.seen: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        self.seen = (x.detach(), c_noise.detach())
        return self.output.expand(*x.shape[:2], COLUMNS)


def denoiser(network: nn.Module, *, level_channels: bool = False) -> Denoiser:
    slots = torch.ones(5, COLUMNS, dtype=torch.bool)
    slots[-1, 3:] = False
    return Denoiser(network, slots, WIDTHS, level_channels=level_channels)


@pytest.mark.parametrize("sigma", [0.002, 0.1, 1.0, 80.0])
def test_the_loss_has_unit_weight_on_the_network(sigma: float) -> None:
    # EDM: (sigma^2 + 1) / sigma^2 * |D - x0|^2 = |F - F*|^2, whatever sigma.
    torch.manual_seed(0)
    clean, noise = torch.randn(8, 5, COLUMNS).double(), torch.randn(8, 5, COLUMNS).double()
    clean[..., -1] = clean[..., -1].sign()
    model = denoiser(Fixed(torch.randn(COLUMNS).double()))
    level = torch.full((8,), sigma, dtype=torch.float64)
    estimate = model(clean + sigma * noise, level)
    weighted = (sigma**2 + 1) / sigma**2 * (estimate - clean).square() * model.slots
    loss = model.loss(clean, noise, level)
    columns = slice(0, COLUMNS - 1)
    assert_close(loss[..., columns], weighted[..., columns], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.002, 0.1, 1.0, 80.0])
def test_the_networks_target_has_unit_variance(sigma: float) -> None:
    torch.manual_seed(0)
    clean, noise = torch.randn(4096, 5, COLUMNS), torch.randn(4096, 5, COLUMNS)
    loss = denoiser(Fixed(torch.zeros(COLUMNS))).loss(clean, noise, torch.full((4096,), sigma))
    assert float(loss[:, :-1, :-1].mean().detach()) == pytest.approx(1.0, rel=0.02)


def test_inputs_have_unit_variance_and_the_network_is_told_the_level() -> None:
    network = Fixed(torch.zeros(COLUMNS))
    x = torch.randn(2048, 5, COLUMNS) * (1 + 4.0**2) ** 0.5
    denoiser(network)(x, torch.full((2048,), 4.0))
    assert network.seen is not None
    seen, c_noise = network.seen
    assert float(seen[:, :-1].std()) == pytest.approx(1.0, rel=0.02)
    assert_close(c_noise, torch.full((2048,), 4.0).log() / 4)


def test_the_terminal_estimate_is_the_mean_of_the_bit_and_its_loss_the_cross_entropy() -> None:
    probability = 0.03
    logit = torch.tensor(probability).logit()
    model = denoiser(Fixed(torch.cat((torch.zeros(COLUMNS - 1), logit[None]))))
    estimate = model(torch.randn(2, 5, COLUMNS), torch.ones(2))
    assert_close(estimate[:, :-1, -1], torch.full((2, 4), 2 * probability - 1))
    clean = torch.zeros(1, 5, COLUMNS)
    clean[..., -1] = torch.tensor([1.0, -1.0, -1.0, -1.0, 0.0])
    loss = model.loss(clean, torch.zeros_like(clean), torch.ones(1))[0, :, -1]
    p = torch.tensor([probability, 1 - probability, 1 - probability, 1 - probability])
    assert_close(loss[:-1], -p.log())


def test_entries_outside_the_slots_are_unseen_and_zero() -> None:
    network = Fixed(torch.ones(COLUMNS))
    x = torch.randn(2, 5, COLUMNS)
    model = denoiser(network)
    first = model(x, torch.ones(2))
    other = x.clone()
    other[:, -1, 3:] = 99.0
    assert torch.equal(model(other, torch.ones(2)), first)
    assert first[:, -1, 3:].abs().sum() == 0
    assert model.loss(x, x, torch.ones(2))[:, -1, 3:].abs().sum() == 0


def test_observed_entries_are_returned_and_carry_no_loss() -> None:
    model = denoiser(Fixed(torch.randn(COLUMNS)), level_channels=True)
    x = torch.randn(2, 5, COLUMNS)
    levels = torch.ones(2, 5, 4)
    levels[:, 0, 0] = 0.0  # the first state
    levels[:, 1, 3] = 0.0  # a terminal bit
    estimate = model(x, levels)
    assert torch.equal(estimate[:, 0, :3], x[:, 0, :3])
    assert torch.equal(estimate[:, 1, -1], x[:, 1, -1])
    loss = model.loss(x, torch.randn_like(x), levels)
    assert loss.isfinite().all()
    assert loss[:, 0, :3].abs().sum() + loss[:, 1, -1].abs().sum() == 0


def test_levels_per_group_need_a_network_that_sees_them() -> None:
    with pytest.raises(ValueError, match="levels='mixed'"):
        denoiser(Fixed(torch.zeros(COLUMNS)))(torch.zeros(2, 5, COLUMNS), torch.ones(2, 5, 4))


def test_mixed_levels_are_half_shared_and_a_quarter_each_of_group_and_query() -> None:
    levels = draw_levels("mixed", LevelLaw(), 4000, 5, generator=torch.Generator().manual_seed(0))
    flat = levels.flatten(1)
    shared = (flat == flat[:, :1]).all(1)
    query = ((flat == 0) | (flat == SIGMA_MAX)).any(1)
    by_group = (levels == levels[:, :1]).all(1).all(1) & ~shared
    for found, share in ((shared, 0.5), (by_group, 0.25), (query, 0.25)):
        assert float(found.float().mean()) == pytest.approx(share, abs=0.03)


def test_shared_levels_follow_edms_law() -> None:
    levels = draw_levels(
        "shared", LevelLaw(), 50_000, 5, generator=torch.Generator().manual_seed(0)
    )
    assert float(levels.log().mean()) == pytest.approx(-1.2, abs=0.02)
    assert float(levels.log().std()) == pytest.approx(1.2, abs=0.02)


class Correlated(nn.Module):
    """Exact network for rows whose two state columns are equal and standard normal."""

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        # Inverts the preconditioning around E[x0 | x] with a level per group.
        levels = (4 * x[..., -4:]).exp()
        observed = levels < 2e-4
        sigma = torch.where(observed, 0.0, levels)[..., [0, 1, 2, 3]]
        raw = x[..., :4] * (sigma**2 + 1).sqrt()
        precision = torch.where(observed, 1e12, 1 / levels**2)
        pair = precision[..., :2]
        mean = (pair * raw[..., :2]).sum(-1, keepdim=True) / (1 + pair.sum(-1, keepdim=True))
        estimate = torch.cat((mean, mean, torch.zeros_like(raw[..., 2:])), dim=-1)
        c_skip, c_out = 1 / (levels**2 + 1), levels * (levels**2 + 1) ** -0.5
        return (estimate - c_skip * raw) / c_out


def test_pinned_entries_condition_the_rest() -> None:
    # State and action are one and the same number: pinning the state must give the action.
    slots = torch.ones(1, 4, dtype=torch.bool)
    model = Denoiser(Correlated(), slots, (1, 1, 1, 1), level_channels=True)
    values = torch.zeros(256, 1, 4)
    values[..., 0] = torch.randn(256, 1)
    which = torch.tensor([[True, False, False, False]])
    x = 80 * torch.randn(256, 1, 4)
    found = sample_heun(pinned(model, values, which), x, karras_sigmas(64))
    assert_close(found[..., 0], values[..., 0], atol=1e-4, rtol=0)
    assert_close(found[..., 1], values[..., 0], atol=2e-2, rtol=0)
