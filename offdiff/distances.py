"""Distances between samples. Dimension letters: N windows, M points, T rows, D columns."""

import math

import numpy as np
import torch
from torch import Tensor

CHUNK = 4_096
"""Points that are compared at a time."""


def wasserstein(a: Tensor, b: Tensor) -> float | None:
    """1-Wasserstein distance of samples (M, D) and (M', D) by quantiles, mean over D."""
    if not len(a) or not len(b):
        return None
    at = (np.arange(1000) + 0.5) / 1000
    first, second = (np.quantile(sample.double().numpy(), at, axis=0) for sample in (a, b))
    return float(np.abs(first - second).mean())


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'| of windows (N, T, D) in standard deviations.

    Distances are root mean squares over the entries; pairs of a sample with itself do not count,
    so that equal laws give 0 on average, and less half of the time.
    """
    size = a[0].numel() ** 0.5
    a, b = a.flatten(1) / size, b.flatten(1) / size

    def within(x: Tensor) -> float:
        return float(torch.cdist(x, x).sum() / (len(x) * (len(x) - 1)))

    return 2 * float(torch.cdist(a, b).mean()) - within(a) - within(b)


def to_nearest(points: Tensor, references: Tensor) -> float:
    """Mean Euclidean distance to the nearest reference."""
    best = torch.full((len(points),), math.inf)
    for chunk in references.split(CHUNK):
        nearest = chunk[torch.cdist(points, chunk).argmin(1)]
        # Once more without cdist's cancellation: copies are at 0.
        best = torch.minimum(best, (points - nearest).norm(dim=1))
    return float(best.mean())
