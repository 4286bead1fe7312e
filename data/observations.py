"""Dict observations as one flat vector, in an order that is written down.

Dimension letters: T rows, D numbers of a leaf.
"""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np

from offdiff.core.errors import InputError, unknown_name
from offdiff.data.validate import RecordedArray

ObsMode = Literal["concat_goal", "observation_only"]
"""concat_goal: every leaf, keys sorted at every level: achieved_goal, desired_goal, observation.
That is the order of evaluation, and of `gymnasium.spaces.flatten` for a space made of a dict.
observation_only: the key "observation" alone, as in D4RL's maze2d, where the goal is hidden."""

Leaves = list[tuple[str, RecordedArray]]
"""(name, (T, D)) in the order of the flat vector; nested names are joined by a slash."""


def leaves(source: str, observations: object, mode: ObsMode) -> Leaves:
    """The parts of recorded observations, each reshaped to one row per step.

    observations: an array (T, ...), or dicts of such, nested to any depth.
    Raises InputError for tuples, texts and other kinds, and for a missing "observation".
    """
    if mode not in get_args(ObsMode):
        raise unknown_name("obs_mode", mode, get_args(ObsMode))
    if isinstance(observations, Mapping) and mode == "observation_only":
        if "observation" not in observations:
            raise InputError(
                f"{source}: observations have no key 'observation' but {sorted(observations)}; "
                "read them with obs_mode concat_goal"
            )
        return _leaves(source, "observations/observation", observations["observation"])
    return _leaves(source, "observations", observations)


def layout(parts: Leaves) -> str:
    """The order in words, e.g. "achieved_goal(2)+desired_goal(2)+observation(4)"; "" if flat."""
    if len(parts) == 1 and parts[0][0] == "observations":
        return ""
    return "+".join(
        f"{name.removeprefix('observations/')}({array.shape[1]})" for name, array in parts
    )


def concatenate(source: str, parts: Leaves) -> RecordedArray:
    """(T, sum of D); InputError if the parts have different numbers of rows."""
    lengths = {name: len(array) for name, array in parts}
    if len(set(lengths.values())) != 1:
        raise InputError(f"{source}: parts of the observations differ in length: {lengths}")
    return np.concatenate([array for _, array in parts], axis=1)


def _leaves(source: str, name: str, value: object) -> Leaves:
    if isinstance(value, Mapping):
        return [
            leaf for key in sorted(value) for leaf in _leaves(source, f"{name}/{key}", value[key])
        ]
    if not isinstance(value, np.ndarray) or value.ndim == 0 or value.dtype.kind not in "biuf":
        kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise InputError(
            f"{source}: {name} holds {kind}, expected arrays of numbers, or dicts of them; "
            "other observation spaces are not supported"
        )
    return [(name, value.reshape(len(value), -1))]
