"""Solvers in a path's time against closed forms (flows spec R and I; samplers spec S2, S7, MRS)."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from affine import end_moments
from torch import Tensor
from torch.testing import assert_close

from offdiff.diffusion.flow_solvers import (
    OnPath,
    invert,
    restore,
    solve_anchored,
    solve_euler,
    solve_euler_maruyama,
    solve_heun,
    solve_midpoint,
)
from offdiff.diffusion.multistep import sample_unipc
from offdiff.diffusion.oracles import CorrelatedGaussian, Mixture, gaussian
from offdiff.diffusion.paths import (
    Cosine,
    LinearBeta,
    MeanReverting,
    Path,
    RectifiedFlow,
    centred,
)
from offdiff.diffusion.sampling import sample_euler

TWO = Mixture(
    torch.tensor([0.3, 0.7], dtype=torch.float64),
    torch.tensor([[-1.0, 0.4], [0.8, -0.6]], dtype=torch.float64),
    torch.tensor([0.6, 0.8], dtype=torch.float64),
)
LINE = Mixture(
    torch.tensor([0.4, 0.6], dtype=torch.float64),
    torch.tensor([[-1.0], [1.5]], dtype=torch.float64),
    torch.tensor([0.3, 0.5], dtype=torch.float64),
)
MU, S = 2.0, 0.5
"""The Gaussian of the R tests."""
NEAR = 1e-9
"""How near the ends velocities are asked: at t = 0 and 1 they are 0 / 0."""


def at(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quantiles(n: int) -> Tensor:
    """(n, 1) of the standard normal law."""
    return torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]


def standard(n: int) -> Tensor:
    """(n, 1) quantiles, of mean 0 and variance 1 exactly."""
    z = quantiles(n)
    return z / z.square().mean().sqrt()


def runge_kutta(model: OnPath, x: Tensor, n: int) -> Tensor:
    """(B, n + 1, 1) states from t = 1 to 0 by the classical fourth-order rule."""
    states = [x]
    for t, later in pairwise(torch.linspace(1 - NEAR, NEAR, n + 1, dtype=torch.float64).tolist()):
        h = later - t
        first = model.velocity(x, t)
        second = model.velocity(x + h / 2 * first, t + h / 2)
        third = model.velocity(x + h / 2 * second, t + h / 2)
        fourth = model.velocity(x + h * third, later)
        x = x + h / 6 * (first + 2 * second + 2 * third + fourth)
        states.append(x)
    return torch.stack(states, 1)


def straightness(states: Tensor) -> float:
    """Mean squared difference of every step's velocity from the way as a whole."""
    n = states.shape[1] - 1
    legs = n * (states[:, :-1] - states[:, 1:])
    return float((legs - (states[:, :1] - states[:, -1:])).square().mean())


def matched(x: Tensor, sigma: Tensor, /) -> Tensor:
    """The denoiser of x0 = MU + S z, where z is the noise itself: a reflowed model's."""
    return MU + S * (x - MU) / (S + sigma[:, None])


def test_the_flow_to_a_gaussian_is_affine_and_makes_transport_cheap() -> None:
    """R1, R2, R3."""
    oracle, z = gaussian(at(MU)[None], S), standard(512)
    model = OnPath(oracle, RectifiedFlow())
    end = runge_kutta(model, z, 100)[:, -1]
    assert_close(end, MU + S * z, atol=1e-6, rtol=0)
    clean = oracle.sample(200_000, generator=torch.Generator().manual_seed(1))
    before = float((clean - normal(200_000, 1)).square().mean())
    assert before == pytest.approx(MU**2 + S**2 + 1, rel=0.01)
    assert float((end - z).square().mean()) == pytest.approx(MU**2 + (1 - S) ** 2, rel=1e-6)
    bent = straightness(runge_kutta(model, z, 200))
    assert bent == pytest.approx((2 - math.pi / 2) * S, abs=1e-3)


def test_reflow_of_a_gaussian_is_a_straight_line() -> None:
    """R3 and R4: pairs of noise and where the flow took it; v is linear in x, without residual."""
    z = standard(512)
    end = runge_kutta(OnPath(gaussian(at(MU)[None], S), RectifiedFlow()), z, 100)[:, -1]
    for t in (0.2, 0.8):
        x, v = (1 - t) * end + t * z, z - end
        fit = torch.linalg.lstsq(torch.cat((torch.ones_like(x), x), 1), v).solution
        slope = (1 - S) / ((1 - t) * S + t)
        assert float(fit[1]) == pytest.approx(slope, abs=1e-6)
        assert_close(fit[0] + fit[1] * x, v, atol=1e-6, rtol=0)
        said = OnPath(matched, RectifiedFlow()).velocity(x, t)
        assert_close(said, v, atol=1e-6, rtol=0)
    assert straightness(runge_kutta(OnPath(matched, RectifiedFlow()), z, 200)) < 1e-6


