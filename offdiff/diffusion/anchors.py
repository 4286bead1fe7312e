"""Sampling that starts near anchors: the truncated half of DiffusionDrive (arXiv 2411.15139).

The paper trains a decoder that refines k-means centres under tiny noise and scores them. Here an
ordinary denoiser is run from noisy anchors: that needs t_start of 0.3 to 0.6, as from lower down
the ODE neither leaves the anchor nor spreads to the data's width. The paper's training and the head
that scores anchors are `offdiff.diffusion.anchored`.

Dimension letters: N points or samples, K anchors; E, the shape of a point, is any.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from offdiff.core.errors import InputError, unknown_name
from offdiff.diffusion.paths import Cosine, Path, sigma_at

Weights = Literal["freq", "all"]
"""freq: anchors as often as the data; all: every one equally often, for plans to choose from."""


@dataclass(frozen=True)
class Anchors:
    """Cluster centres, in the coordinates that the denoiser was trained in."""

    centres: Tensor
    """(K, *E)"""
    frequencies: Tensor
    """(K,) shares of the points, that sum to 1"""


def kmeans(
    points: Tensor,
    k: int,
    *,
    restarts: int = 8,
    rounds: int = 100,
    generator: torch.Generator,
) -> Anchors:
    """The best of some runs of Lloyd's algorithm from k-means++ starts; points (N, *E).

    One poor run can leave a rare mode without an anchor, and truncated sampling cannot bring it
    back: hence the restarts, of which the one with the least squared distance wins.
    generator: on the points' device.
    """
    if not 1 <= k <= len(points):
        raise InputError(f"k-means needs 1 <= k <= {len(points)} (the points), got k = {k}")
    if restarts < 1 or rounds < 1:
        raise InputError(f"k-means needs restarts >= 1 and rounds >= 1, got {restarts}, {rounds}")
    flat = points.flatten(1)
    if not flat.isfinite().all():
        raise InputError("k-means met infinite numbers or NaN; clean the points first")
    runs = [_lloyd(flat, _plus_plus(flat, k, generator), rounds) for _ in range(restarts)]
    _, centres, counts = min(runs, key=lambda run: run[0])
    return Anchors(centres.view(k, *points.shape[1:]), counts / len(points))


def truncated_sigmas(t_start: float, steps: int, clock: Path = Cosine()) -> Tensor:  # noqa: B008
    """(steps + 1,) falling levels for any sampler, evenly spaced in time from t_start to 0."""
    if steps < 1 or not 0 < t_start <= 1:
        raise InputError(f"need steps >= 1 and 0 < t_start <= 1, got {steps} and {t_start}")
    return sigma_at(clock, t_start * torch.linspace(1, 0, steps + 1, dtype=torch.float64))


def anchored_start(
    anchors: Anchors,
    n: int,
    sigma: float,
    *,
    weights: Weights = "freq",
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Anchors under noise of one level, to sample from: x (n, *E), and whose each is (n,).

    sigma: the first of truncated_sigmas, whose sampler takes x as it is.
    weights: "freq" for data like the training data; "all" takes the anchors in turn.
    generator: on the anchors' device.
    """
    if n < 1 or sigma < 0:
        raise InputError(f"need n >= 1 and sigma >= 0, got {n} and {sigma}")
    centres = anchors.centres
    if weights == "freq":
        which = torch.multinomial(anchors.frequencies, n, replacement=True, generator=generator)
    elif weights == "all":
        which = torch.arange(n, device=centres.device) % len(centres)
    else:
        raise unknown_name("weights of anchors", weights, get_args(Weights))
    noise = torch.randn(
        (n, *centres.shape[1:]), generator=generator, dtype=centres.dtype, device=centres.device
    )
    return centres[which] + sigma * noise, which


def _plus_plus(points: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """(k, E) points, each drawn in proportion to its squared distance from those before."""
    first = torch.randint(len(points), (1,), generator=generator, device=points.device)
    chosen = points[first]
    distance = (points - chosen).square().sum(1)
    while len(chosen) < k:
        # A uniform number's place among the sums; multinomial takes no more than 2^24 points.
        # When all distances are 0 there are fewer different points than centres: any will do.
        sums = distance.double().cumsum(0)
        draw = torch.rand(1, generator=generator, device=points.device, dtype=sums.dtype)
        place = torch.searchsorted(sums, draw * sums[-1], right=True).clamp(max=len(points) - 1)
        chosen = torch.cat((chosen, points[place]))
        distance = torch.minimum(distance, (points - chosen[-1]).square().sum(1))
    return chosen


def _lloyd(points: Tensor, centres: Tensor, rounds: int) -> tuple[float, Tensor, Tensor]:
    """Mean squared distance, centres (K, E) and counts (K,), all of the last assignment."""
    for _ in range(rounds):
        _, nearest = _assign(points, centres)
        counts = nearest.bincount(minlength=len(centres)).to(points.dtype)
        sums = torch.zeros_like(centres).index_add(0, nearest, points)
        # A centre that lost all its points stays where it is.
        moved = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    distance, nearest = _assign(points, centres)
    counts = nearest.bincount(minlength=len(centres)).to(points.dtype)
    return float(distance.mean()), centres, counts


def _assign(points: Tensor, centres: Tensor, at_once: int = 65536) -> tuple[Tensor, Tensor]:
    """Squared distance to the nearest centre and its number, both (N,), a block at a time."""
    found = [torch.cdist(block, centres).min(1) for block in points.split(at_once)]
    distances, numbers = zip(*found, strict=True)
    return torch.cat(distances).square(), torch.cat(numbers)
