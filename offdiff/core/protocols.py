"""The contracts: what a policy, a learner and a source of batches promise.

Dimension letters: S seeds trained together, B batch, O observation, A action.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from offdiff.core.seeding import SeedStreams
from offdiff.core.types import Batch, Metrics, Spec, Trajectories


@runtime_checkable
class Policy(Protocol):
    """What is evaluated, whoever made it."""

    def act(self, obs: Tensor, /) -> Tensor:
        """(B, O) observations in the environment's units -> (B, A) actions in [-1, 1]."""
        ...

    def reset(self, which: Tensor, /) -> None:
        """which: (B,) bool, the environments that began a new episode."""
        ...


@runtime_checkable
class RewardObserver(Protocol):
    """A policy that wants to know what its actions brought."""

    def observe(self, reward: Tensor, /) -> None:
        """reward: (B,) of the last actions; 0 where no episode is running."""
        ...


@runtime_checkable
class GaussianPolicy(Policy, Protocol):
    """A policy that also says how likely other actions are."""

    def distribution(self, obs: Tensor, /) -> tuple[Tensor, Tensor]:
        """(B, O) observations -> mean and standard deviation of its actions, (B, A) each."""
        ...


@runtime_checkable
class Augmenter(Protocol):
    """Makes synthetic experience, near the policy that is being trained if it takes heed of it."""

    @property
    def window(self) -> int:
        """Transitions of a generated window."""
        ...

    def generate(
        self, n: int, policy: Policy | None, *, generator: torch.Generator
    ) -> Trajectories:
        """n windows in the environment's units, on the augmenter's device.

        policy: the one being trained; None before its training began.
        Everything random comes from `generator`, which lives on the same device.
        """
        ...

    def provenance(self) -> dict[str, Any]:
        """What the experience is made with, for the run record: plain JSON."""
        ...


@runtime_checkable
class Replay(Protocol):
    """Where batches come from: in memory, mixed, or memory-mapped."""

    def sample(self, n: int, *, random: SeedStreams) -> Batch:
        """n transitions for every seed, uniformly with replacement: fields (S, n, ...)."""
        ...

    def __len__(self) -> int:
        """Transitions held."""
        ...


@runtime_checkable
class Learner(Protocol):
    """One algorithm with its networks and optimisers, for S seeds at once."""

    def update(self, batch: Batch, /) -> Metrics:
        """One gradient step of the critic (of the policy, where there is no critic).

        batch: fields (S, B, ...), observations scaled as the learner's config asks.
        """
        ...

    def policy(self, seed: int, /) -> torch.nn.Module:
        """The deterministic policy of the seed at this position, independent of later updates.

        A module from (B, O) scaled observations to (B, A) actions in [-1, 1].
        """
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that later updates depend on, but for the random streams."""
        ...

    def load_state_dict(self, state: dict[str, Tensor], /) -> None:
        """Restores what `state_dict` gave."""
        ...


RANGES: dict[str, tuple[float, float]] = {
    "batch_size": (1, 2**20),
    "keep_best": (1e-9, 1),
    "discount": (0, 1),
    "target_rate": (1e-9, 1),
    "learning_rate": (1e-9, 1),
    "actor_learning_rate": (1e-9, 1),
    "critic_learning_rate": (1e-9, 1),
    "policy_noise": (0, 2),
    "noise_clip": (0, 2),
    "policy_delay": (1, 1000),
    "dropout": (0, 0.99),
}
"""Allowed values, ends included, of the hyperparameters that learners share by name."""


@dataclass(frozen=True, kw_only=True)
class LearnerConfig(ABC):
    """Hyperparameters of a learner, and the way to make one. Subclasses check themselves."""

    needs_next_action: ClassVar[bool] = False
    """True if `Batch.next_action` is read: transitions that lack it are then left out."""

    batch_size: int = 256
    """Transitions per update."""
    scale_observations: bool = False
    """Standardise observations with the data's mean and standard deviation."""
    reward: str = "none"
    """none, minus_one, iql_return_range, standardise, or scale_shift(A,B) for A * reward + B."""
    keep_best: float = 1.0
    """Train on the episodes of highest return only, up to this share of the data, in (0, 1]."""
    keep_best_by: Literal["episodes", "steps"] = "episodes"
    """What the share counts: the number of episodes or their time steps."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value}")
        for name, (low, high) in RANGES.items():
            value = getattr(self, name, low)
            if not low <= value <= high:
                raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value}")
        hidden = getattr(self, "hidden", (1,))
        if not hidden or min(hidden) < 1 or max(hidden) > 2**16:
            raise ValueError(f"hidden must be widths between 1 and {2**16}, got {hidden}")

    @abstractmethod
    def build(
        self, spec: Spec, *, random: SeedStreams, updates: int, device: torch.device
    ) -> Learner:
        """A learner at its first update. updates: planned length of the run, for schedules."""

    @abstractmethod
    def network(self, spec: Spec) -> torch.nn.Module:
        """An untrained network of the kind that `Learner.policy` gives, to load weights into."""
