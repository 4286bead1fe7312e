"""Laws of the noise level in training, and the grids of their quantiles.

Written for t = sigma / (1 + sigma), the clock of rectified flow: logit t = ln sigma. There EDM's
log-normal levels are a logit-normal law, and SD3's shift by k adds ln k to the logit.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from offdiff.diffusion.config import ModelConfig
from offdiff.diffusion.denoiser import SIGMA_MAX, LevelLaw, Levels

SIGMA_MIN = 1e-3


class TimeLaw(Protocol):
    """A law of t in [0, 1] by its quantile function."""

    def quantile(self, share: Tensor, /) -> Tensor:
        """Rising map of [0, 1] onto the law's support."""
        ...


@dataclass(frozen=True)
class Uniform:
    """T ~ U(0, high); high < 1 truncates."""

    high: float = 1.0

    def quantile(self, share: Tensor, /) -> Tensor:
        """high * share."""
        return self.high * share


@dataclass(frozen=True)
class UShape:
    """Density A cosh(A (t - 1/2)) / (2 sinh(A / 2)): both ends often (arXiv 2405.20320)."""

    amount: float = 4.0

    def quantile(self, share: Tensor, /) -> Tensor:
        """1/2 + asinh((2 share - 1) sinh(A / 2)) / A."""
        return 0.5 + ((2 * share - 1) * math.sinh(self.amount / 2)).asinh() / self.amount


@dataclass(frozen=True)
class LogitNormal:
    """logit t ~ N(mean, std^2): ln sigma of EDM (-1.2, 1.2), of SD3 (0, 1)."""

    mean: float = 0.0
    std: float = 1.0

    def quantile(self, share: Tensor, /) -> Tensor:
        """sigmoid(mean + std z)."""
        normal: Tensor = torch.special.ndtri(share)
        return (self.mean + self.std * normal).sigmoid()


@dataclass(frozen=True)
class Mode:
    """SD3's law with heavy tails and a mode in the middle; -1 <= weight <= 2 / (pi - 2)."""

    weight: float = 1.29

    def quantile(self, share: Tensor, /) -> Tensor:
        """The published map falls with its argument; taken at 1 - share it rises."""
        w = 1 - share
        return 1 - w - self.weight * ((math.pi / 2 * w).cos() ** 2 - 1 + w)


@dataclass(frozen=True)
class CosineMap:
    """The cosine schedule's levels on this clock: t = 1 - 1 / (tan(pi share / 2) + 1)."""

    def quantile(self, share: Tensor, /) -> Tensor:
        """1 - 1 / (1 + tan(pi share / 2)), written without the pole."""
        angle = math.pi / 2 * share
        return angle.sin() / (angle.sin() + angle.cos())


@dataclass(frozen=True)
class Grid:
    """One of some times, all equally often: a point, the steps of a k-step student."""

    times: tuple[float, ...]

    def quantile(self, share: Tensor, /) -> Tensor:
        """The times in rising order."""
        rising = share.new_tensor(sorted(self.times))
        return rising[(share * len(rising)).long().clamp(max=len(rising) - 1)]


@dataclass(frozen=True)
class Shifted:
    """k t / (1 + (k - 1) t): SD3's shift for longer, redundant samples."""

    law: TimeLaw
    factor: float

    def quantile(self, share: Tensor, /) -> Tensor:
        """The law's quantile, shifted."""
        t = self.law.quantile(share)
        return self.factor * t / (1 + (self.factor - 1) * t)


def draw_times(law: TimeLaw, *shape: int, generator: torch.Generator) -> Tensor:
    """Independent times of the given shape, float32 on the generator's device."""
    share = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
    return law.quantile(share).float()


@dataclass(frozen=True)
class TimeLevels:
    """Levels sigma = shift * t / (1 - t) of times by a law, some of them by the uniform law."""

    law: TimeLaw
    shift: float = 1.0
    uniform_share: float = 0.0

    def sample(self, *shape: int, generator: torch.Generator) -> Tensor:
        """Levels of the given shape, on the generator's device, all in [0.001, 80]."""
        t = draw_times(self.law, *shape, generator=generator)
        if self.uniform_share > 0:
            chosen = torch.rand(shape, generator=generator, device=t.device) < self.uniform_share
            uniform = torch.rand(shape, generator=generator, device=t.device)
            t = torch.where(chosen, uniform, t)
        return (self.shift * t / (1 - t)).clamp(SIGMA_MIN, SIGMA_MAX)


def training_levels(config: ModelConfig) -> Levels:
    """The law of levels that a configuration names."""
    if config.law == "normal" and config.uniform_share == 0:
        return LevelLaw(mean=config.level_mean + math.log(config.shift), std=config.level_std)
    laws: dict[str, TimeLaw] = {
        "normal": LogitNormal(config.level_mean, config.level_std),
        "uniform": Uniform(),
        "u-shape": UShape(),
        "mode": Mode(),
        "cosine": CosineMap(),
        "end": Grid((1.0,)),
    }
    return TimeLevels(laws[config.law], config.shift, config.uniform_share)


def quantile_grid(law: TimeLaw, n: int) -> Tensor:
    """(n + 1,) falling times Q(1 - i / n), as many steps where training was dense. On the CPU."""
    return law.quantile(1 - torch.arange(n + 1, dtype=torch.float64) / n)


def redundancy_shift(rows: Tensor) -> float:
    """sqrt(H / n_eff) of standardised windows (B, H, D): how far their levels should be shifted.

    n_eff = tr(C)^2 / tr(C^2) of every column's covariance C over the rows, averaged: the number
    of independent rows. Relative to the setting at which a law was tuned (flows spec, item 6).
    """
    offset = rows - rows.mean(0)
    covariance = torch.einsum("bhd,bkd->dhk", offset, offset) / len(rows)
    trace = covariance.diagonal(dim1=1, dim2=2).sum(-1)
    effective = trace**2 / covariance.square().sum((1, 2)).clamp_min(1e-12)
    return float((rows.shape[1] / effective[trace > 1e-9].mean()) ** 0.5)
