"""What a planner is told of the data before it is trained, and remembers with its weights.

Dimension letters: E episodes, O observation.
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from offdiff.core.types import Spec
from offdiff.data.dataset import Dataset
from offdiff.data.preprocess import STD_OFFSET, ObservationStats

TOP = 0.05
"""Share of the episodes, the best ones, whose mean return is asked for unless told otherwise."""


@dataclass(frozen=True)
class Goal:
    """Columns of an observation that say where to get, and those that say where one is."""

    wanted: tuple[int, ...]
    reached: tuple[tuple[int, ...], ...]
    """Copies of the position: as many tuples of as many columns as `wanted`."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Sizes, scales and returns of a dataset: plain numbers, kept beside a planner's weights."""

    spec: Spec
    obs_mean: tuple[float, ...]
    obs_std: tuple[float, ...]
    action_mean: tuple[float, ...]
    action_std: tuple[float, ...]
    reward_scale: float
    """Mean absolute reward of a step"""
    longest: int
    """Steps of the longest episode"""
    returns: tuple[float, float]
    """Lowest and highest return of an episode"""
    top_return: float
    """Mean return of the best TOP of the episodes"""
    goal: Goal | None = None
    """Set for data whose observations hold a goal; their episodes end where it is reached"""

    @classmethod
    def of(cls, dataset: Dataset) -> "Task":
        """Reads off a dataset."""
        episodes = dataset.episodes
        stats = ObservationStats.of(episodes)
        returns = np.sort(episodes.returns)
        action = episodes.action.astype(np.float64)
        return cls(
            spec=episodes.spec,
            obs_mean=tuple(stats.mean.tolist()),
            obs_std=tuple(stats.std.tolist()),
            action_mean=tuple(action.mean(0).tolist()),
            action_std=tuple((action.std(0) + STD_OFFSET).tolist()),
            reward_scale=max(float(np.abs(episodes.reward).mean(dtype=np.float64)), 1e-6),
            longest=int(episodes.lengths.max()),
            returns=(float(returns[0]), float(returns[-1])),
            top_return=float(returns[-max(1, round(TOP * len(returns))) :].mean()),
            goal=_goal(dataset),
        )

    def value_scale(self, discount: float) -> float:
        """A size for discounted returns: that of a constant reward of the usual size."""
        steps = self.longest if discount == 1 else min(1 / (1 - discount), self.longest)
        return self.reward_scale * steps

    def condition(self, wanted: Tensor) -> Tensor:
        """Returns as a network is told of them: inside the data's range, about 1 at its end."""
        low, high = min(self.returns[0], 0.0), max(self.returns[1], 0.0)
        return wanted.clamp(low, high) / max(-low, high, 1e-6)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON that `from_json` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Task":
        """What `to_json` gave."""
        goal = values["goal"]
        return cls(
            spec=Spec(**values["spec"]),
            obs_mean=tuple(values["obs_mean"]),
            obs_std=tuple(values["obs_std"]),
            action_mean=tuple(values["action_mean"]),
            action_std=tuple(values["action_std"]),
            reward_scale=values["reward_scale"],
            longest=values["longest"],
            returns=(values["returns"][0], values["returns"][1]),
            top_return=values["top_return"],
            goal=goal and Goal(tuple(goal["wanted"]), tuple(map(tuple, goal["reached"]))),
        )


def _goal(dataset: Dataset) -> Goal | None:
    """The goal's columns, where the layout of the observations names them."""
    columns, start = {}, 0
    for name, width in re.findall(r"(\w+)\((\d+)\)", dataset.info.obs_layout):
        columns[name] = tuple(range(start, start + int(width)))
        start += int(width)
    if not {"achieved_goal", "desired_goal"} <= columns.keys():
        return None
    reached = columns["achieved_goal"]
    obs = dataset.episodes.obs
    others = [c for c in range(obs.shape[1]) if c not in (*reached, *columns["desired_goal"])]
    # PointMaze repeats the position among the other numbers: what pins one pins the other.
    copies = [
        [c for c in others if np.array_equal(obs[:, c], obs[:, column])] for column in reached
    ]
    again = tuple(c[0] for c in copies if c)
    both = (reached, again) if len(again) == len(reached) else (reached,)
    return Goal(wanted=columns["desired_goal"], reached=both)
