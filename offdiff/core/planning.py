"""What a planner is asked and what it answers.

Everything is in the environment's units, actions in [-1, 1], on one device. Dimension letters:
B environments, C remembered steps, H imagined observations, K actions, N candidates, O observation,
A action.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from offdiff.core.errors import InputError
from offdiff.core.types import Spec


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do next in B environments, and what is expected to come of it."""

    action: Tensor
    """(B, K, A) actions to take one after the other, K >= 1"""
    obs: Tensor | None = None
    """(B, H, O) imagined observations, the first one the present; None for a plain policy"""
    stride: int = 1
    """Environment steps from one imagined observation to the next"""
    stages: Mapping[str, Tensor] = field(default_factory=dict)
    """Name -> (B, H, O): how the plan came about, e.g. "proposal"; for those who look at it"""
    candidates: Tensor | None = None
    """(B, N, H, O) among which `obs` was chosen"""
    calls: int = 0
    """Network evaluations that had to wait for one another"""

    def rows(self, which: Tensor) -> "Plan":
        """The plans of some environments: which (B,) bool or (M,) indices."""
        return Plan(
            action=self.action[which],
            obs=None if self.obs is None else self.obs[which],
            stride=self.stride,
            stages={name: value[which] for name, value in self.stages.items()},
            candidates=None if self.candidates is None else self.candidates[which],
            calls=self.calls,
        )


@dataclass(frozen=True, kw_only=True)
class Pins:
    """Numbers of the imagined observations that are decided beforehand: way-points, goals."""

    values: Tensor
    """(B, H, O)"""
    which: Tensor
    """(B, H, O) bool"""


@dataclass(frozen=True, kw_only=True)
class Situation:
    """Where B environments stand, what happened before, and what is wanted."""

    obs: Tensor
    """(B, O) present observations"""
    history: Tensor
    """(B, C, O) observations up to the present one, which is the last"""
    actions: Tensor
    """(B, C, A) what was done after each of them; the last row is 0"""
    wanted: Tensor
    """(B, C) return that was still to be collected at each of them"""
    remembered: Tensor
    """(B, C) bool: rows of this episode; the others hold zeros"""
    time: Tensor
    """(B,) int64, steps since the episode began"""
    previous: Tensor | None = None
    """(B, H, O) what was imagined for now and later when the plan before was made, or None"""
    follows: Tensor | None = None
    """(B,) bool: `previous` is of this episode"""
    pins: Pins | None = None

    def __len__(self) -> int:
        return len(self.obs)

    def rows(self, which: Tensor) -> "Situation":
        """Some of the environments: which (B,) bool or (M,) indices."""
        return Situation(
            obs=self.obs[which],
            history=self.history[which],
            actions=self.actions[which],
            wanted=self.wanted[which],
            remembered=self.remembered[which],
            time=self.time[which],
            previous=None if self.previous is None else self.previous[which],
            follows=None if self.follows is None else self.follows[which],
            pins=self.pins and Pins(values=self.pins.values[which], which=self.pins.which[which]),
        )

    @staticmethod
    def at(obs: Tensor, action_dim: int, *, wanted: float = 0.0) -> "Situation":
        """The beginning of an episode at each of (B, O) observations."""
        n = len(obs)
        return Situation(
            obs=obs,
            history=obs[:, None],
            actions=obs.new_zeros(n, 1, action_dim),
            wanted=obs.new_full((n, 1), wanted),
            remembered=torch.ones(n, 1, dtype=torch.bool, device=obs.device),
            time=torch.zeros(n, dtype=torch.int64, device=obs.device),
        )


@runtime_checkable
class Planner(Protocol):
    """Whatever finds a plan: a pure function of the situation, its weights and the generator."""

    def plan(self, situation: Situation, /, *, generator: torch.Generator) -> Plan:
        """One plan for each of B environments; no memory, no environment."""
        ...


@runtime_checkable
class Follower(Protocol):
    """A planner that can also steer along a plan it made before."""

    def follow(self, obs: Tensor, ahead: Tensor, /) -> Tensor:
        """The action (B, A) that leads from obs (B, O) along what was imagined.

        ahead: (B, H, O), row 0 for now, row 1 for `stride` steps later, and so on.
        """
        ...


def check_plan(plan: Plan, situation: Situation, spec: Spec, name: str) -> None:
    """Raises InputError, which names the planner and the contract, for a plan that breaks it."""
    n, action = len(situation), plan.action
    if action.ndim != 3 or action.shape[0] != n or action.shape[2] != spec.action_dim:
        raise InputError(
            f"planner {name} gave actions of shape {tuple(action.shape)}, expected "
            f"({n}, K, {spec.action_dim}): K >= 1 actions for each of {n} environments"
        )
    if action.shape[1] < 1:
        raise InputError(f"planner {name} gave no action; a plan holds at least one")
    obs = plan.obs
    if obs is not None and (obs.ndim != 3 or obs.shape[0] != n or obs.shape[2] != spec.obs_dim):
        raise InputError(
            f"planner {name} imagined observations of shape {tuple(obs.shape)}, expected "
            f"({n}, H, {spec.obs_dim})"
        )
    finite = action.isfinite().all() & (obs is None or obs.isfinite().all())
    if not finite:
        raise InputError(
            f"planner {name} gave numbers that are not finite; its training diverged, or its "
            "guidance is too strong"
        )
