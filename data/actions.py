"""Recorded actions -> the unit box [-1, 1] in which everything learns."""

from dataclasses import replace

import numpy as np

from offdiff.core.errors import InputError
from offdiff.data.episodes import Episodes

TOLERANCE = 1e-5
"""Overshoot, in half widths of the box, that float32 arithmetic explains; clipped silently."""


def overshoot(action: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> float:
    """How far unit actions leave [-1, 1] at most; 0 inside it."""
    return max(0.0, float(np.abs(action).max()) - 1.0)


def in_unit_box(
    episodes: Episodes,
    low: tuple[float, ...],
    high: tuple[float, ...],
    *,
    source: str,
    clip_actions: bool,
) -> Episodes:
    """The episodes with actions rescaled from [low, high] to [-1, 1].

    low, high: one bound for all numbers of an action, or one for each.
    clip_actions: actions outside the box are moved to its border instead of refused; human
    demonstrations go beyond it. Raises InputError otherwise.
    """
    allowed = (1, episodes.spec.action_dim)
    if len(low) not in allowed or len(high) not in allowed:
        raise InputError(
            f"{source}: the action box has {len(low)} and {len(high)} bounds, actions have "
            f"{episodes.spec.action_dim} numbers; mend action_low and action_high"
        )
    bottom, top = np.broadcast_arrays(low, high, np.empty(episodes.spec.action_dim))[:2]
    if not (np.isfinite(bottom).all() and np.isfinite(top).all() and (bottom < top).all()):
        raise InputError(
            f"{source}: the action box runs from {low} to {high}; every lower bound must be "
            "finite and below its upper bound"
        )
    action = episodes.action
    if set(low) != {-1.0} or set(high) != {1.0}:
        action = (2 * (action - bottom) / (top - bottom) - 1).astype(np.float32)
    excess = overshoot(action)
    if excess == 0:
        return replace(episodes, action=action)
    if excess > TOLERANCE and not clip_actions:
        row, number = np.unravel_index(np.abs(action).argmax(), action.shape)
        raise InputError(
            f"{source}: actions leave their box [{bottom[number]:g}, {top[number]:g}]: row {row}, "
            f"number {number} is {episodes.action[row, number]:g}; pass --clip-actions "
            "(clip_actions=True) to move such actions to the border"
        )
    return replace(episodes, action=np.clip(action, -1, 1))
