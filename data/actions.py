"""Recorded actions -> the unit box [-1, 1] in which everything learns.

Dimension letters: N rows, A numbers of an action.
"""

from dataclasses import replace

import numpy as np

from offdiff.core.errors import InputError
from offdiff.data.episodes import Episodes, FloatArray

TOLERANCE = 1e-5
"""Overshoot, in half widths of the box, that float32 arithmetic explains; clipped silently."""


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
    action = to_unit(episodes.action, low, high, source=source)
    excess = overshoot(action)
    if excess == 0:
        return replace(episodes, action=action)
    if excess > TOLERANCE and not clip_actions:
        row, number = (int(i) for i in np.unravel_index(np.abs(action).argmax(), action.shape))
        bounds = low[number % len(low)], high[number % len(high)]
        raise InputError(
            f"{source}: actions leave their box [{bounds[0]:g}, {bounds[1]:g}]: row {row}, number "
            f"{number} is {episodes.action[row, number]:g}; pass --clip-actions "
            "(clip_actions=True) to move such actions to the border"
        )
    return replace(episodes, action=np.clip(action, -1, 1))


def to_unit(
    action: FloatArray, low: tuple[float, ...], high: tuple[float, ...], *, source: str
) -> FloatArray:
    """(N, A) actions of [low, high], rescaled to [-1, 1], not clipped. InputError for a bad box."""
    size = action.shape[1]
    if len(low) not in (1, size) or len(high) not in (1, size):
        raise InputError(
            f"{source}: the action box has {len(low)} and {len(high)} bounds, actions have {size} "
            "numbers; mend action_low and action_high"
        )
    bottom, top = np.array(low), np.array(high)
    if not (np.isfinite(bottom).all() and np.isfinite(top).all() and (bottom < top).all()):
        raise InputError(
            f"{source}: the action box runs from {low} to {high}; every lower bound must be "
            "finite and below its upper bound"
        )
    if set(low) == {-1.0} and set(high) == {1.0}:
        return action
    unit: FloatArray = (2 * (action - bottom) / (top - bottom) - 1).astype(np.float32)
    return unit


def overshoot(unit: FloatArray) -> float:
    """How far unit actions leave [-1, 1] at most; 0 inside it."""
    return max(0.0, float(unit.max()) - 1.0, -float(unit.min()) - 1.0)
