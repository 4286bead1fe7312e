"""Mean and variance of what a sampler makes of a Gaussian, exactly: no draws, so no chance."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


def end_moments(
    sample: Callable[[Tensor], Tensor], mean: float, std: float, noises: int
) -> tuple[float, float]:
    """Mean and variance of sample(x), x ~ N(mean, std^2), of a rule affine in x and its noises.

    sample: (B, 1) -> (B, 1), in float64, drawing with torch.randn at most `noises` times. Row 0
    starts at the mean without noise, row 1 one std above it, row 2 + k gets noise k alone, of 1.
    """
    drawn = 0

    def unit(shape: tuple[int, ...], **_: object) -> Tensor:
        nonlocal drawn
        noise = torch.zeros(shape, dtype=torch.float64)
        noise[2 + drawn] = 1
        drawn += 1
        return noise

    x = torch.full((2 + noises, 1), mean, dtype=torch.float64)
    x[1] += std
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", unit)
        end = sample(x)[:, 0]
    return float(end[0]), float((end[1:] - end[0]).square().sum())
