"""Paths, predictions and exact denoisers: the closed forms of the flows spec (F, R and I tests)."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from offdiff.diffusion.denoiser import Denoiser
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
from offdiff.diffusion.oracles import CorrelatedGaussian, Mixture, gaussian
from offdiff.diffusion.paths import (
    Cosine,
    LinearBeta,
    MeanReverting,
    Path,
    Prediction,
    RectifiedFlow,
    VarianceExploding,
    centred,
    convert,
    error_scale,
    to_clean_and_noise,
)

PATHS: list[Path] = [RectifiedFlow(), Cosine(), LinearBeta(), VarianceExploding(), MeanReverting()]
TARGETS: list[Prediction] = ["x0", "eps", "v", "v_sd", "score", "edm"]
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


def at(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_density(mixture: Mixture, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Of x_t = a x0 + b eps."""
    variance = (a * mixture.stds) ** 2 + b**2
    distance = (x[:, None] - a * mixture.means).square().sum(-1)
    size = x.shape[1]
    each = mixture.weights.log() - size / 2 * (2 * math.pi * variance).log()
    return (each - distance / (2 * variance)).logsumexp(1)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_derivatives_and_clock(path: Path) -> None:
    for t in (0.1, 0.37, 0.9):
        step = 1e-6
        for value, slope in ((path.a, path.a_dot), (path.b, path.b_dot)):
            difference = (value(at(t + step)) - value(at(t - step))) / (2 * step)
            assert_close(slope(at(t)), difference, atol=1e-7, rtol=1e-6)
        assert_close(path.time(path.b(at(t)) / path.a(at(t))), at(t), atol=1e-10, rtol=0)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_score_and_continuity_of_a_mixture(path: Path) -> None:
    """F1 and F2: the score is the density's gradient; dp/dt + div(p v) = 0."""
    t, x, step = 0.37, normal(16, 2), 1e-4
    a, b = path.a(at(t)), path.b(at(t))
    model = OnPath(TWO, path)
    velocity = model.velocity(x, t)
    score = model.score(velocity, x, t)
    gradient, divergence = torch.zeros_like(x), torch.zeros(16, dtype=torch.float64)
    for k in range(2):
        offset = torch.zeros(2, dtype=torch.float64)
        offset[k] = step
        up, down = (log_density(TWO, x + s * offset, a, b) for s in (1, -1))
        gradient[:, k] = (up - down) / (2 * step)
        flow = [model.velocity(x + s * offset, t)[:, k] for s in (1, -1)]
        divergence += (up.exp() * flow[0] - down.exp() * flow[1]) / (2 * step)
    assert_close(score, gradient, atol=1e-6, rtol=1e-6)
    later, earlier = (
        log_density(TWO, x, path.a(at(s)), path.b(at(s))).exp() for s in (t + 1e-5, t - 1e-5)
    )
    assert ((later - earlier) / 2e-5 + divergence).abs().max() < 1e-5


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_predictions_convert_into_one_another(path: Path) -> None:
    """F3: any two targets say the same."""
    clean, noise = normal(8, 3), normal(8, 3, seed=1)
    for t in (0.01, 0.3, 0.7, 0.99):
        x = path.a(at(t)) * clean + path.b(at(t)) * noise
        for source in TARGETS:
            if source == "eps" and path.a(at(t)) < 0.02:
                continue  # says nothing of x0 there
            said = convert(clean, x, "x0", source, path, at(t))
            assert_close(to_clean_and_noise(said, x, source, path, at(t)),
                         (clean, noise), atol=1e-7, rtol=0)  # fmt: skip


@pytest.mark.parametrize("target", ["x0", "eps", "v", "edm"])
def test_a_target_is_a_weight_on_the_error_of_f(target: Prediction) -> None:
    """F4."""
    rf = RectifiedFlow()
    clean, noise, wrong = normal(6, 2), normal(6, 2, seed=1), normal(6, 2, seed=2)
    for t in (0.05, 0.5, 0.95):
        x = rf.a(at(t)) * clean + rf.b(at(t)) * noise
        right = [convert(clean, x, "x0", of, rf, at(t)) for of in ("edm", target)]
        off = [convert(clean + wrong, x, "x0", of, rf, at(t)) for of in ("edm", target)]
        ratio = (off[1] - right[1]).abs() / (off[0] - right[0]).abs()
        assert_close(ratio, error_scale(target, rf.b(at(t)) / rf.a(at(t))).expand_as(ratio))


