"""Bridges between two laws, by exact fields and by learned ones (flows spec, item 7)."""

import math

import pytest
import torch
from affine import end_moments
from torch import Tensor, nn
from torch.testing import assert_close

from offdiff.core.errors import InputError
from offdiff.diffusion.interpolants import Bridge, Fields, Interpolant, cross
from offdiff.diffusion.oracles import BetweenMixtures, Mixture, gaussian
from offdiff.diffusion.paths import Cosine, LinearBeta, Path, RectifiedFlow

NOWHERE = torch.Generator()
"""A generator that `end_moments` takes the place of."""


def exactly(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


CLEAN = Mixture(exactly(0.4, 0.6), exactly(-1.0, 1.5)[:, None], exactly(0.3, 0.5))
SOURCE = Mixture(exactly(0.7, 0.3), exactly(0.5, -2.0)[:, None], exactly(0.4, 0.25))


def even(n: int, *, back: bool = True) -> Tensor:
    times = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    return times.flip(0) if back else times


@pytest.mark.parametrize("path", [RectifiedFlow(), Cosine()], ids=str)
@pytest.mark.parametrize("e", [0.0, 0.5, 2.0])
def test_any_noisiness_takes_a_gaussian_to_a_gaussian(path: Path, e: float) -> None:
    """I1: mean and variance at 800 steps within 1 %, both ways."""
    interpolant = Interpolant(path=path)
    fields = BetweenMixtures(gaussian(exactly(2.0), 0.5), gaussian(exactly(-1.0), 1.2), interpolant)
    bridge = Bridge(fields, interpolant)
    for back, start, end in ((True, (-1.0, 1.2), (2.0, 0.5)), (False, (2.0, 0.5), (-1.0, 1.2))):
        mean, variance = end_moments(
            lambda x, back=back: cross(  # type: ignore[misc]
                bridge, x, even(800, back=back), lambda t: e, generator=NOWHERE
            ),
            *start,
            noises=800 if e > 0 else 0,
        )
        assert mean == pytest.approx(end[0], abs=0.01 * end[1])
        assert variance == pytest.approx(end[1] ** 2, rel=0.01)


def test_steps_have_the_order_of_their_rule() -> None:
    """Heun 2 where e = 0, Euler and Maruyama 1 where e > 0; to the very end at t = 0."""
    interpolant = Interpolant()
    fields = BetweenMixtures(gaussian(exactly(2.0), 0.5), gaussian(exactly(-1.0), 1.2), interpolant)

    def error(e: float, n: int) -> float:
        times = 0.95 * even(n)
        start = fields.marginal(0.95)
        _, variance = end_moments(
            lambda x: cross(Bridge(fields, interpolant), x, times, lambda t: e, generator=NOWHERE),
            float(start.means), float(start.stds), noises=n if e > 0 else 0,
        )  # fmt: skip
        return abs(variance - 0.25)

    for e, order in ((0.0, 2.0), (0.5, 1.0)):
        slope = math.log(error(e, 80) / error(e, 320)) / math.log(4)
        assert slope == pytest.approx(order, abs=0.15), e


@pytest.mark.parametrize("path", [RectifiedFlow(), Cosine()], ids=str)
@pytest.mark.parametrize("t", [0.02, 0.37, 0.9])
def test_fields_move_the_marginals_of_two_mixtures(path: Path, t: float) -> None:
    """dp/dt + d(p bvel)/dx = 0, and the score is the slope of log p."""
    interpolant = Interpolant(path=path, bump=0.7)
    fields = BetweenMixtures(CLEAN, SOURCE, interpolant)
    bridge, step = Bridge(fields, interpolant), 1e-5
    x = torch.linspace(-3, 3, 25, dtype=torch.float64)[:, None]

    def density(x: Tensor, t: float) -> Tensor:
        law = fields.marginal(t)
        each = (-((x - law.means[:, 0]) ** 2) / (2 * law.stds**2)).exp() / law.stds
        return (each @ law.weights)[:, None] / math.sqrt(2 * math.pi)

    slope = (density(x + step, t).log() - density(x - step, t).log()) / (2 * step)
    assert_close(bridge.score(x, t), slope, atol=1e-6, rtol=1e-6)
    change = (density(x, t + step) - density(x, t - step)) / (2 * step)
    flux = [density(y, t) * bridge.velocity(y, t) for y in (x + step, x - step)]
    assert_close(change, (flux[1] - flux[0]) / (2 * step), atol=1e-6, rtol=0)


def test_exact_fields_are_the_least_of_both_losses() -> None:
    """Of Gaussians, where linear regression is all: the error is orthogonal to 1 and to x."""
    interpolant = Interpolant(bump=0.8)
    fields = BetweenMixtures(gaussian(exactly(2.0), 0.5), gaussian(exactly(-1.0), 1.2), interpolant)
    drawn = torch.randn(1000, 3, generator=seeded(0), dtype=torch.float64)
    # Their moments made exact: mean 0, covariance 1.
    whitened = torch.linalg.qr(drawn - drawn.mean(0)).Q * 1000**0.5
    clean, source, noise = (2 + 0.5 * whitened[:, :1], 1.2 * whitened[:, 1:2] - 1, whitened[:, 2:])
    for t in (0.05, 0.6):
        x = interpolant.point(clean, source, noise, exactly(t))
        velocity, eta = fields(x, t)
        assert float((eta * noise).mean()) > 0  # I2
        least = interpolant.losses((velocity, eta), clean, source, noise, exactly(t))
        for wrong in (x, torch.ones_like(x)):
            off = interpolant.losses((velocity + wrong, eta + wrong), clean, source, noise,
                                     exactly(t))  # fmt: skip
            for good, bad in zip(least, off, strict=True):
                assert_close(bad - good, wrong.square().mean())


def test_the_spread_vanishes_at_the_ends_and_its_product_with_its_slope_does_not() -> None:
    interpolant = Interpolant(bump=3.0)
    ends = exactly(0.0, 1.0)
    assert_close(interpolant.g(ends), exactly(0.0, 0.0))
    assert_close(interpolant.g_g_dot(ends), exactly(1.5, -1.5))
    t, step = exactly(0.001, 0.2, 0.5, 0.97), 1e-7
    slope = (interpolant.g(t + step) - interpolant.g(t - step)) / (2 * step)
    assert_close(interpolant.g(t) * slope, interpolant.g_g_dot(t), atol=1e-6, rtol=0)


def test_without_noise_and_from_noise_it_is_rectified_flow() -> None:
    """bump 0 and a standard normal source: the quantile map of the line."""
    interpolant = Interpolant(bump=0.0)
    bridge = Bridge(BetweenMixtures(CLEAN, gaussian(exactly(0.0), 1.0), interpolant), interpolant)
    z = torch.special.ndtri((torch.arange(500, dtype=torch.float64) + 0.5) / 500)[:, None]
    end = cross(bridge, z, even(400))
    share = torch.special.ndtr((end - CLEAN.means[:, 0]) / CLEAN.stds) @ CLEAN.weights
    assert_close(share, torch.special.ndtr(z[:, 0]), atol=1e-4, rtol=0)


class Heads(nn.Module):
    """(x, t) -> (v, eta) of samples of one number."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(
                nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)
            )

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1), (B, 1). eta vanishes like g at the ends: so does the head's."""
        bump = (t * (1 - t)).sqrt()
        velocity, eta = self.net(torch.cat((x, t, bump), 1)).chunk(2, 1)
        return velocity, bump * eta


@pytest.fixture(scope="module")
def learned() -> Heads:
    heads, interpolant, generator, steps = Heads(), Interpolant(), seeded(0), 1000
    optimiser = torch.optim.Adam(heads.parameters(), 1e-2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        clean, source = (law.sample(2048, generator=generator).float() for law in (CLEAN, SOURCE))
        noise = torch.randn(clean.shape, generator=generator)
        t = torch.rand(clean.shape, generator=generator)
        predicted = heads(interpolant.point(clean, source, noise, t), t)
        velocity_loss, eta_loss = interpolant.losses(predicted, clean, source, noise, t)
        optimiser.zero_grad()
        (velocity_loss + eta_loss).backward()
        optimiser.step()
        decay.step()
    return heads.requires_grad_(False)


def fields_of(heads: Heads) -> Fields:
    return lambda x, t: heads(x, torch.full_like(x, t))


def distance_to_data(samples: Tensor) -> float:
    """W1 of (N, 1) to as many quantiles of CLEAN, whose standard deviation is 1.3."""
    x = torch.linspace(-4, 5, 90_001, dtype=torch.float64)
    cumulative = torch.special.ndtr((x[:, None] - CLEAN.means[:, 0]) / CLEAN.stds) @ CLEAN.weights
    share = (torch.arange(len(samples), dtype=torch.float64) + 0.5) / len(samples)
    exact = x[torch.searchsorted(cumulative, share).clamp(max=len(x) - 1)]
    return float((samples[:, 0].double().sort().values - exact).abs().mean())


@pytest.mark.parametrize("e", [0.0, 0.5])
def test_learned_fields_cross_from_one_mixture_to_the_other(learned: Heads, e: float) -> None:
    """Measured 0.035 and 0.041, over seeds 0.02 to 0.05; the exact fields 0.01, the source 0.84."""
    source = SOURCE.sample(10_000, generator=seeded(3)).float()
    assert distance_to_data(source) > 0.8
    bridge = Bridge(fields_of(learned), Interpolant())
    end = cross(bridge, source, even(100), lambda t: e, generator=seeded(4))
    assert distance_to_data(end) < 0.06


def test_the_learned_eta_has_the_sign_of_the_noise(learned: Heads) -> None:
    """I2."""
    n, interpolant = 4000, Interpolant()
    clean, source = CLEAN.sample(n, generator=seeded(5)), SOURCE.sample(n, generator=seeded(6))
    noise = torch.randn(n, 1, generator=seeded(7), dtype=torch.float64)
    x = interpolant.point(clean, source, noise, exactly(0.5))
    _, eta = fields_of(learned)(x.float(), 0.5)
    _, exact = BetweenMixtures(CLEAN, SOURCE, interpolant)(x, 0.5)
    both = torch.corrcoef(torch.stack((eta[:, 0].double(), noise[:, 0], exact[:, 0])))
    assert float(both[0, 1]) == pytest.approx(float(both[2, 1]), abs=0.02)
    assert float(both[0, 1]) > 0.2


def test_what_cannot_be_done_is_told() -> None:
    with pytest.raises(ValueError, match="bump must be 0 or above, got -1"):
        Interpolant(bump=-1.0)
    with pytest.raises(ValueError, match="does not go from a = 1"):
        Interpolant(path=LinearBeta())
    interpolant, one = Interpolant(), torch.zeros(4, 1)
    with pytest.raises(InputError, match=r"one shape, got \[\(4, 1\), \(4, 2\)\]"):
        interpolant.point(one, torch.zeros(4, 2), one, torch.tensor(0.5))
    bridge = Bridge(lambda x, t: (x, x), interpolant)
    for times in (exactly(0.5), exactly(1.0, 0.5, 0.5), exactly(1.1, 0.0), exactly(math.nan, 0.0)):
        with pytest.raises(InputError, match="times must be two or more"):
            cross(bridge, one, times)
    with pytest.raises(InputError, match=r"e\(1\) must be 0 or above, got -2"):
        cross(bridge, one, even(2), lambda t: -2.0)
    with pytest.raises(InputError, match="give a generator"):
        cross(bridge, one, even(2), lambda t: 1.0)
    silent = Bridge(lambda x, t: (x, x), Interpolant(bump=0.0))
    with pytest.raises(InputError, match="without noise has no score"):
        cross(silent, one, even(2), lambda t: 1.0, generator=seeded(0))
