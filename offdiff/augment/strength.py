"""Automatic guidance strength: actions spread as the policy would spread them.

PolyGRAD (arXiv 2312.08533) tunes its strength so that standardised residuals have standard
deviation 1; it does so by a running update, we by bisection, which needs no state between calls.
"""

import math
from collections.abc import Callable

import torch

from offdiff.augment.sampler import Draw
from offdiff.core.protocols import Policy
from offdiff.diffusion.guidance import policy_moments
from offdiff.diffusion.world_model import WorldModel

LOWEST, HIGHEST = 2.0**-6, 2.0**6
HALVINGS = 6
PILOT_WINDOWS = 64


def residual_std(
    model: WorldModel, draw: Draw, policy: Policy, policy_std: float, generator: torch.Generator
) -> float:
    """Standard deviation of (action - policy's mean) / policy's std over a pilot's transitions."""
    windows = model.codec.decode(draw(model.denoiser, PILOT_WINDOWS, generator))
    mean, std = policy_moments(policy, windows.obs[:, :-1], policy_std)
    return float(((windows.action - mean) / std)[windows.mask].square().mean().sqrt())


def tuned_strength(
    draw_with: Callable[[float], Draw],
    model: WorldModel,
    policy: Policy,
    policy_std: float,
    generator: torch.Generator,
) -> float:
    """The strength in [1/64, 64] at which the residual's root mean square is 1.

    It falls with the strength, so that the end of the range is given where it never reaches 1.
    """
    low, high = LOWEST, HIGHEST
    state = generator.get_state()
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        generator.set_state(state)  # the same noise every time: the curve is then smooth
        spread = residual_std(model, draw_with(middle), policy, policy_std, generator)
        low, high = (middle, high) if spread > 1 else (low, middle)
    return math.sqrt(low * high)
