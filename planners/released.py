"""Trajectory Diffuser (Huang et al. 2024, arXiv 2407.16142) as its authors' code computes it.

Kept to be compared with. Dimension letters: B environments or windows, N candidates, C rows of
context, H rows of a plan, K denoising steps, O observation, A action.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from offdiff.core.errors import InputError
from offdiff.core.planning import Plan, Situation
from offdiff.data.plan_windows import PlanBatch
from offdiff.diffusion.unet import GROUPS
from offdiff.planners.base import (
    Normaliser,
    PlannerConfig,
    PlannerModule,
    masked_mean,
    require_horizon,
)
from offdiff.planners.released_generator import ReleasedGenerator
from offdiff.planners.released_optimiser import LEVELS, FirstRow, ReleasedOptimiser
from offdiff.planners.task import Task

OWN_RANGES: dict[str, tuple[float, float]] = {
    "steps": (0, LEVELS),
    "train_levels": (1, LEVELS),
    "guidance": (-100, 100),
    "drop_condition": (0, 1),
    "returns_scale": (1e-6, 1e9),
    "q_temperature": (1e-9, 1e9),
    "generator_width": (1, 8192),
    "generator_depth": (1, 64),
    "generator_heads": (1, 64),
    "dynamics_width": (1, 8192),
    "critic_width": (1, 8192),
}
"""Allowed values, ends included, of the settings that this planner has to itself."""


@dataclass(frozen=True, kw_only=True)
class ReleasedTrajectoryDiffuserConfig(PlannerConfig):
    """Commit 214039d, its oddities included, each behind a switch whose default is theirs.

    Differences that remain: one pair of statistics for observations and next observations, with
    1e-3 and not 1e-5 added to deviations, in both directions; episodes are cut by their flags, and
    may end with a window's last row (theirs drop the last transition); cosine decay over the whole
    training (theirs: linear, over its first tenth); averaged weights of all parts (theirs: of the
    optimiser alone); weight decay for all parts (theirs: for the optimiser alone); inverse dynamics
    and critic also learn from windows that reach beyond an episode's end.
    """

    horizon: int = 16
    history: int = 15
    """At least horizon - 1, the context that the generator is trained with; no more is used."""
    batch_size: int = 32
    learning_rate: float = 2e-4
    warmup: float = 0.0
    gradient_norm: float = 1e9
    """As good as none."""
    ema: float = 0.9975
    """0.995 at every second step."""
    returns_scale: float = 1000.0
    """Returns are divided by this wherever networks see them."""
    steps: int = 5
    """Denoising steps K: the last ones of 100 levels."""
    guidance: float = 1.2
    """Weight of classifier-free guidance: 0 ignores the wanted return, 1 takes it as it is."""
    candidates: int = 32
    """Plans per decision, one of which is followed."""
    drop_condition: float = 0.5
    """Share of windows that the optimiser is trained on without their return."""
    gen_causal: bool = False
    """Whether the generator's rows attend to earlier rows only."""
    inject_noise: bool = False
    """Whether a rollout gets the noise of the level at which it enters the optimiser."""
    frame0_in_training: FirstRow = "shrunk"
    """The optimiser's first row in training: shrunk as if it were noisy, or clean as in plans."""
    loss_on_frame0: bool = True
    """Whether the optimiser's first row, whose noise is 0, counts in its loss."""
    train_levels: int = LEVELS
    """The optimiser is trained on this many levels, the least noisy ones."""
    clamp_action_eval: bool = False
    """Whether actions are put into [-1, 1] before they are rated; executed they always are."""
    q_temperature: float = 1.0
    """Of the softmax over the critic's values, in units of 1 / returns_scale."""
    cfg_batched: bool = False
    """Whether both passes of guidance are one batch; the same plans, half the calls."""
    rtg_floor: float | None = 1 / 3
    """The return still wanted never falls below this share of an episode's; None: no floor."""
    unet_width: int = 64
    """Channels of the U-Net's first level, a multiple of 8."""
    generator_width: int = 256
    """Numbers that each an observation and a return become: half a token."""
    generator_depth: int = 4
    generator_heads: int = 4
    dropout: float = 0.1
    """Of the generator."""
    dynamics_width: int = 256
    critic_width: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, (low, high) in OWN_RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value}")
        if self.rtg_floor is not None and not 0 <= self.rtg_floor <= 1:
            raise ValueError(f"rtg_floor must lie in [0, 1] or be None, got {self.rtg_floor}")
        if self.stride != 1:
            raise ValueError(f"stride must be 1 for this planner, got {self.stride}")
        if self.history < self.horizon - 1:
            raise ValueError(
                f"history must be at least horizon - 1 = {self.horizon - 1}, got {self.history}"
            )
        if self.steps > self.train_levels:
            raise ValueError(
                f"steps must not exceed the train_levels {self.train_levels}, got {self.steps}"
            )
        if self.unet_width < GROUPS or self.unet_width % GROUPS:
            raise ValueError(f"unet_width must be a multiple of {GROUPS}, got {self.unet_width}")
        if 2 * self.generator_width % self.generator_heads:
            raise ValueError(
                f"twice the generator_width must be a multiple of {self.generator_heads} heads, "
                f"got {2 * self.generator_width}"
            )

    def build(self, task: Task, /) -> "ReleasedTrajectoryDiffuser":
        """Raises InputError for a horizon that is below 2 or beyond the longest episode."""
        require_horizon(self, task, 2)
        return ReleasedTrajectoryDiffuser(self, task)


