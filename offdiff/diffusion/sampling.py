"""Samplers as plain functions of a denoiser, a start and falling noise levels.

Every sampler starts from whatever `x` is given at `sigmas[0]`: noise generates, a proposal plus
some noise refines. Coordinates are EDM's, x = clean + sigma * noise; other paths map into them.
Dimension letters: B windows, T rows, D columns.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from offdiff.diffusion.denoiser import SIGMA_MAX, Denoise, level_of_all

Edit = Callable[[Tensor, Tensor], Tensor]
"""(noisy window (B, T, D), sigma (B,)) -> moved window, before a step is taken."""


def karras_sigmas(
    n: int, sigma_min: float = 0.002, sigma_max: float = SIGMA_MAX, rho: float = 7.0
) -> Tensor:
    """(n + 1,) falling levels, the last one 0 (EDM equation 5). On the CPU: it plans the steps.

    Raises ValueError unless n >= 1 and 0 < sigma_min <= sigma_max.
    """
    if n < 1 or not 0 < sigma_min <= sigma_max:
        raise ValueError(f"need n >= 1 and 0 < sigma_min <= sigma_max, got {n}, {sigma_min}")
    ramp = torch.arange(n, dtype=torch.float64) / max(n - 1, 1)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _to_zero((high + ramp * (low - high)) ** rho)


def geometric_levels(n: int, highest: float, lowest: float) -> Tensor:
    """(n,) levels in equal ratios, n >= 1; a single one is the highest."""
    return torch.logspace(math.log10(highest), math.log10(lowest), n, dtype=torch.float64)


def low_levels(steps: int, highest: float | None = None) -> Tensor:
    """(steps + 1,) falling levels for few steps K that do not begin in pure noise; the last one 0.

    From 1.5 K, if nothing else is given, to 0.4 / K in equal ratios: fewer calls cover
    less. Chosen by hand on hopper-medium-zoo and halfcheetah-medium-zoo, without guidance, and seen
    to do for guided windows too. Data far from a Gaussian may want levels of their own
    (`step_search`).
    """
    return _to_zero(geometric_levels(steps, highest or 1.5 * steps, 0.4 / steps))


def student_levels(steps: int) -> Tensor:
    """(steps + 1,) falling levels for K steps of a reflowed or distilled model; the last one 0.

    The first step leaves pure noise, the others mend what it came to, from (K - 1) / 2 to 0.4 / K
    in equal ratios. Chosen as `low_levels` were.
    """
    first = torch.tensor([SIGMA_MAX], dtype=torch.float64)
    if steps == 1:
        return _to_zero(first)
    others = geometric_levels(steps - 1, 0.5 * (steps - 1), 0.4 / steps)
    return _to_zero(torch.cat((first, others)))


def sample_euler(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, edit: Edit | None = None
) -> Tensor:
    """Euler's method for the probability-flow ODE; first order, one call per level.

    In these coordinates it is DDIM without added noise.
    """
    for now, following in _steps(sigmas):
        x = _edited(x, now, edit)
        x = x + (following - now) * _slope(denoise, x, now)
    return x


def sample_heun(denoise: Denoise, x: Tensor, sigmas: Tensor, *, edit: Edit | None = None) -> Tensor:
    """Heun's method (EDM algorithm 1); second order, two calls per level but the last."""
    for now, following in _steps(sigmas):
        x = _edited(x, now, edit)
        slope = _slope(denoise, x, now)
        ahead = x + (following - now) * slope
        if following == 0:  # the slope is not defined there
            x = ahead
        else:
            x = x + (following - now) * (slope + _slope(denoise, ahead, following)) / 2
    return x


@dataclass(frozen=True, kw_only=True)
class Churn:
    """Noise added before each step (EDM algorithm 2): corrects errors of earlier steps."""

    amount: float = 80.0
    low: float = 0.05
    high: float = 50.0
    inflation: float = 1.003
    """Standard deviation of the added noise, against the loss of detail."""

    def raised(self, sigma: float, steps: int) -> float:
        """The level to which a level is raised."""
        gamma = min(self.amount / steps, 2**0.5 - 1) if self.low <= sigma <= self.high else 0.0
        return sigma * (1 + gamma)


