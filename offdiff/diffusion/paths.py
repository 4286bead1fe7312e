"""Paths x_t = a(t) x0 + b(t) eps from data (t = 0) to noise (t = 1), and the targets of networks.

In the coordinates y = x / a, sigma = b / a every path is EDM's y = x0 + sigma eps: a path is a
clock and a scale, and one trained denoiser serves all. A process that reverts to a mean mu is a
path of x - mu (`centred`). Dots are derivatives by t. All is elementwise: t broadcasts over x.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from offdiff.diffusion.denoiser import SIGMA_MAX, Denoise

Prediction = Literal["x0", "eps", "v", "v_sd", "score", "edm"]
"""clean, noise, velocity, angular velocity a eps - b x0, score, EDM's F (at unit data variance)."""


class Path(Protocol):
    """The clock and the scale of a process."""

    def a(self, t: Tensor, /) -> Tensor:
        """What multiplies the data."""
        ...

    def b(self, t: Tensor, /) -> Tensor:
        """What multiplies the noise."""
        ...

    def a_dot(self, t: Tensor, /) -> Tensor:
        """Derivative of a."""
        ...

    def b_dot(self, t: Tensor, /) -> Tensor:
        """Derivative of b."""
        ...

    def time(self, sigma: Tensor, /) -> Tensor:
        """When b / a is sigma."""
        ...


@dataclass(frozen=True)
class RectifiedFlow:
    """a = 1 - t, b = t (arXiv 2209.03003): straight lines; sigma = t / (1 - t)."""

    def a(self, t: Tensor, /) -> Tensor:
        """1 - t."""
        return 1 - t

    def b(self, t: Tensor, /) -> Tensor:
        """The time itself."""
        return t

    def a_dot(self, t: Tensor, /) -> Tensor:
        """-1."""
        return -torch.ones_like(t)

    def b_dot(self, t: Tensor, /) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def time(self, sigma: Tensor, /) -> Tensor:
        """sigma / (1 + sigma), its logit is ln sigma."""
        return sigma / (1 + sigma)


@dataclass(frozen=True)
class Cosine:
    """a = cos(pi t / 2), b = sin(pi t / 2): variance preserving, constant angular velocity."""

    def a(self, t: Tensor, /) -> Tensor:
        """Cosine."""
        return (math.pi / 2 * t).cos()

    def b(self, t: Tensor, /) -> Tensor:
        """Sine."""
        return (math.pi / 2 * t).sin()

    def a_dot(self, t: Tensor, /) -> Tensor:
        """-pi / 2 b."""
        return -math.pi / 2 * self.b(t)

    def b_dot(self, t: Tensor, /) -> Tensor:
        """pi / 2 a."""
        return math.pi / 2 * self.a(t)

    def time(self, sigma: Tensor, /) -> Tensor:
        """The angle of sigma, as a share of the quarter circle."""
        return sigma.atan() * 2 / math.pi


@dataclass(frozen=True)
class LinearBeta:
    """DDPM's linear schedule in continuous time: variance preserving, the noise rate grows.

    a(1) is small but not 0 (0.0066 by default): starting from pure noise is a bias that no number
    of steps removes.
    """

    low: float = 0.1
    high: float = 20.0

    def a(self, t: Tensor, /) -> Tensor:
        """exp(-t^2 (high - low) / 4 - t low / 2)."""
        return (-(t**2) * (self.high - self.low) / 4 - t * self.low / 2).exp()

    def b(self, t: Tensor, /) -> Tensor:
        """sqrt(1 - a^2), without cancellation near 0."""
        return (-torch.expm1(-(t**2) * (self.high - self.low) / 2 - t * self.low)).sqrt()

    def a_dot(self, t: Tensor, /) -> Tensor:
        """-a times half the noise rate."""
        return -self.a(t) * (t * (self.high - self.low) + self.low) / 2

    def b_dot(self, t: Tensor, /) -> Tensor:
        """From a^2 + b^2 = 1."""
        return -self.a(t) * self.a_dot(t) / self.b(t)

    def time(self, sigma: Tensor, /) -> Tensor:
        """The root of (high - low) t^2 / 2 + low t = ln(1 + sigma^2)."""
        rate = (self.high - self.low) / 2
        total = torch.log1p(sigma**2)
        return 2 * total / (self.low + (self.low**2 + 4 * rate * total).sqrt())