def test_f_has_unit_variance_and_is_what_the_denoiser_learns() -> None:
    """F6, and that `edm` is the network output of our own denoiser."""
    clean, noise = normal(100_000, 1, 1).float(), normal(100_000, 1, 1, seed=1).float()
    said: list[Tensor] = []

    class Silent(torch.nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            said.append(c_noise)
            return torch.zeros_like(x)

    denoiser = Denoiser(Silent(), torch.ones(1, 1, dtype=torch.bool), [1, 0, 0, 0],
                        level_channels=False)  # fmt: skip
    for sigma in (0.01, 0.1, 1.0, 10.0):
        t = torch.tensor(sigma / (1 + sigma))
        target = convert(clean, (1 - t) * clean + t * noise, "x0", "edm", RectifiedFlow(), t)
        assert target.var() == pytest.approx(1, rel=0.02)
        loss = denoiser.loss(clean, noise, torch.full((100_000,), sigma))
        assert_close(loss, target.square(), atol=1e-3, rtol=1e-3)


def test_one_gaussian_flow_is_affine_and_costs_what_it_should() -> None:
    """R1 to R4: N(2, 0.5^2)."""
    mu, s = 2.0, 0.5
    model = OnPath(gaussian(at(mu)[None], s), RectifiedFlow())
    z = normal(200_000, 1)
    few = z[:512]
    end = solve_midpoint(model, few, torch.linspace(1 - 1e-9, 1e-6, 4001, dtype=torch.float64))
    assert (end - (mu + s * few)).abs().max() < 1e-5
    cost = (mu + s * z - z).square().mean()
    assert cost == pytest.approx(mu**2 + (1 - s) ** 2, rel=0.01)
    # Straightness (2 - pi / 2) s per dimension: of the exact first flow, in 200 steps.
    times = torch.linspace(1, 0, 201, dtype=torch.float64)
    states = (1 - times) * mu + ((1 - times) ** 2 * s**2 + times**2).sqrt() * z[:20_000]
    legs = 200 * (states[:, :-1] - states[:, 1:])
    straightness = (legs - (states[:, :1] - states[:, -1:])).square().mean()
    spread = z[:20_000].square().mean()
    assert float(straightness) == pytest.approx((2 - math.pi / 2) * s * float(spread), rel=1e-2)
    # Reflowed: x_t = (1 - t) x0 + t z is affine in z, so v is linear in x with no residual.
    for t in (0.2, 0.8):
        x0 = mu + s * few
        x, v = (1 - t) * x0 + t * few, few - x0
        slope = (1 - s) / ((1 - t) * s + t)
        assert ((v - v.mean()) - slope * (x - x.mean())).abs().max() < 1e-9


def test_one_first_order_step_is_exact_on_a_matched_cosine_path() -> None:
    """R7: matched x0 = 2 + z / 2; straightness is far from 0 all the same."""
    mu, s, path, t = 2.0, 0.5, Cosine(), 0.98
    z = normal(4096, 1)
    a, b = path.a(at(t)), path.b(at(t))
    x = a * (mu + s * z) + b * z
    noise = (x - a * mu) / (a * s + b)
    assert_close((x - b * noise) / a, mu + s * z, atol=1e-10, rtol=0)
    times = torch.linspace(1, 0, 4001, dtype=torch.float64)
    states = path.a(times) * (mu + s * z) + path.b(times) * z
    legs = 4000 * (states[:, :-1] - states[:, 1:])
    bent = (legs - (states[:, :1] - states[:, -1:])).square().mean()
    # (2 + z / 2) and z move on quarter circles: (pi^2 / 8 - 1) (E x0^2 + 1) + cross terms.
    pairs = (mu + s * z, z)
    speed = math.pi**2 / 8 * (pairs[0].square().mean() + pairs[1].square().mean())
    cross = math.pi / 2 * (pairs[0] * pairs[1]).mean()
    expected = speed - cross - (pairs[1] - pairs[0]).square().mean()
    assert float(bent) == pytest.approx(float(expected), rel=1e-3)
    assert float(bent) == pytest.approx(1.4415, abs=0.1)  # of infinitely many z


@pytest.mark.parametrize(("path", "low", "high"), [
    (RectifiedFlow(), 0.0, 1e-5), (Cosine(), 0.0, 1e-5), (LinearBeta(), 2e-3, 5e-3),
])  # fmt: skip
def test_a_flow_on_the_line_is_the_quantile_map(path: Path, low: float, high: float) -> None:
    """R5 and R6: exact but for the path whose end is not quite noise."""
    share = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    z = torch.special.ndtri(share)[:, None]
    x = torch.linspace(-4, 6, 200_001, dtype=torch.float64)
    cumulative = torch.special.ndtr((x[:, None] - LINE.means[:, 0]) / LINE.stds) @ LINE.weights
    exact = x[torch.searchsorted(cumulative, share).clamp(max=len(x) - 1)]
    times = torch.linspace(1 if high > 1e-3 else 1 - 1e-7, 1e-7, 1201, dtype=torch.float64)
    end = solve_heun(OnPath(LINE, path), z, times)[:, 0]
    distance = float((end.sort().values - exact).abs().mean())
    assert low <= distance < max(high, 1e-4), distance


def test_rules_in_time_have_their_order_on_rectified_flow() -> None:
    """S1 for those that follow the velocity, and Euler there being DDIM (S3)."""
    model, x = OnPath(TWO, RectifiedFlow()), normal(256, 2)
    t0, t1 = 0.98, 0.02

    def error(solve: object, n: int) -> float:
        times = torch.linspace(math.log(t0 / (1 - t0)), math.log(t1 / (1 - t1)), n + 1,
                               dtype=torch.float64).sigmoid()  # fmt: skip
        return float((solve(model, x, times) - exact).square().mean().sqrt())  # type: ignore[operator]

    fine = torch.linspace(t0, t1, 8001, dtype=torch.float64)
    exact = solve_midpoint(model, x, fine)
    for solve, order in ((solve_heun, 2.0), (solve_midpoint, 2.0), (solve_euler, 1.0)):
        slope = math.log(error(solve, 80) / error(solve, 320)) / math.log(4)
        assert slope == pytest.approx(order, abs=0.15), solve
    assert error(solve_midpoint, 320) < 3 * 2.7e-6


def test_the_anchored_rule_is_exact_where_flows_are_straight() -> None:
    """x0 = z: every estimate is the noise itself."""
    times = torch.tensor([1.0, 0.6, 0.3, 0.0], dtype=torch.float64)
    z = normal(64, 2)

    def straight(x: Tensor, sigma: Tensor, /) -> Tensor:
        return x / (1 + sigma[:, None])

    model = OnPath(straight, RectifiedFlow())
    near = torch.tensor([1 - 1e-12, 0.6, 0.3, 0.0], dtype=torch.float64)
    assert_close(solve_anchored(model, z, near), z, atol=1e-9, rtol=1e-9)
    assert times[0] == 1


@pytest.mark.parametrize("e", [0.0, 0.5, 2.0])
def test_any_noisiness_gives_the_same_marginals(e: float) -> None:
    """I1 on a one-sided path: N(1, 0.5^2) at 800 steps."""
    model = OnPath(gaussian(at(1.0)[None], 0.5), RectifiedFlow())
    times = torch.linspace(0.999, 1e-3, 801, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    end = solve_euler_maruyama(
        model, normal(30_000, 1, seed=3), times, lambda t: e * t, generator=generator
    )
    assert float(end.var()) == pytest.approx(0.25, rel=0.03)  # 30,000 draws: 0.8 % by chance
    assert float(end.mean()) == pytest.approx(1, abs=0.01)


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
    """MRS (iii): N(mu + d, s^2) from a prior about mu, within 1 % at 20 steps."""
    mu = torch.full((1,), 3.0, dtype=torch.float64)
    path = MeanReverting(spread=0.5)
    model = OnPath(centred(gaussian(mu + 0.2, 0.3), mu), path)
    steps = torch.linspace(3.0, -6.0, 21, dtype=torch.float64).exp()  # sigma, evenly in its log
    times = torch.cat((path.time(steps), at(0.0)[None]))
    first = float(path.a(times[0])) * 0.2
    spread = math.sqrt((float(path.a(times[0])) * 0.3) ** 2 + float(path.b(times[0])) ** 2)
    end = mu + solve_heun(model, first + spread * normal(100_000, 1), times)
    assert float(end.mean()) == pytest.approx(3.2, abs=0.01)
    assert float(end.std()) == pytest.approx(0.3, rel=0.02)


def test_conditional_mean_of_a_correlated_gaussian() -> None:
    """Against the formula m + S (S + sigma^2)^-1 (x - m)."""
    rows = torch.arange(8, dtype=torch.float64)
    covariance = 0.95 ** (rows[:, None] - rows).abs()
    oracle = CorrelatedGaussian(normal(8), covariance)
    x = normal(5, 8, seed=2)
    for sigma in (0.3, 4.0):
        inverse = torch.linalg.inv(covariance + sigma**2 * torch.eye(8, dtype=torch.float64))
        expected = oracle.mean + (x - oracle.mean) @ (covariance @ inverse).T
        assert_close(oracle(x, torch.full((5,), sigma, dtype=torch.float64)), expected)
