"""Exponential multistep rules: orders, identities, exact moments (samplers spec, section 3)."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from affine import end_moments
from torch import Tensor
from torch.testing import assert_close

from offdiff.diffusion.multistep import (
    sample_noise_2m,
    sample_sde_2m,
    sample_taylor,
    sample_unipc,
)
from offdiff.diffusion.oracles import Mixture, gaussian
from offdiff.diffusion.paths import centred
from offdiff.diffusion.sampling import sample_ddim, sample_dpmpp_2m, sample_euler, sample_heun

TWO = Mixture(
    torch.tensor([0.3, 0.7], dtype=torch.float64),
    torch.tensor([[-1.0, 0.4], [0.8, -0.6]], dtype=torch.float64),
    torch.tensor([0.6, 0.8], dtype=torch.float64),
)
Sample = Callable[..., Tensor]
HIGH, LOW = 0.98 / 0.02, 0.02 / 0.98
"""Levels of t = 0.98 and 0.02 on the rectified-flow path."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def even_in_lambda(n: int) -> Tensor:
    return torch.linspace(math.log(HIGH), math.log(LOW), n + 1, dtype=torch.float64).exp()


@pytest.fixture(scope="module")
def start() -> Tensor:
    return HIGH / 0.98 * normal(256, 2)


@pytest.fixture(scope="module")
def exact(start: Tensor) -> Tensor:
    return sample_unipc(TWO, start, even_in_lambda(2560), order=3)


ORDERS: list[tuple[str, Sample, float, float]] = [
    ("ddim", sample_euler, 1, 5.4e-3),
    ("EDM's Heun", sample_heun, 2, 6.8e-5),
    ("DPM-Solver++(2M)", sample_dpmpp_2m, 2, 3.6e-5),
    ("MRS-ODE-2", sample_taylor, 2, 5.8e-5),
    ("2M in the noise", sample_noise_2m, 2, 5.3e-5),
    # In the limit 2: its first steps of lower order cost little, at levels where D hardly moves.
    ("MRS-ODE-3", partial(sample_taylor, order=3), 2.95, 1.2e-5),
    ("UniPC-2, predictor", partial(sample_unipc, order=2, correct=False), 2, 3.6e-5),
    ("UniPC-2", partial(sample_unipc, order=2), 3, 1.1e-6),
    ("UniPC-3", partial(sample_unipc, order=3), 4, 1.4e-8),
]


@pytest.mark.parametrize(("sample", "order", "error"), [o[1:] for o in ORDERS],
                         ids=[o[0] for o in ORDERS])  # fmt: skip
def test_order_of_convergence(
    sample: Sample, order: float, error: float, start: Tensor, exact: Tensor
) -> None:
    """S1 and S4. Errors in units of x0 and not of x_t, which at t = 0.02 is 0.98 times that."""

    def off(n: int) -> float:
        return float((sample(TWO, start, even_in_lambda(n)) - exact).square().mean().sqrt())

    slope = math.log(off(80) / off(320)) / math.log(4)
    assert slope == pytest.approx(order, abs=0.15)
    assert off(320) < 3 * error


def test_rules_that_are_the_same(start: Tensor) -> None:
    """S3."""
    sigmas = even_in_lambda(12)
    two_m = sample_dpmpp_2m(TWO, start, sigmas)
    assert_close(sample_unipc(TWO, start, sigmas, correct=False), two_m, atol=1e-12, rtol=0)
    noise = torch.randn((12, *start.shape), generator=torch.Generator().manual_seed(5),
                        dtype=torch.float64)  # fmt: skip
    by_ddim = sample_ddim(TWO, start, sigmas, eta=1.0, noise=noise)
    by_sde = sample_sde_2m(TWO, start, sigmas, generator=torch.Generator().manual_seed(5), order=1)
    assert_close(by_sde, by_ddim, atol=1e-12, rtol=0)


@pytest.mark.parametrize("rule", [sample_taylor, sample_dpmpp_2m, sample_unipc])
def test_a_centre_moves_nothing_but_itself(rule: Sample, start: Tensor) -> None:
    """MRS: the rules in x - mu, mu = 3, are the rules."""
    mu = torch.full((2,), 3.0, dtype=torch.float64)
    sigmas = even_in_lambda(10)
    moved = rule(centred(TWO, mu), start - mu, sigmas) + mu
    assert_close(moved, rule(TWO, start, sigmas), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("form", "order", "slope"), [
    ("midpoint", 1, 1.0), ("midpoint", 2, 2.0), ("taylor", 2, 2.0),
])  # fmt: skip
def test_stochastic_rules_by_exact_moments(form: str, order: int, slope: float) -> None:
    """S2: on a Gaussian every rule is affine in x and its noises; so is its variance exact."""
    s = 0.5
    oracle = gaussian(torch.zeros(1, dtype=torch.float64), s)

    def variance_error(n: int) -> float:
        def rule(x: Tensor) -> Tensor:
            return sample_sde_2m(oracle, x, even_in_lambda(n), form=form, order=order,
                                 generator=torch.Generator())  # type: ignore[arg-type] # fmt: skip

        _, variance = end_moments(rule, 0.0, math.hypot(s, HIGH), noises=n)
        return abs(variance - (s**2 + LOW**2))

    measured = math.log(variance_error(160) / variance_error(640)) / math.log(4)
    assert measured == pytest.approx(slope, abs=0.1)


def test_calls_last_step_and_halves(start: Tensor) -> None:
    """S6, S9 and S10: one call a step, x = D at level 0, a batch is its halves."""
    sigmas = torch.cat((even_in_lambda(6), torch.zeros(1, dtype=torch.float64)))
    for rule in (sample_unipc, sample_taylor, partial(sample_unipc, order=3)):
        calls: list[Tensor] = []

        def counted(x: Tensor, sigma: Tensor, /, calls: list[Tensor] = calls) -> Tensor:
            calls.append(TWO(x, sigma))
            return calls[-1]

        end = rule(counted, start, sigmas)
        assert len(calls) == 7
        assert end is calls[-1]
        parts = [rule(TWO, part, sigmas) for part in start.chunk(2)]
        assert_close(torch.cat(parts), end, atol=1e-12, rtol=0)
