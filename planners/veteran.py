"""Diffusion Veteran: many unguided plans, the best by a critic, actions by inverse dynamics.

Lu et al. 2025, arXiv 2503.00535. Dimension letters: B environments, N candidates, H rows of a plan.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Self

import torch
from torch import Tensor

from offdiff.core.planning import Plan, Situation
from offdiff.data.plan_windows import PlanBatch
from offdiff.diffusion.sampling import karras_sigmas, sample_ddim
from offdiff.planners.base import PlannerConfig, PlannerModule, require_horizon
from offdiff.planners.diffuser import SIGMA_MAX, SIGMA_MIN
from offdiff.planners.frame import PlanFrame
from offdiff.planners.known import known_rows, start_mask
from offdiff.planners.parts import InverseDynamics, StateValue, WindowCritic, choose, pick
from offdiff.planners.sequence import SequenceDenoiser, SequenceLaw, sample_given, sequence_loss
from offdiff.planners.task import Task


@dataclass(frozen=True, kw_only=True)
class VeteranConfig(PlannerConfig):
    """Monte-Carlo sampling with selection, at a laptop's sizes; `--preset paper` for the paper's.

    The defaults are those for locomotion; for mazes plan longer with `stride` and rank by `window`.
    """

    horizon: int = 4
    """Observations of a plan, the present one included."""
    discount: float = 0.997
    """Per environment step, of values that rank plans."""
    candidates: int = 16
    """Plans per decision."""
    levels: int = 20
    """Denoising steps."""
    rank_by: Literal["states", "window"] = "states"
    """states: sum of a learned state value over the plan. window: a critic of the whole plan."""
    expectile: float = 0.7
    """Of the state value."""
    network: str = "mlp-256"
    """Of the denoiser; names of `offdiff.diffusion.networks`."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden widths of inverse dynamics and critic."""
    pin_goal: bool = False
    """Where observations hold a goal: the last row of a plan is there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels < 1:
            raise ValueError(f"levels must be at least 1, got {self.levels}")

    def at_paper_size(self) -> Self:
        """The paper's locomotion settings."""
        return replace(
            self, candidates=50, network="dit-s-", batch_size=128, learning_rate=2e-4, ema=0.9999
        )

    def build(self, task: Task) -> "Veteran":
        """The planner before its first step."""
        require_horizon(self, task, 2)
        return Veteran(self, task)


class Veteran(PlannerModule):
    """An unconditional denoiser of observations, a critic, an inverse dynamics.

    Differences from the paper: EDM's path and preconditioning; the inverse dynamics is a perceptron
    (the paper found both kinds alike); the denoiser's loss is not weighted by returns.
    """

    known: Tensor

    def __init__(self, config: VeteranConfig, task: Task) -> None:
        super().__init__()
        self.config, self.task, spec = config, task, task.spec
        self.frame = PlanFrame(task, config.horizon)
        self.denoiser = SequenceDenoiser(
            config.network, spec.obs_dim, config.horizon, conditional=False
        )
        self.inverse = InverseDynamics(task, config.hidden)
        self.critic: StateValue | WindowCritic
        if config.rank_by == "states":
            self.critic = StateValue(spec.obs_dim, config.hidden)
        else:
            self.critic = WindowCritic(spec.obs_dim, config.horizon, config.hidden)
        known = start_mask(config.horizon, spec.obs_dim, spec.obs_dim, task.goal)
        self.register_buffer("known", known, persistent=False)

    def begin(self, batch: PlanBatch, /) -> None:
        """Measures the spreads of plans."""
        self.frame.begin(batch)

    def losses(self, batch: PlanBatch, /, *, generator: torch.Generator) -> dict[str, Tensor]:
        """Of denoiser, inverse dynamics and critic."""
        c = self.config
        rows, obs = self.frame.encode(batch.obs), self.frame.standardise(batch.obs)
        counts = batch.counts[..., None].expand_as(rows)
        loss = sequence_loss(
            self.denoiser, rows, self.known, counts, None, SequenceLaw(), generator=generator
        )
        scale = self.task.value_scale(c.discount)
        if isinstance(self.critic, StateValue):
            critic = self.critic.loss(obs, batch, scale=scale, expectile=c.expectile)
        else:
            critic = self.critic.loss(obs, batch, scale)
        return {"denoiser": loss, "inverse": self.inverse.loss(self.frame, batch), "critic": critic}

    def plan(self, situation: Situation, /, *, generator: torch.Generator) -> Plan:
        """N plans by DDIM; the one of highest value."""
        c, n = self.config, self.config.candidates
        goal = self.task.goal if c.pin_goal else None
        decided, known = known_rows(situation, c.horizon, goal)
        decided, known = decided.repeat_interleave(n, 0), known.repeat_interleave(n, 0)
        values = self.frame.encode(decided)
        noise = torch.randn(values.shape, generator=generator, device=values.device)
        sampler = partial(sample_ddim, sigmas=karras_sigmas(c.levels, SIGMA_MIN, SIGMA_MAX))
        denoise = self.denoiser.given(values, known)
        rows = sample_given(sampler, denoise, SIGMA_MAX * noise, values, known)
        candidates = self.frame.decode_given(rows, decided, known).unflatten(0, (-1, n))
        states = self.frame.standardise(candidates)
        if isinstance(self.critic, StateValue):
            value = self.critic(states[:, :, 1:]).sum(-1)
        else:
            value = self.critic(states)
        chosen = pick(candidates, choose(value, temperature=0.0, generator=generator))
        return Plan(
            action=self.inverse.steer(self.frame, chosen, c.steps_planned),
            obs=chosen,
            stride=c.stride,
            candidates=candidates,
            calls=c.levels,
        )

    def follow(self, obs: Tensor, ahead: Tensor, /) -> Tensor:
        """The action that leads to where the plan is one row later."""
        action: Tensor = self.inverse(self.frame, obs, ahead[:, 1])
        return action
