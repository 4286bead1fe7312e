"""Paths, predictions and exact denoisers: the closed forms of the flows spec (F tests)."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from offdiff.diffusion.denoiser import Denoiser
from offdiff.diffusion.flow_solvers import OnPath
from offdiff.diffusion.oracles import CorrelatedGaussian, Mixture
from offdiff.diffusion.paths import (
    Cosine,
    LinearBeta,
    MeanReverting,
    Path,
    Prediction,
    RectifiedFlow,
    VarianceExploding,
    convert,
    error_scale,
    sigma_at,
    to_clean_and_noise,
)

PATHS: list[Path] = [RectifiedFlow(), Cosine(), LinearBeta(), VarianceExploding(), MeanReverting()]
TARGETS: list[Prediction] = ["x0", "eps", "v", "v_sd", "score", "edm"]
TWO = Mixture(
    torch.tensor([0.3, 0.7], dtype=torch.float64),
    torch.tensor([[-1.0, 0.4], [0.8, -0.6]], dtype=torch.float64),
    torch.tensor([0.6, 0.8], dtype=torch.float64),
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
                         (clean, noise), atol=1e-8, rtol=0)  # fmt: skip


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
        expected = error_scale(target, rf.b(at(t)) / rf.a(at(t))).expand_as(ratio)
        assert_close(ratio, expected, atol=0, rtol=1e-10)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_one_denoiser_serves_every_path(path: Path) -> None:
    """F5: E[x0 | x_t] of the path's own formula, as rectified flow has it at the same level."""
    t, x = 0.37, normal(16, 2)
    a, b = path.a(at(t)), path.b(at(t))
    as_rf = RectifiedFlow().time(sigma_at(path, at(t)))
    elsewhere = OnPath(TWO, RectifiedFlow()).clean((1 - as_rf) / a * x, float(as_rf))
    variance = (a * TWO.stds) ** 2 + b**2
    offset = x[:, None] - a * TWO.means
    share = (TWO.weights.log() - variance.log() - offset.square().sum(-1) / (2 * variance)).softmax(
        1
    )
    each = TWO.means + (a * TWO.stds**2 / variance)[:, None] * offset
    expected = (share[..., None] * each).sum(1)
    assert_close(OnPath(TWO, path).clean(x, t), expected, atol=1e-8, rtol=0)
    assert_close(elsewhere, expected, atol=1e-8, rtol=0)


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
