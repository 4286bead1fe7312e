"""What a planner is made from and how it learns: the door for planners of other packages.

Dimension letters: B environments or windows, H imagined observations, O observation, A action.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from offdiff.core.errors import InputError
from offdiff.core.planning import Plan, Situation
from offdiff.data.plan_windows import PlanBatch
from offdiff.planners.task import Task

RANGES: dict[str, tuple[float, float]] = {
    "horizon": (1, 4096),
    "stride": (1, 4096),
    "history": (1, 4096),
    "replan_every": (1, 4096),
    "batch_size": (1, 2**20),
    "learning_rate": (1e-9, 1),
    "warmup": (0, 1),
    "weight_decay": (0, 1),
    "gradient_norm": (1e-6, 1e9),
    "ema": (0, 0.999999),
    "holdout": (1e-6, 0.5),
    "discount": (0, 1),
    "candidates": (1, 2**16),
    "levels": (0, 4096),
    "dropout": (0, 0.99),
    "expectile": (0.5, 0.999),
    "target_rate": (1e-9, 1),
}
"""Allowed values, ends included, of the settings that planners share by name."""


class PlannerModule(nn.Module, ABC):
    """A planner that learns: networks, their losses on windows of data, and the search for a plan.

    Whatever the state of the module (parameters, buffers) is all that is kept of it. Plans are made
    with exponentially averaged parameters.
    """

    @abstractmethod
    def losses(self, batch: PlanBatch, /, *, generator: torch.Generator) -> dict[str, Tensor]:
        """One loss per part, 0-d. Their sum is minimised: parts that share no weights stay apart.

        Empty for a planner that has nothing to learn.
        """

    @abstractmethod
    def plan(self, situation: Situation, /, *, generator: torch.Generator) -> Plan:
        """The `Planner` contract: one plan for each of B environments."""

    def begin(self, batch: PlanBatch, /) -> None:
        """Called once, before training, with windows of data: sets buffers that hold scales."""

    def after_step(self) -> None:
        """Called after every gradient step: target networks move here."""

    def calibrate(self, held: PlanBatch, /, *, generator: torch.Generator) -> None:
        """Called once, after training, with windows of held-out episodes: sets buffers."""


@dataclass(frozen=True, kw_only=True)
class PlannerConfig(ABC):
    """A planner's settings, and the way to make one. Subclasses check themselves: ValueError."""

    laptop_updates: ClassVar[int] = 4_000
    """Gradient steps of `offdiff run --planner` unless --updates says otherwise."""

    horizon: int = 16
    """Observations of a plan, the present one included."""
    stride: int = 1
    """Environment steps between two of them."""
    history: int = 1
    """Observations that a plan looks back on, the present one included."""
    replan_every: int = 1
    """Environment steps between two plans: 1 is closed loop."""
    open_loop: bool = False
    """Between two plans take the planned actions as they are, instead of steering along the plan
    (planners without inverse dynamics always do)."""
    wanted_return: float | None = None
    """Return of an episode to ask for, where plans depend on it; None: mean of the best 5 %."""
    discount: float = 0.99
    """Per environment step, of values that rank plans."""
    batch_size: int = 256
    """Windows per gradient step."""
    learning_rate: float = 1e-3
    """Peak of the schedule: linear warm-up, then half a cosine to 0."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 1e-4
    """Of AdamW, on matrices only."""
    gradient_norm: float = 1.0
    """Longer gradients of one part are shortened to this."""
    ema: float = 0.999
    """Decay per step of the averaged weights that plans are made with."""
    holdout: float = 0.05
    """Share of the episodes that is kept for validation."""

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name, low)
            if not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value}")
        if self.open_loop and self.stride > 1 and self.replan_every > 1:
            raise ValueError(
                "open_loop has actions for neighbouring steps only; take a stride of 1, or steer"
            )
        if self.wanted_return is not None and not math.isfinite(self.wanted_return):
            raise ValueError(f"wanted_return must be finite, got {self.wanted_return}")

    @property
    def steps_planned(self) -> int:
        """Actions that a plan has to hold: all until the next one if nobody steers in between."""
        return self.replan_every if self.open_loop and self.stride == 1 else 1

    @property
    def window(self) -> int:
        """Observations of a training window."""
        return self.horizon

    @abstractmethod
    def build(self, task: Task, /) -> PlannerModule:
        """The planner before its first step, drawn from torch's global generator, on the CPU."""

    def at_paper_size(self) -> Self:
        """The same at the size of the paper it comes from: `--preset paper`."""
        return self

    def target(self, task: Task) -> float:
        """The return that an episode starts with wanting."""
        return task.top_return if self.wanted_return is None else self.wanted_return


class Normaliser(nn.Module):
    """Numbers in the environment's units <-> zero mean and unit variance, in both directions."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def encode(self, values: Tensor) -> Tensor:
        """(..., D) in the environment's units -> (..., D)."""
        return (values - self.mean) / self.std

    def decode(self, rows: Tensor) -> Tensor:
        """(..., D) -> (..., D) in the environment's units."""
        return rows * self.std + self.mean


def perceptron(inputs: int, outputs: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with GELU between them."""
    sizes = (inputs, *hidden)
    layers = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.GELU())]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


def masked_mean(value: Tensor, mask: Tensor) -> Tensor:
    """Mean over the entries inside the mask, which broadcasts; 0 if there is none."""
    mask = mask.expand_as(value)
    return (value * mask).sum() / mask.sum().clamp(min=1)


def require_horizon(config: PlannerConfig, task: Task, least: int) -> None:
    """Raises InputError unless a plan has at least `least` observations and fits the data."""
    if config.horizon < least:
        raise InputError(f"horizon must be at least {least} for this planner, got {config.horizon}")
    if (reach := (config.horizon - 1) * config.stride) > task.longest:
        raise InputError(
            f"a plan of horizon {config.horizon} and stride {config.stride} reaches {reach} steps "
            f"ahead, and the longest episode has {task.longest}; shorten one of them"
        )