def test_one_first_order_step_is_exact_on_a_matched_cosine_path() -> None:
    """R7: straightness is far from 0 all the same."""
    z, path = standard(512), Cosine()
    a, b = path.a(at(0.98)), path.b(at(0.98))
    sigma = float(b / a)
    end = sample_euler(
        matched, MU + (S + sigma) * z, torch.tensor([sigma, 0.0], dtype=at(0.0).dtype)
    )
    assert_close(end, MU + S * z, atol=1e-10, rtol=0)
    bent = straightness(runge_kutta(OnPath(matched, path), z, 200))
    assert bent == pytest.approx(1.4415, abs=1e-3)


def share_below(x: Tensor, a: float = 1.0, b: float = 0.0) -> Tensor:
    """Distribution function of a x0 + b eps, x0 of LINE; x (B, 1) -> (B,)."""
    spread = ((a * LINE.stds) ** 2 + b**2).sqrt()
    return torch.special.ndtr((x - a * LINE.means[:, 0]) / spread) @ LINE.weights


def data_quantile(share: Tensor) -> Tensor:
    """Its inverse by bisection, (B,) -> (B, 1)."""
    low, high = torch.full_like(share, -10)[:, None], torch.full_like(share, 10)[:, None]
    for _ in range(60):
        middle = (low + high) / 2
        below = (share_below(middle) < share)[:, None]
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low


@pytest.mark.parametrize("path", [RectifiedFlow(), Cosine()], ids=str)
def test_a_flow_on_the_line_is_the_quantile_map(path: Path) -> None:
    """R5, with W1 as the mean distance, since both sides are in order."""
    z = quantiles(2000)
    end = runge_kutta(OnPath(LINE, path), z, 100)[:, -1]
    assert float((end - data_quantile(torch.special.ndtr(z[:, 0]))).abs().mean()) < 1e-6


def test_a_path_that_does_not_end_in_noise_has_a_floor() -> None:
    """R6: the linear schedule started from N(0, 1) ends where its own law at t = 1 says."""
    z, path = quantiles(2000), LinearBeta()
    end = runge_kutta(OnPath(LINE, path), z, 200)[:, -1]
    a, b = float(path.a(at(1.0))), float(path.b(at(1.0)))
    assert float((end - data_quantile(share_below(z, a, b))).abs().mean()) < 1e-6
    floor = float((end - data_quantile(torch.special.ndtr(z[:, 0]))).abs().mean())
    assert floor == pytest.approx(4.004e-3, abs=1e-6)


def test_rules_in_time_have_their_order_on_rectified_flow() -> None:
    """S1 for those that follow the velocity, and Euler there being DDIM (S3)."""
    model, x = OnPath(TWO, RectifiedFlow()), normal(256, 2)

    def end(solve: Callable[[OnPath, Tensor, Tensor], Tensor], n: int) -> Tensor:
        logits = torch.linspace(math.log(49), -math.log(49), n + 1, dtype=torch.float64)
        return solve(model, x, logits.sigmoid())  # from 0.98 to 0.02

    # Two runs of a second-order rule whose leading errors cancel.
    exact = (4 * end(solve_midpoint, 2000) - end(solve_midpoint, 1000)) / 3

    def error(solve: Callable[[OnPath, Tensor, Tensor], Tensor], n: int) -> float:
        return float((end(solve, n) - exact).square().mean().sqrt())

    for solve, order in ((solve_heun, 2.0), (solve_midpoint, 2.0), (solve_euler, 1.0)):
        slope = math.log(error(solve, 80) / error(solve, 320)) / math.log(4)
        assert slope == pytest.approx(order, abs=0.15), solve
    assert error(solve_midpoint, 320) < 3 * 2.7e-6


def test_the_anchored_rule_is_exact_where_flows_are_straight() -> None:
    """x0 = z: every estimate is the noise itself."""
    z = normal(64, 2)

    def straight(x: Tensor, sigma: Tensor, /) -> Tensor:
        return x / (1 + sigma[:, None])

    times = torch.tensor([1 - 1e-12, 0.6, 0.3, 0.0], dtype=torch.float64)
    end = solve_anchored(OnPath(straight, RectifiedFlow()), z, times)
    assert_close(end, z, atol=1e-9, rtol=1e-9)


