"""Way-points: where a plan is to pass at a given step of the episode.

Dimension letters: B environments, T steps, H rows of a plan, O observation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offdiff.core.errors import InputError
from offdiff.core.planning import Pins, Plan
from offdiff.planners.policy import Pinning
from offdiff.planners.task import Task

TOLERANCE = 0.01
"""Standard deviations of the data by which a plan may miss a way-point: rounding, no more."""


@dataclass(frozen=True)
class WayPoint:
    """A position and the step of the episode at which to be there."""

    step: int
    position: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Route:
    """Way-points as pins of the plans that are made on the way."""

    points: tuple[WayPoint, ...]
    task: Task
    horizon: int
    """Rows of a plan"""
    stride: int

    @classmethod
    def of(cls, numbers: Sequence[float], task: Task, horizon: int, stride: int) -> "Route":
        """numbers: a step and a position, or several such one after the other.

        Raises InputError for observations without a position, another count of numbers, steps that
        are not whole or that the first plan does not reach.
        """
        if task.goal is None:
            raise InputError(
                "way-points need observations that hold a position and a goal, as those of "
                "PointMaze and AntMaze data with goals do; this planner's do not"
            )
        size = 1 + len(task.goal.wanted)
        if len(numbers) % size:
            raise InputError(
                f"a way-point is {size} numbers, its step and {size - 1} coordinates; got "
                f"{len(numbers)} numbers"
            )
        reach = (horizon - 1) * stride
        points = []
        for first in range(0, len(numbers), size):
            step, *position = numbers[first : first + size]
            if not (1 <= step <= reach and step == int(step)):
                raise InputError(
                    f"a way-point's step must be a whole number from 1 to {reach}, which is as far "
                    f"as a plan of horizon {horizon} and stride {stride} reaches; got {step:g}"
                )
            points.append(WayPoint(int(step), tuple(position)))
        return cls(points=tuple(points), task=task, horizon=horizon, stride=stride)

    def ahead(self, time: int) -> dict[int, tuple[float, ...]]:
        """Row of a plan made at this step -> position; a way-point of the past is in none."""
        rows = {round((p.step - time) / self.stride): p.position for p in self.points}
        return {row: position for row, position in rows.items() if row >= 1}

    def pinning(self, time: int) -> Pinning | None:
        """Holds plans that are made at this step to the way-points that are still to come."""
        ahead, goal = self.ahead(time), self.task.goal
        if not ahead or goal is None:
            return None

        def pin(obs: Tensor, /) -> Pins:
            values = obs.new_zeros(len(obs), self.horizon, obs.shape[1])
            which = torch.zeros(values.shape, dtype=torch.bool, device=obs.device)
            for row, position in ahead.items():
                for columns in goal.reached:
                    values[:, row, list(columns)] = obs.new_tensor(position)
                    which[:, row, list(columns)] = True
            return Pins(values=values, which=which)

        return pin

    def distances(self, obs: NDArray[np.float32]) -> list[float | None]:
        """How far from every way-point (T + 1, O) observations were at its step; None if over."""
        assert self.task.goal is not None
        places = obs[:, list(self.task.goal.reached[0])].astype(np.float64)
        return [
            float(np.linalg.norm(places[p.step] - p.position)) if p.step < len(obs) else None
            for p in self.points
        ]

    def require_kept(self, plan: Plan, time: int, name: str) -> None:
        """Raises InputError unless a plan made at this step passes through all that lie ahead."""
        assert self.task.goal is not None
        for row, position in self.ahead(time).items():
            if plan.obs is None or row >= plan.obs.shape[1]:
                raise InputError(
                    f"planner {name} imagines no observation {row * self.stride} steps ahead, so "
                    "no way-point can be there; leave it out or take another planner"
                )
            for columns in self.task.goal.reached:
                imagined = plan.obs[:, row, list(columns)]
                std = imagined.new_tensor([self.task.obs_std[c] for c in columns])
                if ((imagined - imagined.new_tensor(position)) / std).abs().max() > TOLERANCE:
                    at = ", ".join(f"{x:g}" for x in imagined[0].tolist())
                    raise InputError(
                        f"planner {name} does not keep way-points: its plan is at ({at}) "
                        f"{row * self.stride} steps ahead; take a planner that honours pins"
                    )
