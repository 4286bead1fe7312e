"""Laws of training levels against their densities (flows spec, T tests)."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from offdiff.diffusion.denoiser import LevelLaw
from offdiff.diffusion.laws import (
    CosineMap,
    Grid,
    LogitNormal,
    Mode,
    Shifted,
    TimeLaw,
    Uniform,
    UShape,
    draw_times,
    quantile_grid,
    redundancy_shift,
)


def draws(law: TimeLaw, n: int = 20_000) -> Tensor:
    return draw_times(law, n, generator=torch.Generator().manual_seed(0)).double()


def distance(sample: Tensor, cumulative: Tensor) -> float:
    """Kolmogorov and Smirnov's, of a sorted sample and the law's distribution function there."""
    rank = torch.arange(1, len(sample) + 1, dtype=torch.float64) / len(sample)
    return float((cumulative - rank).abs().max())


def test_u_shape() -> None:
    """T1: distribution function by integration of the density."""
    t = draws(UShape(4.0)).sort().values
    cumulative = 0.5 + (4 * (t - 0.5)).sinh() / (2 * math.sinh(2))
    assert distance(t, cumulative) < 0.015
    assert float(t.var()) == pytest.approx(0.11567, rel=0.02)
    outer = ((t < 0.1) | (t > 0.9)).double().mean()
    assert float(outer) == pytest.approx(0.345, abs=0.01)


def test_cosine_map() -> None:
    t = draws(CosineMap()).sort().values
    grid = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    density = 2 / (math.pi - 2 * math.pi * grid + 2 * math.pi * grid**2)
    cumulative = torch.cumulative_trapezoid(density, grid)
    index = torch.searchsorted(grid, t).clamp(1, len(cumulative)) - 1
    assert distance(t, cumulative[index]) < 0.015


def test_shift_adds_to_the_logit() -> None:
    """T2."""
    law, n = LogitNormal(0.3, 1.1), 200_000
    plain, shifted = (draws(one, n).logit() for one in (law, Shifted(law, 3.0)))
    assert float(shifted.mean() - plain.mean()) == pytest.approx(math.log(3), abs=0.01)


def test_logit_normal_is_edm() -> None:
    """T3: ln sigma ~ N(-1.2, 1.2^2), whichever of the two draws it."""
    sigma = LevelLaw().sample(20_000, generator=torch.Generator().manual_seed(1)).double()
    for levels in (sigma.log(), draws(LogitNormal(-1.2, 1.2)).logit()):
        ordered = levels.sort().values
        assert distance(ordered, torch.special.ndtr((ordered + 1.2) / 1.2)) < 0.015


@pytest.mark.parametrize("law", [Uniform(), UShape(), LogitNormal(), Mode(), CosineMap(),
                                 Shifted(UShape(), 3.0), Uniform(0.4)], ids=str)  # fmt: skip
def test_quantiles_rise_and_grids_fall(law: TimeLaw) -> None:
    """T4."""
    grid = quantile_grid(law, 10)
    assert grid.shape == (11,)
    assert bool((grid.diff() < 0).all())
    assert float(grid[-1]) == pytest.approx(0, abs=1e-12)
    assert float(grid[0]) == pytest.approx(0.4 if law == Uniform(0.4) else 1, abs=1e-12)


def test_a_grid_is_drawn_evenly() -> None:
    t = draws(Grid((0.9, 0.3, 0.6)))
    values, counts = t.unique(return_counts=True)
    assert_close(values, torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64), atol=1e-6, rtol=0)
    assert bool((counts - 20_000 / 3).abs().max() < 300)


@pytest.mark.parametrize(("rows", "effective"), [(16, 1.6), (32, 2.3), (64, 3.9)])
def test_shift_of_smooth_windows(rows: int, effective: float) -> None:
    """AR(1), rho 0.95: 3.2, 3.7, 4.1 and not sqrt(H)."""
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(rows, dtype=torch.float64)
    root = torch.linalg.cholesky(0.95 ** (index[:, None] - index).abs())
    noise = torch.randn(20_000, rows, 2, generator=generator, dtype=torch.float64)
    windows = torch.einsum("hk,bkd->bhd", root, noise)
    assert redundancy_shift(windows) == pytest.approx(math.sqrt(rows / effective), rel=0.03)
