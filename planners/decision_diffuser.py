"""Decision Diffuser: plans of observations for a wanted return, actions by inverse dynamics.

Ajay et al. 2023, arXiv 2211.15657. Dimension letters: B environments, H rows of a plan.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from offdiff.core.planning import Plan, Situation
from offdiff.data.plan_windows import PlanBatch
from offdiff.diffusion.sampling import karras_sigmas, sample_ddim
from offdiff.planners.base import PlannerConfig, PlannerModule, require_horizon
from offdiff.planners.diffuser import SIGMA_MAX, SIGMA_MIN
from offdiff.planners.frame import PlanFrame
from offdiff.planners.known import known_rows, start_mask
from offdiff.planners.parts import InverseDynamics
from offdiff.planners.sequence import SequenceDenoiser, SequenceLaw, sample_given, sequence_loss
from offdiff.planners.task import Task


@dataclass(frozen=True, kw_only=True)
class DecisionDiffuserConfig(PlannerConfig):
    """Decision Diffuser at a laptop's sizes; `--preset paper` for the paper's."""

    levels: int = 20
    """Denoising steps."""
    guidance: float = 1.2
    """Weight of classifier-free guidance: 0 ignores the wanted return, 1 only conditions on it."""
    start_temperature: float = 0.5
    """Multiplies the standard deviation of the noise that sampling starts from."""
    step_temperature: float = 0.5
    """Multiplies the standard deviation of the noise added on the way."""
    network: str = "mlp-256"
    """Of the denoiser; names of `offdiff.diffusion.networks`."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden widths of the inverse dynamics."""
    pin_goal: bool = True
    """Where observations hold a goal: the last row of a plan is there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels < 1:
            raise ValueError(f"levels must be at least 1, got {self.levels}")
        if min(self.start_temperature, self.step_temperature) < 0:
            raise ValueError("temperatures must be >= 0")

    def at_paper_size(self) -> Self:
        """Appendix B, locomotion."""
        return replace(
            self, horizon=100, levels=100, network="temporal-128", hidden=(512, 512),
            batch_size=32, learning_rate=2e-4, gradient_norm=1e3,
        )  # fmt: skip

    def build(self, task: Task) -> "DecisionDiffuser":
        """The planner before its first step."""
        require_horizon(self, task, 2)
        return DecisionDiffuser(self, task)


class DecisionDiffuser(PlannerModule):
    """A denoiser of observations that is told the return to come, and an inverse dynamics.

    Differences from the paper: EDM's path and preconditioning; no history; the wanted return falls
    by what was collected instead of staying fixed.
    """

    known: Tensor

    def __init__(self, config: DecisionDiffuserConfig, task: Task) -> None:
        super().__init__()
        self.config, self.task, spec = config, task, task.spec
        self.frame = PlanFrame(task, config.horizon)
        self.denoiser = SequenceDenoiser(
            config.network, spec.obs_dim, config.horizon, conditional=True
        )
        self.inverse = InverseDynamics(task, config.hidden)
        known = start_mask(config.horizon, spec.obs_dim, spec.obs_dim, task.goal)
        self.register_buffer("known", known, persistent=False)

    def begin(self, batch: PlanBatch, /) -> None:
        """Measures the spreads of plans."""
        self.frame.begin(batch)

    def losses(self, batch: PlanBatch, /, *, generator: torch.Generator) -> dict[str, Tensor]:
        """Of the denoiser and of the inverse dynamics."""
        rows = self.frame.encode(batch.obs)
        condition = self.task.condition(batch.to_go[:, 0])
        counts = batch.counts[..., None].expand_as(rows)
        loss = sequence_loss(
            self.denoiser, rows, self.known, counts, condition, SequenceLaw(), generator=generator
        )
        return {"denoiser": loss, "inverse": self.inverse.loss(self.frame, batch)}

    def plan(self, situation: Situation, /, *, generator: torch.Generator) -> Plan:
        """One plan by low-temperature ancestral sampling with classifier-free guidance."""
        c = self.config
        goal = self.task.goal if c.pin_goal else None
        decided, known = known_rows(situation, c.horizon, goal)
        values = self.frame.encode(decided)
        condition = self.task.condition(situation.wanted[:, -1])
        noise = torch.randn(values.shape, generator=generator, device=values.device)
        sampler = partial(
            sample_ddim,
            sigmas=karras_sigmas(c.levels, SIGMA_MIN, SIGMA_MAX),
            eta=1.0,
            temperature=c.step_temperature,
            generator=generator,
        )
        denoise = self.denoiser.given(values, known, condition, weight=c.guidance)
        start = c.start_temperature * SIGMA_MAX * noise
        rows = sample_given(sampler, denoise, start, values, known)
        obs = self.frame.decode_given(rows, decided, known)
        return Plan(
            action=self.inverse.steer(self.frame, obs, c.steps_planned),
            obs=obs,
            stride=c.stride,
            calls=c.levels,
        )

    def follow(self, obs: Tensor, ahead: Tensor, /) -> Tensor:
        """The action that leads to where the plan is one row later."""
        action: Tensor = self.inverse(self.frame, obs, ahead[:, 1])
        return action