class ReleasedTrajectoryDiffuser(PlannerModule):
    """A rollout of the generator, denoised a little, N times; one is drawn by its action's value.

    The rollout is repeated for every candidate, as released, though it is the same for all.
    """

    def __init__(self, config: ReleasedTrajectoryDiffuserConfig, task: Task) -> None:
        super().__init__()
        self.config = config
        obs_dim, action_dim = task.spec.obs_dim, task.spec.action_dim
        self.normaliser = Normaliser(task.obs_mean, task.obs_std)
        self.generator = ReleasedGenerator(
            obs_dim,
            context=config.horizon - 1,
            width=config.generator_width,
            depth=config.generator_depth,
            heads=config.generator_heads,
            dropout=config.dropout,
            causal=config.gen_causal,
        )
        self.optimiser = ReleasedOptimiser(
            obs_dim,
            width=config.unet_width,
            train_levels=config.train_levels,
            drop_condition=config.drop_condition,
            first_row=config.frame0_in_training,
            loss_on_first_row=config.loss_on_frame0,
            inject_noise=config.inject_noise,
            guidance=config.guidance,
            cfg_batched=config.cfg_batched,
        )
        self.dynamics = _perceptron(2 * obs_dim, action_dim, config.dynamics_width, nn.ReLU)
        self.critic = _perceptron(obs_dim + action_dim, 1, config.critic_width, nn.Mish)
        for layer in self.critic:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        target = config.target(task)
        self.floor = None if config.rtg_floor is None else min(target, config.rtg_floor * target)

    def losses(self, batch: PlanBatch, /, *, generator: torch.Generator) -> dict[str, Tensor]:
        """Of the four parts: the first two on windows wholly inside an episode."""
        obs = self.normaliser.encode(batch.obs)
        wanted = batch.to_go / self.config.returns_scale
        inside, pairs = batch.real.all(dim=1), batch.pairs
        action = batch.action[:, :-1]
        # The clamp stops the gradient outside the box (as released).
        action_error = self._action(obs[:, :-1], obs[:, 1:]).clamp(-1, 1) - action
        value_error = self._value(obs[:, :-1], action) - wanted[:, :-1]
        return {
            "generator": self.generator.loss(obs, wanted, inside),
            "optimiser": self.optimiser.loss(obs, wanted[:, 0], inside, generator=generator),
            "dynamics": masked_mean(action_error.square(), pairs[..., None]),
            "critic": masked_mean(value_error.square(), pairs),
        }

    def plan(self, situation: Situation, /, *, generator: torch.Generator) -> Plan:
        """Raises InputError for way-points, which this planner cannot keep to."""
        if situation.pins is not None:
            raise InputError(
                "trajectory-diffuser-released keeps to no way-points; take another planner"
            )
        config, obs = self.config, situation.obs
        shape = (config.steps, len(obs), config.candidates, config.horizon, obs.shape[1])
        noise = torch.randn(shape, generator=generator, device=obs.device)
        proposal, plans = self.imagine(situation, noise)
        action = self._planned(plans[:, :, 0], plans[:, :, 1])
        value = self._value(plans[:, :, 0], action)
        # A draw by softmax that, unlike torch.multinomial, lets values that are not finite through
        # to those who report them.
        race = torch.empty_like(value).exponential_(generator=generator)
        drawn = (value / config.q_temperature - race.log()).argmax(dim=1)
        each = torch.arange(len(obs), device=obs.device)
        chosen, count = plans[each, drawn], min(config.steps_planned, config.horizon - 1)
        candidates = self._decoded(plans, obs)
        return Plan(
            action=self._planned(chosen[:, :count], chosen[:, 1 : count + 1]),
            obs=candidates[each, drawn],
            stages={"proposal": self._decoded(proposal, obs)[:, 0]},
            candidates=candidates,
            calls=config.horizon - 1 + self.optimiser.calls(config.steps),
        )

    def follow(self, obs: Tensor, ahead: Tensor, /) -> Tensor:
        """The `Follower` contract: obs (B, O), ahead (B, H, O) -> (B, A)."""
        return self._planned(self.normaliser.encode(obs), self.normaliser.encode(ahead[:, 1]))

    def imagine(self, situation: Situation, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Rollouts and plans, both (B, N, H, O), standardised; noise (K, B, N, H, O)."""
        n = self.config.candidates
        obs = self.normaliser.encode(situation.history)
        wanted = self._wanted(situation)
        rollout = self.generator.rollout(
            obs.repeat_interleave(n, dim=0),
            wanted.repeat_interleave(n, dim=0),
            situation.remembered.repeat_interleave(n, dim=0),
            self.config.horizon - 1,
        )
        condition = wanted[:, -1].repeat_interleave(n)
        plans = self.optimiser.refine(rollout, condition, noise.flatten(1, 2))
        return rollout.unflatten(0, (-1, n)), plans.unflatten(0, (-1, n))

    def _wanted(self, situation: Situation) -> Tensor:
        """(B, C) scaled, not below the floor.

        Theirs puts the floor in step by step, which is the same unless rewards are negative.
        """
        wanted = situation.wanted
        if self.floor is not None:
            wanted = wanted.clamp(min=self.floor)
        return wanted / self.config.returns_scale

    def _planned(self, now: Tensor, ahead: Tensor) -> Tensor:
        action = self._action(now, ahead)
        return action.clamp(-1, 1) if self.config.clamp_action_eval else action

    def _action(self, now: Tensor, ahead: Tensor) -> Tensor:
        """(..., O), (..., O) standardised -> (..., A), not bounded."""
        action: Tensor = self.dynamics(torch.cat((now, ahead), dim=-1))
        return action

    def _value(self, obs: Tensor, action: Tensor) -> Tensor:
        """(..., O) standardised, (..., A) -> (...) return of those who acted, divided by the scale.

        Not of the best that could be done: it is regressed on what was collected.
        """
        value: Tensor = self.critic(torch.cat((obs, action), dim=-1)).squeeze(-1)
        return value

    def _decoded(self, rows: Tensor, obs: Tensor) -> Tensor:
        """(B, N, H, O) standardised -> in the environment's units, the first row obs (B, O)."""
        present = obs[:, None, None].expand(-1, rows.shape[1], 1, -1)
        return torch.cat((present, self.normaliser.decode(rows[:, :, 1:])), dim=2)


def _perceptron(
    inputs: int, outputs: int, width: int, activation: type[nn.Module]
) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, width),
        activation(),
        nn.Linear(width, width),
        activation(),
        nn.Linear(width, outputs),
    )
