"""Denoisers that are known exactly: of Gaussians and of mixtures, to test samplers against.

They stand where a trained `Denoise` does; `BetweenMixtures` stands where a bridge's `Fields` do.
Dimension letters: B samples, K components; E, the shape of a sample, is any.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from offdiff.diffusion.interpolants import Interpolant


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


@dataclass(frozen=True)
class BetweenMixtures:
    """Fields of an interpolant between independent samples of two mixtures, two Gaussians say.

    Every pair of components is one of x_t: variance V = a^2 s0^2 + b^2 s1^2 + g^2 about its mean m,
    v = m' + (a a' s0^2 + b b' s1^2) (x - m) / V and eta = g (x - m) / V, so that with g g' the
    velocity is m' + V' (x - m) / (2 V), and the score -(x - m) / V.
    """

    clean: Mixture
    source: Mixture
    interpolant: Interpolant

    def __call__(self, x: Tensor, t: float, /) -> tuple[Tensor, Tensor]:
        """(B, *E) at t -> (v, eta), each (B, *E)."""
        at, path = torch.tensor(t, dtype=torch.float64), self.interpolant.path
        a, b, a_dot, b_dot = path.a(at), path.b(at), path.a_dot(at), path.b_dot(at)
        law = self.marginal(t)
        offset = x[:, None] - law.means
        share = law._responsibilities(x, x.new_zeros(len(x)))
        rate = self._pairs(a * a_dot * self.clean.stds**2, b * b_dot * self.source.stds**2)
        pull = _like(rate / law.stds**2, law.means)
        each = self._pairs(a_dot * self.clean.means, b_dot * self.source.means) + pull * offset
        noise = _like(self.interpolant.g(at) / law.stds**2, law.means) * offset
        return (_like(share, each) * each).sum(1), (_like(share, noise) * noise).sum(1)

    def marginal(self, t: float) -> Mixture:
        """The law of x_t."""
        at, path = torch.tensor(t, dtype=torch.float64), self.interpolant.path
        a, b, g = path.a(at), path.b(at), self.interpolant.g(at)
        variances = self._pairs((a * self.clean.stds) ** 2, (b * self.source.stds) ** 2) + g**2
        return Mixture(
            torch.outer(self.clean.weights, self.source.weights).flatten(),
            self._pairs(a * self.clean.means, b * self.source.means),
            variances.sqrt(),
        )

    @staticmethod
    def _pairs(clean: Tensor, source: Tensor) -> Tensor:
        """(K, ...) and (L, ...) -> (K L, ...), every sum of two."""
        return (clean[:, None] + source[None]).flatten(0, 1)


def gaussian(mean: Tensor, std: float) -> Mixture:
    """N(mean, std^2 I); mean (*E)."""
    return Mixture(mean.new_ones(1), mean[None], mean.new_full((1,), std))


def _like(value: Tensor, target: Tensor) -> Tensor:
    """Trailing axes added until the value broadcasts from the left over the target."""
    return value.reshape(*value.shape, *(1,) * (target.ndim - value.ndim))
