"""Samplers against distributions whose denoiser is known in closed form."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from offdiff.diffusion.denoiser import Denoise
from offdiff.diffusion.released import sample_released
from offdiff.diffusion.sampling import (
    Churn,
    karras_sigmas,
    low_levels,
    sample_ddim,
    sample_dpmpp_2m,
    sample_euler,
    sample_heun,
    sample_heun_churned,
    student_levels,
)


def normal(std: float = 1.0, mean: float = 0.0) -> Denoise:
    """E[x0 | x] for x0 ~ N(mean, std^2)."""

    def denoise(x: Tensor, sigma: Tensor, /) -> Tensor:
        s = sigma.view(-1, 1, 1)
        return mean + std**2 / (std**2 + s**2) * (x - mean)

    return denoise


def two_points(x: Tensor, sigma: Tensor, /) -> Tensor:
    """E[x0 | x] for x0 = -1 or 1: nowhere linear."""
    return torch.tanh(x / sigma.view(-1, 1, 1) ** 2)


def mixture(x: Tensor, sigma: Tensor, /) -> Tensor:
    """E[x0 | x] for an even mixture of N(-1, 0.25) and N(1, 0.25)."""
    v = sigma.view(-1, 1, 1) ** 2 + 0.25
    return torch.tanh(x / v) + 0.25 / v * (x - torch.tanh(x / v))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(n: int, sigma: float, seed: int = 0, width: int = 1) -> Tensor:
    return sigma * torch.randn(n, 1, width, generator=generator(seed), dtype=torch.float64)


def test_karras_levels_match_the_published_numbers() -> None:
    sigmas = karras_sigmas(256)
    assert len(sigmas) == 257
    assert (float(sigmas[0]), float(sigmas[-1])) == (pytest.approx(80.0), 0.0)
    assert float(sigmas[255]) == pytest.approx(0.002)
    levels = sigmas[:-1]
    assert int((levels <= 1).sum()) == 103
    assert int((levels <= 0.1).sum()) == 54
    churn = Churn()
    assert sum(churn.raised(s, 256) > s for s in levels.tolist()) == 191
    assert churn.raised(1.0, 256) == pytest.approx(1.3125)


def test_levels_for_few_steps() -> None:
    """From 1.5 K to 0.4 / K from the data's Gaussian; after noise itself from (K - 1) / 2."""
    assert low_levels(2).tolist() == pytest.approx([3.0, 0.2, 0.0])
    assert low_levels(3).tolist() == pytest.approx([4.5, (4.5 * 0.4 / 3) ** 0.5, 0.4 / 3, 0.0])
    assert student_levels(1).tolist() == [80.0, 0.0]
    assert student_levels(2).tolist() == pytest.approx([80.0, 0.5, 0.0])
    assert student_levels(4).tolist() == pytest.approx([80.0, 1.5, 0.15**0.5, 0.1, 0.0])


def test_karras_levels_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="sigma_min"):
        karras_sigmas(8, sigma_min=2.0, sigma_max=1.0)


@pytest.mark.parametrize("sample", [sample_euler, sample_heun, sample_dpmpp_2m, sample_ddim])
def test_standard_normal_data_shrink_the_noise_to_unit_length(
    sample: Callable[..., Tensor],
) -> None:
    x = noise(64, 80.0)
    found = sample(normal(), x, karras_sigmas(2_000))
    assert_close(found, x / math.sqrt(1 + 80.0**2), rtol=3e-3, atol=0)


@pytest.mark.parametrize(
    ("sample", "order"), [(sample_euler, 1), (sample_heun, 2), (sample_dpmpp_2m, 2)]
)
def test_order_of_convergence(sample: Callable[..., Tensor], order: int) -> None:
    # Down to a level above 0, where every step is of the method's full order; the exact answer of
    # the ODE by many Heun steps. Levels smooth in the index, so that halving steps halves all.
    x = noise(64, 3.0)

    def levels(n: int) -> Tensor:
        return torch.linspace(math.log(3.0), math.log(0.3), n + 1, dtype=torch.float64).exp()

    exact = sample_heun(mixture, x, levels(4_096))
    errors = [float((sample(mixture, x, levels(n)) - exact).abs().max()) for n in (32, 64, 128)]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(abs(found - order) < 0.25 for found in orders), orders


def test_heun_ends_on_the_points_that_the_data_are_made_of() -> None:
    found = sample_heun(two_points, noise(256, 80.0), karras_sigmas(32))
    assert_close(found.abs(), torch.ones_like(found), atol=1e-6, rtol=0)


def test_ddim_without_noise_is_euler_and_with_noise_keeps_the_variance() -> None:
    x, sigmas = noise(8, 80.0), karras_sigmas(12)
    assert_close(sample_ddim(mixture, x, sigmas), sample_euler(mixture, x, sigmas))
    found = sample_ddim(
        normal(0.5), noise(20_000, 80.0), karras_sigmas(1_000), eta=1.0, generator=generator(1)
    )
    assert float(found.std()) == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("std", [1.0, 0.3])
def test_heun_samples_have_the_data_spread(std: float) -> None:
    # The denoiser is linear, and so is the sampler: one number tells the spread of all samples.
    x = torch.full((1, 1, 1), 80.0, dtype=torch.float64)
    errors = [float(sample_heun(normal(std), x, karras_sigmas(n))) / std - 1 for n in (32, 64)]
    assert abs(errors[0]) < 0.025
    assert abs(errors[1]) < abs(errors[0]) / 3


# Standard deviation of samples of N(0, 1) data: PGD spec, table of section 6.
TABLE = [(256, 1.007, 1.028), (128, 1.007, 1.057), (64, 1.024, 1.132), (32, 1.045, 1.342),
         (16, 1.139, 2.086)]  # fmt: skip


@pytest.mark.parametrize(("steps", "reference", "released"), TABLE)
def test_churned_samplers_reproduce_the_table(
    steps: int, reference: float, released: float
) -> None:
    x, sigmas = noise(100_000, 80.0), karras_sigmas(steps)
    found = sample_heun_churned(normal(), x, sigmas, Churn(), generator=generator(1))
    assert float(found.std()) == pytest.approx(reference, rel=0.01)
    found = sample_released(normal(), x, sigmas, generator=generator(1))
    assert float(found.std()) == pytest.approx(released, rel=0.01)


def test_edits_are_made_before_every_step() -> None:
    seen: list[float] = []

    def edit(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(float(sigma[0]))
        return x

    sigmas = karras_sigmas(5)
    sample_heun(normal(), noise(2, 80.0), sigmas, edit=edit)
    assert seen == pytest.approx(sigmas[:-1].tolist())