def sample_heun_churned(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    churn: Churn,
    *,
    generator: torch.Generator,
    edit: Edit | None = None,
) -> Tensor:
    """Heun's method with churn (EDM algorithm 2): predictor and corrector start from one point.

    (PGD's code lets the predictor start from the point before the noise was added; that is
    `offdiff.diffusion.released`.)
    """
    for now, following in _steps(sigmas):
        x = _edited(x, now, edit)
        raised = churn.raised(now, len(sigmas) - 1)
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        x = x + (raised**2 - now**2) ** 0.5 * churn.inflation * noise
        slope = _slope(denoise, x, raised)
        ahead = x + (following - raised) * slope
        if following == 0:
            x = ahead
        else:
            x = x + (following - raised) * (slope + _slope(denoise, ahead, following)) / 2
    return x


def sample_ddim(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    eta: float = 0.0,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    edit: Edit | None = None,
) -> Tensor:
    """DDIM (arXiv 2010.02502, equation 12) for sigma levels; first order, one call per level.

    eta: in [0, 1], 0 deterministic, 1 ancestral sampling (DDPM's), which needs a generator.
    temperature: multiplies the standard deviation of the noise that is added on the way.
    noise: standard normal numbers (steps - 1, *x.shape) to take instead of a generator's.
    """
    for step, (now, following) in enumerate(_steps(sigmas)):
        x = _edited(x, now, edit)
        clean = denoise(x, level_of_all(x, now))
        noise_std = eta * following * (1 - (following / now) ** 2) ** 0.5
        kept = (following**2 - noise_std**2) ** 0.5
        x = clean + kept / now * (x - clean)
        if noise_std > 0:
            added = (
                torch.randn(x.shape, generator=generator, device=x.device)
                if noise is None
                else noise[step]
            )
            x = x + temperature * noise_std * added
    return x


def sample_dpmpp_2m(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, edit: Edit | None = None
) -> Tensor:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2); second order, one call per level.

    The last step, to level 0, is first order: there the step in log-SNR is infinite.
    """
    before: Tensor | None = None
    step_before = 0.0
    for now, following in _steps(sigmas):
        x = _edited(x, now, edit)
        clean = denoise(x, level_of_all(x, now))
        if following == 0:
            return clean
        step = float(torch.log(torch.tensor(now / following, dtype=torch.float64)))
        estimate = clean
        if before is not None:
            estimate = clean + step / (2 * step_before) * (clean - before)
        x = following / now * x + (1 - following / now) * estimate
        before, step_before = clean, step
    return x


def pinned(denoise: Denoise, values: Tensor, which: Tensor) -> Denoise:
    """The denoiser given that some entries are known: in-painting.

    values: (B, T, D) clean rows; which: (T, G) or (B, T, G) bool, the known groups. The denoiser
    must have been trained with levels per group, and is then exact: known entries have level 0.
    """

    def conditional(x: Tensor, sigma: Tensor, /) -> Tensor:
        levels = sigma.view(-1, 1, 1) * ~which
        known = (levels == 0)[..., _column_groups(denoise)]
        return denoise(torch.where(known, values, x), levels)

    return conditional


def _column_groups(denoise: Denoise) -> Tensor:
    groups = getattr(denoise, "column_group", None)
    if not isinstance(groups, Tensor):
        raise ValueError("pin the denoiser itself, before guidance is put around it")
    return groups


def _to_zero(levels: Tensor) -> Tensor:
    """The levels and a last one of 0, where the clean window is."""
    return torch.cat((levels, levels.new_zeros(1)))


def _steps(sigmas: Tensor) -> list[tuple[float, float]]:
    """Pairs of neighbouring levels as Python numbers: the loop waits for no device."""
    return list(pairwise(sigmas.tolist()))


def _slope(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    return (x - denoise(x, level_of_all(x, sigma))) / sigma


def _edited(x: Tensor, sigma: float, edit: Edit | None) -> Tensor:
    return x if edit is None else edit(x, level_of_all(x, sigma))
