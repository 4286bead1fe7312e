"""Solvers in a path's own time: Euler, Heun, midpoint, the SDE family; forwards and backwards.

Unlike the exponential rules of `sampling` and `multistep`, which are the same on every path, these
follow the velocity v = a' x0 + b' eps, so path and grid matter. Times may fall (data are made) or
rise (data are turned into their noise, `invert`). Dimension letters: B samples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from offdiff.diffusion.denoiser import Denoise, level_of_all
from offdiff.diffusion.paths import Path, RectifiedFlow

Noisiness = Callable[[float], float]
"""e(t) >= 0 of the SDE family: dx = [v - e score] dt + sqrt(2 e) dW has the same marginals."""


@dataclass(frozen=True)
class OnPath:
    """A denoiser seen from a path."""

    denoise: Denoise
    path: Path

    def clean(self, x: Tensor, t: float) -> Tensor:
        """Expected x0."""
        a, b, _, _ = self._numbers(t)
        sigma = level_of_all(x, b / a)
        return self.denoise(x / a, sigma)

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """Expected a' x0 + b' eps; needs b(t) > 0."""
        a, b, a_dot, b_dot = self._numbers(t)
        clean = self.clean(x, t)
        return a_dot * clean + b_dot * (x - a * clean) / b

    def score(self, velocity: Tensor, x: Tensor, t: float) -> Tensor:
        """Gradient of the log-density, which a one-sided path's velocity determines."""
        a, b, a_dot, b_dot = self._numbers(t)
        return -(a * velocity - a_dot * x) / (b * (a * b_dot - a_dot * b))

    def ends(self, t: float) -> bool:
        """Whether nothing of the noise is left."""
        return self._numbers(t)[1] == 0

    def _numbers(self, t: float) -> tuple[float, float, float, float]:
        at, path = torch.tensor(t, dtype=torch.float64), self.path
        return float(path.a(at)), float(path.b(at)), float(path.a_dot(at)), float(path.b_dot(at))


def solve_euler(model: OnPath, x: Tensor, times: Tensor) -> Tensor:
    """Euler's method; first order, one call per step. On the rf path it is DDIM."""
    for now, following in _steps(times):
        if model.ends(following):
            return model.clean(x, now)
        x = x + (following - now) * model.velocity(x, now)
    return x


def solve_heun(model: OnPath, x: Tensor, times: Tensor) -> Tensor:
    """Heun's method in t; second order, two calls per step but the last."""
    for now, following in _steps(times):
        if model.ends(following):
            return model.clean(x, now)
        slope = model.velocity(x, now)
        ahead = x + (following - now) * slope
        x = x + (following - now) * (slope + model.velocity(ahead, following)) / 2
    return x


def solve_midpoint(model: OnPath, x: Tensor, times: Tensor) -> Tensor:
    """The explicit midpoint rule; second order, two calls per step but the last.

    RF-Solver (arXiv 2411.04746) is this rule: its Taylor step with a finite difference at the half
    step is x + h v(middle).
    """
    for now, following in _steps(times):
        if model.ends(following):
            return model.clean(x, now)
        half = (following - now) / 2
        middle = x + half * model.velocity(x, now)
        x = x + 2 * half * model.velocity(middle, now + half)
    return x


def solve_anchored(model: OnPath, x: Tensor, times: Tensor) -> Tensor:
    """x' = a' D + b' eps with the noise that sampling started from (arXiv 2405.20320's rule).

    For nearly straight flows only: no error is carried along, and curved paths are not followed.
    times[0] must be where the data have all but vanished: x is taken for b eps there.
    """
    noise = x / float(model.path.b(times[0]))
    for now, following in _steps(times):
        clean = model.clean(x, now)
        at = torch.tensor(following, dtype=torch.float64)
        x = float(model.path.a(at)) * clean + float(model.path.b(at)) * noise
    return x


def solve_euler_maruyama(
    model: OnPath,
    x: Tensor,
    times: Tensor,
    noisiness: Noisiness,
    *,
    generator: torch.Generator,
) -> Tensor:
    """x' = x + (t - t') (-v + e score) + sqrt(2 e (t - t')) z; first order, falling times."""
    for now, following in _steps(times):
        if model.ends(following):
            return model.clean(x, now)
        step, e = now - following, noisiness(now)
        velocity = model.velocity(x, now)
        drift = -velocity + e * model.score(velocity, x, now)
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        x = x + step * drift + (2 * e * step) ** 0.5 * noise
    return x


LOW, HIGH = 1e-3, 0.9875
"""Times between which trajectories are inverted; HIGH is EDM's largest level, where models end."""


def invert(
    denoise: Denoise,
    clean: Tensor,
    *,
    steps: int = 10,
    low: float = LOW,
    high: float = HIGH,
    noise: Tensor | None = None,
) -> Tensor:
    """RF-Solver inversion: the point at t = high of the rf path that leads to the clean samples.

    `restore` goes back. Euler's rule would return noise of half its variance at five steps.
    noise: standard normal numbers that make the samples those of level `low`, which they are taken
    for. Without, directions in which data do not vary are turned into no noise at all.
    """
    if noise is not None:
        clean = (1 - low) * clean + low * noise
    times = torch.linspace(low, high, steps + 1, dtype=torch.float64)
    return solve_midpoint(OnPath(denoise, RectifiedFlow()), clean, times)


def restore(
    denoise: Denoise, noisy: Tensor, *, steps: int = 10, low: float = LOW, high: float = HIGH
) -> Tensor:
    """The way back from `invert`; with another denoiser (a new goal, a policy) an edited sample."""
    times = torch.linspace(high, low, steps + 1, dtype=torch.float64)
    return solve_midpoint(OnPath(denoise, RectifiedFlow()), noisy, times)


def _steps(times: Tensor) -> list[tuple[float, float]]:
    return list(pairwise(times.tolist()))
