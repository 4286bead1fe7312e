"""Times in (0, 1] as names of EDM's noise levels: t = 0 data, t = 1 noise.

A one-sided path x_t = a(t) clean + b(t) noise is EDM's at x_t / a and sigma = b / a.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from offdiff.core.errors import unknown_name
from offdiff.diffusion.denoiser import SIGMA_MAX

Clock = Literal["vp_cos", "rf"]
"""vp_cos: a = cos(pi t / 2), b = sin(pi t / 2); rf: a = 1 - t, b = t."""


def sigma_at(t: Tensor, clock: Clock, sigma_max: float = SIGMA_MAX) -> Tensor:
    """Levels of times, the same shape; no more than sigma_max, as t = 1 is an infinite one."""
    _check(clock)
    sigma = torch.tan(math.pi / 2 * t) if clock == "vp_cos" else t / (1 - t)
    # In floats the tangent of pi / 2 may be a huge number of either sign.
    return torch.where(t < 1, sigma, math.inf).clamp(max=sigma_max)


def time_at(sigma: Tensor, clock: Clock) -> Tensor:
    """Times of levels, the same shape."""
    _check(clock)
    return torch.atan(sigma) * 2 / math.pi if clock == "vp_cos" else sigma / (1 + sigma)


def _check(clock: str) -> None:
    if clock not in get_args(Clock):
        raise unknown_name("clock", clock, get_args(Clock))
