"""Exponential multistep rules in EDM's coordinates: one call per step, orders one to four.

With x = clean + sigma noise, lambda = -ln sigma and h the step of lambda, all are
x' = e^-h x + (1 - e^-h) D + corrections by earlier estimates D: the same on every path, and for
mean-reverting diffusion (arXiv 2502.07856), whose solvers these are in x - mu.
Levels fall; a last level of 0 gives the estimate itself.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from offdiff.diffusion.denoiser import Denoise, level_of_all

Form = Literal["midpoint", "taylor"]


def sample_unipc(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, order: int = 2, correct: bool = True
) -> Tensor:
    """UniPC (arXiv 2302.04867), data prediction: order `order` + 1 with the corrector.

    The corrector uses the call at the predicted point, which is the next step's: one call a step.
    order: 1, 2 or 3; the first steps have fewer estimates to use.
    """
    levels = sigmas.tolist()
    known: list[tuple[float, Tensor]] = []  # (lambda, D), the newest last
    base_x = x
    for i, (now, following) in enumerate(pairwise(levels)):
        clean = denoise(x, level_of_all(x, now))
        if correct and i > 0:
            # x was only predicted: what its call says corrects it, before the next step begins.
            used = known[-min(order, i) :]
            x = _unipc(base_x, used, start_level=levels[i - 1], level=now, found=clean)
        known.append((-math.log(now), clean))
        if following == 0:
            return clean
        base_x = x
        used = known[-min(order, len(known)) :]
        x = _unipc(x, used, start_level=now, level=following, found=None)
    return x


def _unipc(
    x: Tensor,
    known: Sequence[tuple[float, Tensor]],
    *,
    start_level: float,
    level: float,
    found: Tensor | None,
) -> Tensor:
    """One step from `start_level` to `level` by the estimates known; with `found`, corrected.

    known: the last one at `start_level`. found: the estimate at `level`.
    """
    here, clean = known[-1]
    h = math.log(start_level / level)
    shrink = math.expm1(-h)
    base = (level / start_level) * x - shrink * clean
    nodes = [(at - here) / h for at, _ in reversed(known[:-1])]
    differences = [
        (past - clean) / r for r, (_, past) in zip(nodes, reversed(known[:-1]), strict=True)
    ]
    if found is not None:
        nodes.append(1.0)
        differences.append(found - clean)
    if not nodes:
        return base
    weights = _unipc_weights(nodes, h)
    for weight, difference in zip(weights, differences, strict=True):
        base = base - shrink * weight * difference
    return base


def _unipc_weights(nodes: Sequence[float], h: float) -> list[float]:
    """rho of sum_k rho_k r_k^(j-1) = j! g_j / B; 1/2 for a single node, as the authors take it."""
    if len(nodes) == 1:
        return [0.5]
    r = torch.tensor(nodes, dtype=torch.float64)
    shrink, g = math.expm1(-h), math.expm1(-h) / -h - 1
    right = []
    for j in range(1, len(nodes) + 1):
        right.append(math.factorial(j) * g / shrink)
        g = g / -h - 1 / math.factorial(j + 1)
    matrix = torch.stack([r ** (j - 1) for j in range(1, len(nodes) + 1)])
    weights: list[float] = torch.linalg.solve(
        matrix, torch.tensor(right, dtype=torch.float64)
    ).tolist()
    return weights


def sample_taylor(denoise: Denoise, x: Tensor, sigmas: Tensor, *, order: int = 2) -> Tensor:
    """MRS-ODE of order 2 or 3, data prediction: Taylor coefficients where 2M has a midpoint.

    Order 3 begins with lower orders: in the limit second order over all, third at usual steps.
    """
    known: list[tuple[float, Tensor]] = []
    for now, following in pairwise(sigmas.tolist()):
        clean = denoise(x, level_of_all(x, now))
        if following == 0:
            return clean
        known = [*known, (-math.log(now), clean)][-order:]
        h = math.log(now / following)
        phi_1 = math.expm1(-h)
        phi_2 = phi_1 / h + 1
        x = (following / now) * x - phi_1 * clean
        if len(known) == 2:
            x = x + phi_2 * _slope(known, h)
        elif len(known) == 3:
            phi_3 = phi_2 / h - 0.5
            r0, r1 = ((known[-1][0] - known[-2][0]) / h, (known[-2][0] - known[-3][0]) / h)
            first = (clean - known[-2][1]) / r0
            earlier = (known[-2][1] - known[-3][1]) / r1
            second = 2 * (first - earlier) / (r0 + r1)
            x = x + phi_2 * (first + r0 * second / 2) - phi_3 * second
    return x


def sample_noise_2m(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """The second-order multistep rule in the noise estimate; last level above 0."""
    before: tuple[float, Tensor] | None = None
    for now, following in pairwise(sigmas.tolist()):
        noise = (x - denoise(x, level_of_all(x, now))) / now
        h = math.log(now / following)
        x = x + (following - now) * noise
        if before is not None:
            r = math.log(before[0] / now) / h
            x = x - following * (math.expm1(h) / h - 1) * (noise - before[1]) / r
        before = (now, noise)
    return x


def sample_sde_2m(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generator: torch.Generator,
    form: Form = "midpoint",
    order: int = 2,
) -> Tensor:
    """SDE-DPM-Solver++(2M) (midpoint), MRS-SDE-2 (taylor); with order 1 both are DDPM's step."""
    before: tuple[float, Tensor] | None = None
    for now, following in pairwise(sigmas.tolist()):
        clean = denoise(x, level_of_all(x, now))
        if following == 0:
            return clean
        h = math.log(now / following)
        gone = -math.expm1(-2 * h)
        x = (following / now) * math.exp(-h) * x + gone * clean
        if before is not None and order == 2:
            r = math.log(before[0] / now) / h
            share = gone / 2 if form == "midpoint" else 1 - gone / (2 * h)
            x = x + share * (clean - before[1]) / r
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        x = x + following * gone**0.5 * noise
        before = (now, clean)
    return x


def _slope(known: Sequence[tuple[float, Tensor]], h: float) -> Tensor:
    """First divided difference per step h of lambda."""
    (before, past), (here, clean) = known[-2:]
    return (clean - past) / ((here - before) / h)
