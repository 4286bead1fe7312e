"""What learners see instead of raw numbers: scaled observations, transformed rewards.

Dimension letters: N rows, O observation, B batch.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from offdiff.core.errors import InputError, unknown_name
from offdiff.data.episodes import Episodes, FloatArray
from offdiff.data.validate import BLOCK

STD_OFFSET = 1e-3
"""Added to standard deviations (TD3+BC's code): constant numbers stay near 0 when scaled."""

REWARD_TRANSFORMS = ("none", "minus_one", "scale_shift(A,B)", "iql_return_range", "standardise")


@dataclass(frozen=True, kw_only=True)
class ObservationStats:
    """Scaling of observations: (obs - mean) / std."""

    mean: FloatArray
    """(O,)"""
    std: FloatArray
    """(O,), positive"""

    @classmethod
    def of(cls, episodes: Episodes) -> "ObservationStats":
        """Mean and population standard deviation (ddof 0) + 1e-3 of `obs`, summed in float64.

        Of `obs` alone, never of successors: those of terminal rows may be arbitrary.
        """
        mean = episodes.obs.mean(axis=0, dtype=np.float64)
        squares = np.zeros_like(mean)
        for start in range(0, len(episodes), BLOCK):
            block = episodes.obs[start : start + BLOCK] - mean
            squares += np.square(block).sum(axis=0)
        std = np.sqrt(squares / len(episodes)) + STD_OFFSET
        return cls(mean=mean.astype(np.float32), std=std.astype(np.float32))

    @classmethod
    def identity(cls, obs_dim: int) -> "ObservationStats":
        """Leaves observations as they are."""
        return cls(mean=np.zeros(obs_dim, np.float32), std=np.ones(obs_dim, np.float32))


@dataclass(frozen=True, kw_only=True)
class RewardTransform:
    """reward -> scale * reward + shift. Evaluation returns are never transformed."""

    name: str
    """As asked for."""
    scale: float = 1.0
    shift: float = 0.0
    details: Mapping[str, float] = field(default_factory=dict)
    """What scale and shift were computed from, for the record."""

    def __call__(self, reward: Tensor) -> Tensor:
        """(...,) environment rewards -> (...,) rewards to learn from."""
        return self.scale * reward + self.shift


def reward_transform(text: str, episodes: Episodes) -> RewardTransform:
    """The transform of this name, its parameters taken from the episodes that are trained on.

    none; minus_one (IQL and CQL on antmaze); scale_shift(A,B) for A*r + B; iql_return_range for
    1000 / (Rmax - Rmin) * r over the returns of whole episodes, cut at terminal or truncated rows
    (IQL on locomotion); standardise for (r - mean) / std over all rows (EDAC on adroit).
    Raises InputError for an unknown name, parameters that are no numbers, or data that leave
    nothing to divide by.
    """
    name = text.strip()
    if name == "none":
        return RewardTransform(name=name)
    if name == "minus_one":
        return RewardTransform(name=name, shift=-1.0)
    if name == "iql_return_range":
        return _iql_return_range(episodes)
    if name == "standardise":
        return _standardise(episodes)
    if name.startswith("scale_shift"):
        return _scale_shift(name)
    raise unknown_name("reward transform", name, REWARD_TRANSFORMS)


def _iql_return_range(episodes: Episodes) -> RewardTransform:
    lowest, highest = float(episodes.returns.min()), float(episodes.returns.max())
    if highest <= lowest:
        raise InputError(
            f"reward transform iql_return_range needs episodes of different return, all of these "
            f"have {lowest:g}; use none, or minus_one for antmaze"
        )
    return RewardTransform(
        name="iql_return_range",
        scale=1000.0 / (highest - lowest),
        details={"min_return": lowest, "max_return": highest},
    )


def _standardise(episodes: Episodes) -> RewardTransform:
    reward = episodes.reward.astype(np.float64)
    mean, std = float(reward.mean()), float(reward.std())
    if std == 0:
        raise InputError(
            f"reward transform standardise needs rewards that differ, all of these are {mean:g}; "
            "use none"
        )
    return RewardTransform(
        name="standardise", scale=1 / std, shift=-mean / std, details={"mean": mean, "std": std}
    )


def _scale_shift(text: str) -> RewardTransform:
    matched = re.fullmatch(r"scale_shift\(([^,]+),([^,]+)\)", text)
    try:
        if matched is None:
            raise ValueError
        scale, shift = float(matched[1]), float(matched[2])
    except ValueError as error:
        raise InputError(
            f"reward transform {text!r} is no scale_shift(A,B) with two numbers; write for example "
            "scale_shift(10,-5)"
        ) from error
    if not (math.isfinite(scale) and math.isfinite(shift)) or scale <= 0:
        raise InputError(
            f"reward transform {text!r} needs a positive scale and finite numbers, or the learner "
            "would be taught something else than the task"
        )
    return RewardTransform(name=text, scale=scale, shift=shift)
