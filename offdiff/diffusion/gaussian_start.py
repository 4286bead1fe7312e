"""Sampling that starts low: the noisiest levels are nearly those of a Gaussian, which is solved.

At levels well above the data's spread a model's estimate is that of a Gaussian with the samples'
mean and covariance, and there the ODE has a closed form: nothing has to be called ("analytical
teleportation", arXiv 2412.09726). In each principal axis, of variance v, pure noise z becomes
sqrt(v + sigma^2) z at level sigma. After reflow the clean value sqrt(v) z goes with the noise z,
and what is found at level sigma is (sqrt(v) + sigma) z: wider, as both are one number.

Windows of trajectories need this more than images do: over a window of 17 rows the largest axes
have 50 times the variance of an entry. Moments are those of the data: a model's own samples are
narrower (by 14 % of the variance, measured on a small one), and starting from theirs adds to it.
Dimension letters: N windows, T rows, D columns, E = T D, K axes.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

RANK = 64
"""Principal axes that are told apart; the others share their mean variance."""


class Start(Protocol):
    """Where sampling begins at a level."""

    def __call__(self, noise: Tensor, sigma: float, /) -> Tensor:
        """Standard normal numbers (B, *E) -> noisy samples of level sigma, the same shape."""
        ...


@dataclass(frozen=True, kw_only=True)
class GaussianStart:
    """The samples of a model as a Gaussian."""

    mean: Tensor
    """(T, D)"""
    axes: Tensor
    """(E, K) orthonormal, the widest first"""
    variances: Tensor
    """(K,) along them"""
    rest: Tensor
    """() along all others"""
    coupled: bool = False
    """Noise and sample are one function of the other: after reflow."""

    @classmethod
    def of(cls, clean: Tensor, *, rank: int = RANK, coupled: bool = False) -> "GaussianStart":
        """Of samples (N, T, D), N >= 2. ValueError without them."""
        if len(clean) < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {len(clean)}")
        flat = clean.flatten(1).double()
        values, vectors = torch.linalg.eigh(torch.cov(flat.T))
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        others = values[rank:]
        return cls(
            mean=clean.mean(0),
            axes=vectors[:, :rank].to(clean.dtype).contiguous(),
            variances=values[:rank].to(clean.dtype),
            rest=(others.mean() if len(others) else values.new_zeros(())).to(clean.dtype),
            coupled=coupled,
        )

    def __call__(self, noise: Tensor, sigma: float, /) -> Tensor:
        """(B, T, D) standard normal numbers -> what the ODE makes of them down to level sigma."""
        flat = noise.flatten(1)
        others = self._spread(self.rest, sigma)
        along = (flat @ self.axes) * (self._spread(self.variances, sigma) - others)
        return self.mean + (others * flat + along @ self.axes.T).view_as(noise)

    def tensors(self) -> dict[str, Tensor]:
        """All that is not a setting, for a file."""
        return {
            "mean": self.mean, "axes": self.axes, "variances": self.variances, "rest": self.rest
        }  # fmt: skip

    def _spread(self, variance: Tensor, sigma: float) -> Tensor:
        if self.coupled:
            return variance.sqrt() + sigma
        return (variance + sigma**2).sqrt()
