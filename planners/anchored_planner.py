"""Anchored planning (DiffusionDrive): typical futures, refined in two calls, the best by a value.

Liao et al. 2024, arXiv 2411.15139. Dimension letters: B environments, N candidates, H rows of a
plan, O observation.
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from offdiff.core.planning import Plan, Situation
from offdiff.data.plan_windows import PlanBatch
from offdiff.diffusion.anchored import NOISE, AnchoredRefiner
from offdiff.planners.base import PlannerConfig, PlannerModule, require_horizon
from offdiff.planners.frame import PlanFrame
from offdiff.planners.known import known_rows, start_mask
from offdiff.planners.parts import InverseDynamics, StateValue, choose, pick
from offdiff.planners.sequence import SequenceLaw, later_row
from offdiff.planners.task import Task

REFINED_WINDOWS = 32
"""Windows of a batch that the refiner learns from: each is seen from every anchor."""


@dataclass(frozen=True, kw_only=True)
class AnchoredConfig(PlannerConfig):
    """Refined anchors at a laptop's sizes; `--preset paper` for larger networks."""

    anchors: int = 20
    """Typical futures, relative to the present, that plans are refined from."""
    candidates: int = 8
    """Plans of highest score, among which one is chosen."""
    choose: Literal["value", "score"] = "value"
    """value: the candidate through the states of highest value. score: the one that the data did
    most often, which imitates."""
    noise: float = NOISE
    """Largest noise on anchors in training, in (0, 1); plans are made with a third of it."""
    expectile: float = 0.7
    """Of the state value."""
    network: str = "mlp-128"
    """Of each of the two refining stages; names of `offdiff.diffusion.networks`."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden widths of inverse dynamics and value."""
    pin_goal: bool = True
    """Where observations hold a goal: the last row of a plan is there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.anchors <= 4096:
            raise ValueError(f"anchors must lie in [1, 4096], got {self.anchors}")
        if not 0 < self.noise < 1:
            raise ValueError(f"noise must lie between 0 and 1, got {self.noise}")

    def at_paper_size(self) -> Self:
        """The width and learning rate of the paper; its 20 anchors are the default."""
        return replace(self, network="dit-s-", learning_rate=6e-4)

    def build(self, task: Task) -> "Anchored":
        """The planner before its first step."""
        require_horizon(self, task, 2)
        return Anchored(self, task)


class Anchored(PlannerModule):
    """A refiner of anchors, an inverse dynamics and a state value.

    Differences from the paper: plans are observations, not poses; a value chooses, as how often the
    data did something says nothing of what came of it; and those of `AnchoredRefiner`.
    """

    def __init__(self, config: AnchoredConfig, task: Task) -> None:
        super().__init__()
        self.config, self.task, spec = config, task, task.spec
        self.frame = PlanFrame(task, config.horizon)
        known = start_mask(config.horizon, spec.obs_dim, spec.obs_dim, task.goal)
        self.refiner = AnchoredRefiner(
            config.network, known, anchors=config.anchors, noise=config.noise
        )
        self.inverse = InverseDynamics(task, config.hidden)
        self.value = StateValue(spec.obs_dim, config.hidden)

    def begin(self, batch: PlanBatch, /) -> None:
        """Measures the spreads of plans, and their clusters."""
        self.frame.begin(batch)
        rows = self.frame.encode(batch.obs)[batch.counts.all(1)]
        self.refiner.place(rows, generator=torch.Generator(rows.device).manual_seed(0))

    def losses(self, batch: PlanBatch, /, *, generator: torch.Generator) -> dict[str, Tensor]:
        """Of the refiner, the inverse dynamics and the value."""
        c, few = self.config, slice(0, REFINED_WINDOWS)
        rows = self.frame.encode(batch.obs[few])
        counts = batch.counts[few, :, None].expand_as(rows)
        known = self.refiner.start | later_row(rows, SequenceLaw().fill, generator)
        obs, scale = self.frame.standardise(batch.obs), self.task.value_scale(c.discount)
        return {
            "refiner": self.refiner.loss(rows, known, counts, generator=generator),
            "inverse": self.inverse.loss(self.frame, batch),
            "value": self.value.loss(obs, batch, scale=scale, expectile=c.expectile),
        }

    def plan(self, situation: Situation, /, *, generator: torch.Generator) -> Plan:
        """The likeliest refined anchors; of them the one of highest value, or the first."""
        c = self.config
        goal = self.task.goal if c.pin_goal else None
        decided, known = known_rows(situation, c.horizon, goal)
        refined = self.refiner.refine(self.frame.encode(decided), known, generator=generator)
        rows, scores = refined.best(c.candidates)
        candidates = self.frame.decode_given(rows, decided[:, None], known[:, None])
        worth = scores
        if c.choose == "value":
            worth = self.value(self.frame.standardise(candidates[:, :, 1:])).mean(-1)
        obs = pick(candidates, choose(worth, temperature=0.0, generator=generator))
        return Plan(
            action=self.inverse.steer(self.frame, obs, c.steps_planned),
            obs=obs,
            stride=c.stride,
            candidates=candidates,
            calls=len(self.refiner.stages),
        )

    def follow(self, obs: Tensor, ahead: Tensor, /) -> Tensor:
        """The action that leads to where the plan is one row later."""
        action: Tensor = self.inverse(self.frame, obs, ahead[:, 1])
        return action
