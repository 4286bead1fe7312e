"""In-painting with the exact denoiser of entries at levels of their own (flows spec, M1)."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from offdiff.diffusion.denoiser import Denoise
from offdiff.diffusion.multistep import sample_sde_2m, sample_taylor, sample_unipc
from offdiff.diffusion.sampling import (
    karras_sigmas,
    pinned,
    sample_ddim,
    sample_dpmpp_2m,
    sample_euler,
    sample_heun,
)

N, ROWS = 4000, torch.arange(16, dtype=torch.float64)
COVARIANCE = 0.95 ** (ROWS[:, None] - ROWS).abs()
"""An AR(1) path, H = 16."""
ENDS, GOAL = [0, 15], torch.tensor([-1.3, 1.7], dtype=torch.float64)


class Trajectory:
    """E[clean | noisy] of the path, (B, T, 1), where every row has its own level (B, T, 1)."""

    column_group = torch.zeros(1, dtype=torch.long)

    def __call__(self, x: Tensor, sigma: Tensor, /) -> Tensor:
        level = sigma[0, :, 0]  # the same in all windows
        gain = torch.linalg.solve(COVARIANCE + torch.diag(level**2), COVARIANCE)
        # Rows of level 0 are told as they are, as our denoisers do.
        return torch.where(sigma == 0, x, (x[..., 0] @ gain)[..., None])


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def w2(samples: Tensor, mean: Tensor, covariance: Tensor) -> float:
    """Between Gaussians: one of the samples' moments (N, E), the other given."""
    found, half = samples.T.cov(), root(covariance)
    apart = (samples.mean(0) - mean).square().sum()
    spread = (found + covariance - 2 * root(half @ found @ half)).trace()
    return float((apart + spread).clamp(min=0).sqrt())


@pytest.fixture(scope="module")
def conditional() -> tuple[Tensor, Tensor]:
    """Mean and covariance of the inner rows given the ends."""
    gain = COVARIANCE[1:-1, ENDS] @ torch.linalg.inv(COVARIANCE[ENDS][:, ENDS])
    return gain @ GOAL, COVARIANCE[1:-1, 1:-1] - gain @ COVARIANCE[ENDS, 1:-1]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sample", [
    sample_euler, sample_heun, sample_dpmpp_2m, sample_unipc, sample_taylor,
    partial(sample_ddim, eta=1.0, noise=torch.randn(100, N, 16, 1, generator=seeded(1)).double()),
    partial(sample_sde_2m, generator=seeded(2)),
], ids=["euler", "heun", "2m", "unipc", "taylor", "ancestral", "sde-2m"])  # fmt: skip
def test_the_free_rows_follow_the_conditional_law_and_the_pinned_stay(
    sample: Callable[[Denoise, Tensor, Tensor], Tensor], conditional: tuple[Tensor, Tensor]
) -> None:
    """M1; and S8: bit-equal after every rule."""
    values = torch.zeros(1, 16, 1, dtype=torch.float64)
    values[0, ENDS, 0] = GOAL
    which = torch.zeros(16, 1, dtype=torch.bool)
    which[ENDS] = True
    x = 20 * torch.randn(N, 16, 1, generator=seeded(0), dtype=torch.float64)
    end = sample(pinned(Trajectory(), values, which), x, karras_sigmas(100, 0.02, 20.0))
    assert torch.equal(end[:, ENDS, 0], GOAL.expand(N, 2))
    assert w2(end[:, 1:-1, 0], *conditional) < 0.15