@dataclass(frozen=True)
class VarianceExploding:
    """a = 1, b = t: EDM's own coordinates; t is sigma and is not bounded by 1."""

    def a(self, t: Tensor, /) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def b(self, t: Tensor, /) -> Tensor:
        """The time itself."""
        return t

    def a_dot(self, t: Tensor, /) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def b_dot(self, t: Tensor, /) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def time(self, sigma: Tensor, /) -> Tensor:
        """Sigma itself."""
        return sigma


@dataclass(frozen=True)
class MeanReverting:
    """Of x - mu: a = exp(-rate t), b = spread sqrt(1 - a^2) (arXiv 2502.07856), mu by `centred`.

    At t = 1 the process is N(mu, spread^2) but for a(1) = exp(-rate).
    """

    spread: float = 0.5
    """Standard deviation about mu that the process settles at."""
    rate: float = 5.0

    def a(self, t: Tensor, /) -> Tensor:
        """exp(-rate t)."""
        return (-self.rate * t).exp()

    def b(self, t: Tensor, /) -> Tensor:
        """spread sqrt(1 - a^2)."""
        return self.spread * (-torch.expm1(-2 * self.rate * t)).sqrt()

    def a_dot(self, t: Tensor, /) -> Tensor:
        """-rate a."""
        return -self.rate * self.a(t)

    def b_dot(self, t: Tensor, /) -> Tensor:
        """spread^2 rate a^2 / b."""
        return self.spread**2 * self.rate * self.a(t) ** 2 / self.b(t)

    def time(self, sigma: Tensor, /) -> Tensor:
        """From 1 / a^2 = 1 + (sigma / spread)^2."""
        return torch.log1p((sigma / self.spread) ** 2) / (2 * self.rate)


def sigma_at(path: Path, t: Tensor, most: float = SIGMA_MAX) -> Tensor:
    """EDM's levels b / a of times, the same shape; no more than `most`, as a(1) may be 0."""
    # In floats the cosine of pi / 2 may be a tiny number of either sign.
    sigma = torch.where(t < 1, path.b(t) / path.a(t), math.inf)
    return sigma.clamp(max=most)


def coefficients(of: Prediction, path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
    """(c, d) of the prediction c x0 + d eps at t (flows spec, section 1.2)."""
    a, b = path.a(t), path.b(t)
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    norm = (a**2 + b**2).sqrt()
    table: dict[Prediction, tuple[Tensor, Tensor]] = {
        "x0": (one, zero),
        "eps": (zero, one),
        "v": (path.a_dot(t), path.b_dot(t)),
        "v_sd": (-b, a),
        "score": (zero, -1 / b),
        "edm": (b / norm, -a / norm),
    }
    return table[of]


def to_clean_and_noise(
    prediction: Tensor, x: Tensor, of: Prediction, path: Path, t: Tensor
) -> tuple[Tensor, Tensor]:
    """(x0, eps) that give both x = a x0 + b eps and the prediction; t must be inside (0, 1).

    An eps says nothing of x0 where a = 0, an x0 nothing of eps where b = 0.
    """
    c, d = coefficients(of, path, t)
    a, b = path.a(t), path.b(t)
    determinant = a * d - b * c
    return (d * x - b * prediction) / determinant, (a * prediction - c * x) / determinant


def convert(
    prediction: Tensor, x: Tensor, of: Prediction, to: Prediction, path: Path, t: Tensor
) -> Tensor:
    """One prediction at x, t as another."""
    clean, noise = to_clean_and_noise(prediction, x, of, path, t)
    c, d = coefficients(to, path, t)
    return c * clean + d * noise


def error_scale(of: Prediction, sigma: Tensor) -> Tensor:
    """Error of a prediction per error of EDM's F, at the same point of the rectified-flow path.

    It is what choosing a target means for a loss: for squared errors, a weight on the level.
    """
    a, b = 1 / (1 + sigma), sigma / (1 + sigma)
    c, d = coefficients(of, RectifiedFlow(), b)
    return (a * d - b * c).abs() / (a**2 + b**2).sqrt()


def centred(denoise: Denoise, mu: Tensor) -> Denoise:
    """The denoiser of x - mu: a process that reverts to mu instead of 0."""

    def moved(x: Tensor, sigma: Tensor, /) -> Tensor:
        return denoise(x + mu, sigma) - mu

    return moved
