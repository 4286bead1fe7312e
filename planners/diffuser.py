"""Diffuser: plans of observations and actions, pushed towards high returns (arXiv 2205.09991).

Dimension letters: B environments, N candidates, H rows of a plan, D = O + A columns.
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn

from offdiff.core.planning import Plan, Situation
from offdiff.data.plan_windows import PlanBatch
from offdiff.diffusion.denoiser import LevelLaw
from offdiff.diffusion.networks import build_network
from offdiff.diffusion.sampling import Edit, karras_sigmas, sample_ddim
from offdiff.planners.base import Normaliser, PlannerConfig, PlannerModule, require_horizon
from offdiff.planners.frame import PlanFrame
from offdiff.planners.known import known_rows, start_mask
from offdiff.planners.parts import pick
from offdiff.planners.sequence import SequenceDenoiser, SequenceLaw, sample_given, sequence_loss
from offdiff.planners.task import Task

SIGMA_MIN, SIGMA_MAX = 0.02, 20.0


@dataclass(frozen=True, kw_only=True)
class DiffuserConfig(PlannerConfig):
    """Diffuser at a laptop's sizes; `--preset paper` for the paper's."""

    candidates: int = 8
    """Plans per decision; the one of highest predicted return is followed."""
    levels: int = 20
    """Denoising steps."""
    scale: float = 0.1
    """Strength of the guidance, on returns in the environment's units."""
    guide_steps: int = 2
    """Steps up the gradient of the predicted return at every level."""
    unguided_levels: int = 2
    """Last levels without guidance."""
    network: str = "mlp-256"
    """Of the denoiser; names of `offdiff.diffusion.networks`."""
    guide_network: str = "mlp-256"
    """Of the predicted return."""
    first_action_weight: float = 10.0
    """Of the first action in the loss."""
    pin_goal: bool = True
    """Where observations hold a goal: the last row of a plan is there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guide_steps < 0 or not 0 <= self.unguided_levels <= self.levels:
            raise ValueError("guide_steps must be >= 0, unguided_levels between 0 and levels")
        if self.levels < 1:
            raise ValueError(f"levels must be at least 1, got {self.levels}")

    def at_paper_size(self) -> Self:
        """Janner et al. 2022, locomotion."""
        return replace(
            self, horizon=32, candidates=64, network="temporal-32", guide_network="temporal-32",
            batch_size=64, learning_rate=2e-4, discount=0.997,
        )  # fmt: skip

    def build(self, task: Task) -> "Diffuser":
        """The planner before its first step."""
        require_horizon(self, task, 2)
        return Diffuser(self, task)


class NoisyReturn(nn.Module):
    """J(x, sigma): the return predicted from a noisy plan, in units of `Task.value_scale`."""

    def __init__(self, network: str, columns: int, rows: int) -> None:
        super().__init__()
        self.net = build_network(network, columns, 1, rows=rows)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """(B, H, D), (B,) -> (B,)."""
        scaled = x / (1 + sigma**2).sqrt()[:, None, None]
        value: Tensor = self.net(scaled, sigma.log() / 4).mean((1, 2))
        return value


class Diffuser(PlannerModule):
    """A denoiser of [observation, action] rows and a return that is predicted from noisy plans.

    Differences from the paper: EDM's path and preconditioning instead of a cosine schedule (the
    ancestral sampler is the same in both); windows beyond an episode's end repeat its last
    observation instead of zeros; the return is a network of the denoiser's kind.
    """

    known: Tensor

    def __init__(self, config: DiffuserConfig, task: Task) -> None:
        super().__init__()
        self.config, self.task = config, task
        observed, columns = task.spec.obs_dim, task.spec.obs_dim + task.spec.action_dim
        self.observed = observed
        self.frame = PlanFrame(task, config.horizon)
        self.action_scale = Normaliser(task.action_mean, task.action_std)
        self.denoiser = SequenceDenoiser(config.network, columns, config.horizon, conditional=False)
        self.guide = NoisyReturn(config.guide_network, columns, config.horizon)
        known = start_mask(config.horizon, columns, observed, task.goal)
        self.register_buffer("known", known, persistent=False)

    def begin(self, batch: PlanBatch, /) -> None:
        """Measures the spreads of plans."""
        self.frame.begin(batch)

    def losses(self, batch: PlanBatch, /, *, generator: torch.Generator) -> dict[str, Tensor]:
        """Of the denoiser, and of the predicted return on noisy windows."""
        clean = torch.cat(
            (self.frame.encode(batch.obs), self.action_scale.encode(batch.action)), dim=-1
        )
        acted = batch.counts & (batch.acted | ~batch.real)
        counts = torch.cat(
            (
                batch.counts[..., None].expand_as(batch.obs),
                acted[..., None].expand_as(batch.action),
            ),
            dim=-1,
        )
        weight = torch.ones_like(clean[:1])
        weight[:, 0, self.observed :] = self.config.first_action_weight
        law = SequenceLaw()
        loss = sequence_loss(
            self.denoiser, clean, self.known, counts * weight, None, law, generator=generator
        )
        value_scale = self.task.value_scale(self.config.discount)
        sigma = LevelLaw().sample(len(clean), generator=generator)
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        noisy = torch.where(self.known, clean, clean + sigma[:, None, None] * noise)
        error = self.guide(noisy, sigma) - batch.value[:, 0] / value_scale
        return {"denoiser": loss, "guide": error.square().mean()}

    def plan(self, situation: Situation, /, *, generator: torch.Generator) -> Plan:
        """Candidates by guided ancestral sampling; the one of highest predicted return."""
        c, n = self.config, self.config.candidates
        goal = self.task.goal if c.pin_goal else None
        decided, seen = known_rows(situation, c.horizon, goal)
        unknown = (0, self.task.spec.action_dim)
        decided, seen = decided.repeat_interleave(n, 0), seen.repeat_interleave(n, 0)
        values = nn.functional.pad(self.frame.encode(decided), unknown)
        known = nn.functional.pad(seen, unknown)
        sigmas = karras_sigmas(c.levels, SIGMA_MIN, SIGMA_MAX)
        start = SIGMA_MAX * torch.randn(values.shape, generator=generator, device=values.device)
        sampler = partial(
            sample_ddim,
            sigmas=sigmas,
            eta=1.0,
            generator=generator,
            edit=self._uphill(sigmas, values, known),
        )
        rows = sample_given(sampler, self.denoiser.given(values, known), start, values, known)
        lowest = rows.new_full((len(rows),), SIGMA_MIN)
        best = self.guide(rows, lowest).view(-1, n).argmax(1)
        obs = self.frame.decode_given(rows[..., : self.observed], decided, seen)
        obs = obs.unflatten(0, (-1, n))
        action = self.action_scale.decode(rows[..., self.observed :]).unflatten(0, (-1, n))
        return Plan(
            action=pick(action, best).clamp(-1, 1),
            obs=pick(obs, best),
            stride=c.stride,
            candidates=obs,
            calls=c.levels + (c.levels - c.unguided_levels) * c.guide_steps + 1,
        )

    def _uphill(self, sigmas: Tensor, values: Tensor, known: Tensor) -> Edit:
        """x + scale * variance * dJ/dx, guide_steps times (algorithm 1 of the paper).

        variance: of the sampler's noise in the step that follows.
        """
        c = self.config
        levels = sigmas.tolist()
        variance = {
            now: following**2 * (1 - (following / now) ** 2) for now, following in pairwise(levels)
        }
        guided = set(levels[: c.levels - c.unguided_levels])
        strength = c.scale * self.task.value_scale(c.discount)
        at = iter(levels)

        def edit(x: Tensor, sigma: Tensor) -> Tensor:
            level = next(at)
            if level not in guided:
                return x
            for _ in range(c.guide_steps):
                with torch.enable_grad():
                    leaf = torch.where(known, values, x).detach().requires_grad_(True)
                    (gradient,) = torch.autograd.grad(self.guide(leaf, sigma).sum(), leaf)
                x = torch.where(known, values, x + strength * variance[level] * gradient)
            return x

        return edit