def maruyama(path: Path, e: float, n: int, low: float) -> tuple[float, float]:
    """End's mean and variance at constant e, from t = 1 - low to low, over those of the path."""
    model, mean = OnPath(gaussian(at(1.0)[None], S), path), 1.0
    times = torch.linspace(1 - low, low, n + 1, dtype=torch.float64)
    a, b = path.a(times), path.b(times)
    spread = ((a * S) ** 2 + b**2).sqrt()

    def rule(x: Tensor) -> Tensor:
        return solve_euler_maruyama(model, x, times, lambda t: e, generator=torch.Generator())

    found, variance = end_moments(rule, mean * float(a[0]), float(spread[0]), noises=n)
    return found / (mean * float(a[-1])), variance / float(spread[-1]) ** 2


@pytest.mark.parametrize("path", [RectifiedFlow(), Cosine()], ids=str)
@pytest.mark.parametrize("e", [0.0, 0.5, 2.0])
def test_any_noisiness_gives_the_same_marginals(path: Path, e: float) -> None:
    """I1 on a one-sided path: N(1, 0.5^2) at 800 steps."""
    mean, variance = maruyama(path, e, 800, low=1e-3)
    assert mean == pytest.approx(1, rel=0.01)
    assert variance == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize(("path", "error"), [(RectifiedFlow(), 0.07), (Cosine(), 0.09)], ids=str)
def test_euler_and_maruyama_have_order_one(path: Path, error: float) -> None:
    """S2, by the slope over 160, 320 and 640 steps; the error at 20 is the spec's."""
    found = {n: abs(maruyama(path, 1.0, n, low=0.02)[1] - 1) for n in (20, 160, 320, 640)}
    assert found[20] == pytest.approx(error, abs=0.005)
    for few, many in ((160, 320), (320, 640)):
        assert math.log2(found[few] / found[many]) == pytest.approx(1, abs=0.1)


def test_inversion_and_the_way_back() -> None:
    """S7: RF-Solver at 5 and 10 steps; Euler's noise has half its variance."""
    clean = TWO.sample(4000, generator=torch.Generator().manual_seed(0))
    for steps, limit in ((5, 0.0265), (10, 0.0035)):
        noise = invert(TWO, clean, steps=steps, high=0.999)
        back = restore(TWO, noise, steps=steps, high=0.999)
        assert float((back - clean).square().mean().sqrt()) < 1.5 * limit
        assert float(noise.var()) == pytest.approx(1.0, abs=0.1)
    times = torch.linspace(1e-3, 0.999, 6, dtype=torch.float64)
    spoiled = solve_euler(OnPath(TWO, RectifiedFlow()), clean, times)
    assert float(spoiled.var()) < 0.7


def test_what_does_not_vary_is_inverted_to_noise_all_the_same() -> None:
    """Data on a line in the plane: across it the noise comes from the level that one starts at."""
    along = torch.tensor([1.0, 0.0], dtype=torch.float64)
    flat = CorrelatedGaussian(torch.zeros(2, dtype=torch.float64), torch.diag(along))
    clean = along * normal(20_000, 2)
    plain = invert(flat, clean, steps=20, high=0.999)
    noisy = invert(flat, clean, steps=20, high=0.999, noise=normal(20_000, 2, seed=1))
    assert float(plain[:, 1].std()) < 1e-6
    assert float(noisy[:, 1].std()) == pytest.approx(0.999, rel=0.02)
    back = restore(flat, noisy, steps=20, high=0.999)
    assert float((back - clean).abs().max()) < 0.02


def test_a_reverting_process_is_a_path_of_what_is_left() -> None:
    """MRS (iii): N(mu + d, s^2) from a prior about mu, within 1 % at 20 steps.

    By the midpoint rule (0.3 %) and UniPC (0.4 %); Heun's rule in t is 3 % off on these levels.
    """
    mu, d, s = torch.full((1,), 3.0, dtype=torch.float64), 0.2, 0.3
    path, denoise = MeanReverting(spread=0.5), centred(gaussian(mu + d, s), mu)
    levels = torch.linspace(3.0, -4.0, 20, dtype=torch.float64).exp()  # sigma, evenly in its log
    times = torch.cat((path.time(levels), at(0.0)[None]))
    sigmas = torch.cat((levels, at(0.0)[None]))
    a, b = float(path.a(times[0])), float(path.b(times[0]))

    def in_time(x: Tensor) -> Tensor:
        return solve_midpoint(OnPath(denoise, path), a * x, times)

    def in_levels(x: Tensor) -> Tensor:
        return sample_unipc(denoise, x, sigmas)

    for rule in (in_time, in_levels):
        mean, variance = end_moments(rule, d, math.hypot(s, b / a), noises=0)
        assert mean == pytest.approx(d, rel=0.01)
        assert variance == pytest.approx(s**2, rel=0.01)
