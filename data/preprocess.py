"""What is done to observations and rewards before a learner sees them, kept with the policy.

Dimension letters: N rows, O observation.
"""

import re
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from offdiff.core.errors import InputError, unknown_name
from offdiff.data.episodes import Episodes, FloatArray

STD_FLOOR = 1e-3
"""Added to every standard deviation (Fujimoto and Gu 2021), so that constant inputs stay finite."""
TRANSFORMS = ("none", "minus_one", "iql_return_range", "standardise", "scale_shift(A,B)")


@dataclass(frozen=True)
class ObservationStats:
    """Mean and scale of observations: a learner sees (obs - mean) / std."""

    mean: FloatArray
    """(O,)"""
    std: FloatArray
    """(O,), positive"""

    @classmethod
    def of(cls, episodes: Episodes) -> "ObservationStats":
        """Statistics of `obs` over all rows; population standard deviation plus 1e-3."""
        mean = episodes.obs.mean(0, dtype=np.float64)
        std = episodes.obs.std(0, dtype=np.float64) + STD_FLOOR
        return cls(mean.astype(np.float32), std.astype(np.float32))

    @classmethod
    def identity(cls, obs_dim: int) -> "ObservationStats":
        """Leaves observations as they are."""
        return cls(np.zeros(obs_dim, np.float32), np.ones(obs_dim, np.float32))


@dataclass(frozen=True)
class RewardTransform:
    """reward -> scale * reward + shift. Evaluation always reports untransformed returns."""

    name: str
    scale: float
    shift: float
    details: dict[str, float] = field(default_factory=dict)
    """What scale and shift were computed from."""

    def __call__(self, reward: Tensor) -> Tensor:
        """(N,) -> (N,)."""
        return self.scale * reward + self.shift


def reward_transform(text: str, episodes: Episodes) -> RewardTransform:
    """The transform that `text` names, with parameters from the data.

    none; minus_one: r - 1; scale_shift(A,B): A*r + B; iql_return_range: 1000 r / (Rmax - Rmin) over
    episode returns (Kostrikov et al. 2021); standardise: zero mean, unit deviation over rows.
    Raises InputError for an unknown name or data that the transform cannot use.
    """
    if text == "none":
        return RewardTransform(text, 1.0, 0.0)
    if text == "minus_one":
        return RewardTransform(text, 1.0, -1.0)
    if text == "iql_return_range":
        low, high = float(episodes.returns.min()), float(episodes.returns.max())
        if high <= low:
            raise InputError(
                f"reward transform {text!r} needs episodes of different returns, all are {low:g}; "
                "choose another"
            )
        return RewardTransform(text, 1000 / (high - low), 0.0, {"Rmin": low, "Rmax": high})
    if text == "standardise":
        mean, std = (float(f(episodes.reward, dtype=np.float64)) for f in (np.mean, np.std))
        if std == 0:
            raise InputError(
                f"reward transform {text!r} needs rewards that differ, all are {mean:g}; "
                "choose another"
            )
        return RewardTransform(text, 1 / std, -mean / std, {"mean": mean, "std": std})
    number = r"\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*"
    if match := re.fullmatch(rf"scale_shift\({number},{number}\)", text):
        scale, shift = (float(part) for part in match.groups())
        return RewardTransform(text, scale, shift)
    raise unknown_name("reward transform", text, TRANSFORMS)
