"""Policy-guided diffusion as its authors' code computes it, kept to be compared with.

It differs from the paper's equations: the Euler predictor ignores the churn, and the guidance step
does not depend on the noise level (PGD spec, sections 6 and 7, defects D3 and D4).
Dimension letters: B windows, T = L + 1 rows, D columns, A action.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from offdiff.core.protocols import Policy
from offdiff.data.codec import Codec
from offdiff.diffusion.denoiser import Denoise, level_of_all
from offdiff.diffusion.guidance import policy_moments
from offdiff.diffusion.sampling import Churn

GRADIENT_FLOOR = 1e-8


@dataclass(frozen=True, kw_only=True)
class ReleasedGuidance:
    """A step of the noisy actions up the policy's log-likelihood, before every sampler step."""

    codec: Codec
    policy: Policy
    coefficient: float = 1.0
    policy_std: float = 1.0
    """Spread of policies that only act, in action units: the released one is 1."""
    normalise: bool = True
    """Divide the gradient by its norm over a window's actions (--normalize_action_guidance)."""
    denoised: bool = True
    """Evaluate the policy at the clean estimate, for one call more (--denoised_guidance)."""
    cosine: float = 0.3

    def strength(self, step: int, steps: int) -> float:
        """lambda_i = coefficient * (1 - i / N + 0.3 sin(pi (i + 1) / N)), 0 at the last step."""
        if step == steps - 1:
            return 0.0
        bulge = self.cosine * math.sin(math.pi * (step + 1) / steps)
        return self.coefficient * (1 - step / steps + bulge)

    def __call__(self, denoise: Denoise, x: Tensor, sigma: Tensor, step: int, steps: int) -> Tensor:
        """The noisy window (B, T, D) with its actions moved."""
        strength = self.strength(step, steps)
        if strength == 0:
            return x
        at = denoise(x, sigma) if self.denoised else x
        mean, std = policy_moments(self.policy, self.codec.states(at)[:, :-1], self.policy_std)
        action, slope = self.codec.actions(at)
        gradient = slope * (mean - action) / std**2
        if self.normalise:
            norm = gradient.flatten(1).norm(dim=1)[:, None, None]
            # The released code adds 1e-8 after the division: 0 / 0 where tanh is saturated (D5).
            gradient = gradient / norm.clamp(min=GRADIENT_FLOOR)
        moved = x.clone()
        moved[:, :-1, self.codec.group("action")] += strength * gradient
        return moved


def sample_released(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generator: torch.Generator,
    guidance: ReleasedGuidance | None = None,
    churn: Churn | None = None,
) -> Tensor:
    """The released sampler: Heun with churn, its predictor started before the churn (D3).

    churn: EDM's, by default with the released amounts.
    """
    churn = churn or Churn()
    steps = len(sigmas) - 1
    levels = sigmas.tolist()
    for i in range(steps):
        now, following = levels[i], levels[i + 1]
        if guidance is not None:
            x = guidance(denoise, x, level_of_all(x, now), i, steps)
        raised = churn.raised(now, steps)
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        churned = x + (raised**2 - now**2) ** 0.5 * churn.inflation * noise
        slope = (churned - denoise(churned, level_of_all(x, raised))) / raised
        ahead = x + (following - raised) * slope  # D3: from x, not from churned
        if following == 0:
            x = ahead
        else:
            ahead_slope = (ahead - denoise(ahead, level_of_all(x, following))) / (following + 1e-9)
            x = churned + 0.5 * (following - raised) * (slope + ahead_slope)
    return x
