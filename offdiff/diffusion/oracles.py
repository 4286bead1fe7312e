"""Denoisers that are known exactly: of Gaussians and of mixtures, to test samplers against.

They stand where a trained `Denoise` does. Dimension letters: B samples, K components; E, the
shape of a sample, is any.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """Data sum_k w_k N(m_k, s_k^2 I); of one component, a Gaussian with independent columns."""

    weights: Tensor
    """(K,) that sum to 1"""
    means: Tensor
    """(K, *E)"""
    stds: Tensor
    """(K,)"""

    def __call__(self, x: Tensor, sigma: Tensor, /) -> Tensor:
        """(B, *E) at levels (B,) -> E[clean | noisy], (B, *E)."""
        gain, share = self._gains(sigma), self._responsibilities(x, sigma)
        offset = x[:, None] - self.means
        each = self.means + _like(gain, offset) * offset
        return (_like(share, each) * each).sum(1)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """(B, *E) gradient of the noisy density's logarithm."""
        return (self(x, sigma) - x) / _like(sigma, x) ** 2

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """(n, *E) clean samples."""
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(
            (n, *self.means.shape[1:]),
            generator=generator,
            dtype=self.means.dtype,
        )
        return self.means[which] + _like(self.stds[which], noise) * noise

    def _gains(self, sigma: Tensor) -> Tensor:
        """(B, K) slope of the clean estimate against the noisy sample, in each component."""
        variance = self.stds**2
        return variance / (variance + sigma[:, None] ** 2)

    def _responsibilities(self, x: Tensor, sigma: Tensor) -> Tensor:
        """(B, K) probability of every component given the noisy sample."""
        variance = self.stds**2 + sigma[:, None] ** 2
        distance = (x[:, None] - self.means).flatten(2).square().sum(-1)
        size = math.prod(self.means.shape[1:])
        return (self.weights.log() - size / 2 * variance.log() - distance / (2 * variance)).softmax(
            1
        )


@dataclass(frozen=True)
class CorrelatedGaussian:
    """Data N(mean, covariance) over flattened samples."""

    mean: Tensor
    """(E,)"""
    covariance: Tensor
    """(E, E)"""

    def __call__(self, x: Tensor, sigma: Tensor, /) -> Tensor:
        """(B, E) at levels (B,) -> E[clean | noisy], (B, E)."""
        values, vectors = torch.linalg.eigh(self.covariance)
        gain = values / (values + sigma[:, None] ** 2)
        estimate: Tensor = self.mean + ((x - self.mean) @ vectors * gain) @ vectors.T
        return estimate


def gaussian(mean: Tensor, std: float) -> Mixture:
    """N(mean, std^2 I); mean (*E)."""
    return Mixture(mean.new_ones(1), mean[None], mean.new_full((1,), std))


def _like(value: Tensor, target: Tensor) -> Tensor:
    """Trailing axes added until the value broadcasts from the left over the target."""
    return value.reshape(*value.shape, *(1,) * (target.ndim - value.ndim))
