"""Guidance: moves of the clean estimate towards a policy or a score.

Dimension letters: B windows, T = L + 1 rows, L transitions, D columns, O observation, A action.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from offdiff.core.protocols import GaussianPolicy, Policy
from offdiff.core.types import Trajectories
from offdiff.data.codec import Codec
from offdiff.diffusion.denoiser import Denoise

Guidance = Callable[[Tensor, Tensor], Tensor]
"""(clean estimate (B, T, D), sigma (B,)) -> moved estimate."""
Score = Callable[[Trajectories], Tensor]
"""Windows in the environment's units -> (B,) numbers, differentiable: a return, a value."""
Variance = Callable[[Tensor], Tensor]
"""sigma (B,) -> (B, 1, A) variance of the clean actions given the noisy window."""


def guided(denoise: Denoise, guidance: Guidance) -> Denoise:
    """The denoiser whose every estimate is moved: both halves of a Heun step see it."""

    def moved(x: Tensor, sigma: Tensor, /) -> Tensor:
        return guidance(denoise(x, sigma), sigma)

    return moved


def compose(*terms: Guidance) -> Guidance:
    """One guidance after the other."""

    def moved(estimate: Tensor, sigma: Tensor) -> Tensor:
        for term in terms:
            estimate = term(estimate, sigma)
        return estimate

    return moved


def unit_variance(sigma: Tensor) -> Tensor:
    """Posterior variance sigma^2 / (sigma^2 + 1) of independent columns of unit variance."""
    return (sigma**2 / (sigma**2 + 1)).view(-1, 1, 1)


def policy_moments(policy: Policy, obs: Tensor, std: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the policy's actions, (..., A) each, for obs (..., O).

    std: what a policy that only acts is taken to spread its actions by, in action units.
    """
    flat = obs.flatten(0, -2)
    if isinstance(policy, GaussianPolicy):
        mean, spread = policy.distribution(flat)
        return mean.view(*obs.shape[:-1], -1), spread.view(*obs.shape[:-1], -1)
    mean = policy.act(flat).view(*obs.shape[:-1], -1)
    return mean, torch.full_like(mean, std)


@dataclass(frozen=True, kw_only=True)
class PolicyGuidance:
    """Calibrated policy guidance: samples p(window) * policy(actions | states) ** strength.

    Exact where behaviour and policy are Gaussian (PGD spec, section 16.2). With the estimate's
    variance v and the slope j of action against column, the log-likelihood's gradient g and
    curvature h give the Newton step strength * v * g / (1 + strength * v * h).
    """

    codec: Codec
    policy: Policy
    strength: float = 1.0
    policy_std: float = 1.0
    """Spread of policies that only act, in action units."""
    variance: Variance = unit_variance
    """Measured on held-out data, strength means the same for every task."""
    low: float = 0.05
    high: float = 10.0
    """Levels at which to guide: beyond them the effect is nil (section 16.2)."""
    clamp: float = 1.0
    """Longest move of an action column per call, in its standard deviations."""

    def __call__(self, estimate: Tensor, sigma: Tensor) -> Tensor:
        """(B, T, D), (B,) -> (B, T, D); only actions move, states are taken as they are."""
        with torch.no_grad():
            shift = (self.variance(sigma) * self.pull(estimate, sigma)).clamp(
                -self.clamp, self.clamp
            )
            moved = estimate.clone()
            moved[:, :-1, self.codec.group("action")] += shift
            return moved

    def pull(self, estimate: Tensor, sigma: Tensor) -> Tensor:
        """(B, L, A) gradient of strength * log-likelihood by the action columns, as a Newton step.

        That is strength * g / (1 + strength * v * h), 0 after the task's end and beyond the levels.
        """
        mean, std = policy_moments(
            self.policy, self.codec.states(estimate)[:, :-1], self.policy_std
        )
        action, slope = self.codec.actions(estimate)
        gradient = slope * (mean - action) / std**2
        curvature = slope**2 / std**2
        pull = self.strength * gradient / (1 + self.strength * self.variance(sigma) * curvature)
        active = ((sigma >= self.low) & (sigma <= self.high)).view(-1, 1, 1)
        return pull * self.codec.alive(estimate)[..., None] * active


def guided_jointly(denoise: Denoise, guidance: PolicyGuidance) -> Denoise:
    """The denoiser moved by the pull on the actions in every column that depends on them.

    With C the covariance of the clean window given the noisy one, the tilted mean is D + C pull
    to first order, and C = sigma^2 dD/dx (Tweedie): one product with the denoiser's Jacobian.
    `guided` takes the actions' own variance for C; then states learn of the new actions only at
    the next level. Costs a backward pass per call.
    """

    def moved(x: Tensor, sigma: Tensor, /) -> Tensor:
        columns = guidance.codec.group("action")
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            estimate = denoise(leaf, sigma)
            pull = torch.zeros_like(estimate)
            pull[:, :-1, columns] = guidance.pull(estimate.detach(), sigma)
            (product,) = torch.autograd.grad(estimate, leaf, pull)
        shift = sigma.view(-1, 1, 1) ** 2 * product
        # The terminal column is a probability, not to be pushed out of its range.
        shift[..., guidance.codec.group("terminal")] = 0
        return estimate.detach() + shift.clamp(-guidance.clamp, guidance.clamp)

    return moved


@dataclass(frozen=True, kw_only=True)
class ScoreGuidance:
    """Moves the whole estimate up the gradient of a score, by strength * v * gradient.

    v is the variance of unit columns: the same calibrated step, without curvature.
    """

    codec: Codec
    score: Score
    strength: float
    clamp: float = 1.0
    """Longest move of a column per call, in its standard deviations."""

    def __call__(self, estimate: Tensor, sigma: Tensor) -> Tensor:
        """(B, T, D), (B,) -> (B, T, D)."""
        with torch.enable_grad():
            leaf = estimate.detach().requires_grad_(True)
            total = self.score(self.codec.decode(leaf)).sum()
            (gradient,) = torch.autograd.grad(total, leaf)
        shift = (self.strength * unit_variance(sigma) * gradient).clamp(-self.clamp, self.clamp)
        return estimate + shift
