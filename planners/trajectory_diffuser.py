"""Trajectory Diffuser, repaired: a fast model proposes a plan, a few diffusion steps improve it.

Huang et al. 2024, arXiv 2407.16142; what was repaired and why: DESIGN.md. Dimension letters:
B environments, N candidates, C remembered steps, H rows of a plan, O observation.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Self

import torch
from torch import Tensor

from offdiff.core.planning import Plan, Situation
from offdiff.data.plan_windows import PlanBatch
from offdiff.diffusion.anchors import kmeans
from offdiff.diffusion.sampling import karras_sigmas, sample_ddim
from offdiff.planners.base import PlannerConfig, PlannerModule, require_horizon
from offdiff.planners.diffuser import SIGMA_MAX, SIGMA_MIN
from offdiff.planners.frame import PlanFrame
from offdiff.planners.generator import Generator
from offdiff.planners.known import known_rows, start_mask
from offdiff.planners.parts import InverseDynamics, StateValue, choose, pick
from offdiff.planners.sequence import SequenceDenoiser, SequenceLaw, sample_given, sequence_loss
from offdiff.planners.task import Task

ANCHORS = 256
"""Typical windows of the data, of which the nearest is a proposal that costs no call."""
GENERATOR_WINDOWS = 64
"""Windows of a batch that the generator learns from: it learns at every row of each."""


@dataclass(frozen=True, kw_only=True)
class TrajectoryDiffuserConfig(PlannerConfig):
    """Trajectory Diffuser at a laptop's sizes; `--preset paper` for larger ones.

    `trajectory-diffuser-released` keeps the arithmetic of the authors' code.
    """

    history: int = 4
    """Observations that a proposal looks back on, the present one included."""
    candidates: int = 8
    """Plans per decision, refined from one proposal with different noise."""
    levels: int = 2
    """Denoising steps; 0 follows the proposal as it is."""
    start: Literal["proposal", "anchors", "noise"] = "proposal"
    """What the denoising starts from: the proposal with as much noise as it errs; what the data did
    from states like this one (DiffusionDrive), which takes no network call; or noise."""
    start_level: float | None = None
    """Noise on proposals and anchors, in standard deviations of the data; None: their measured
    error."""
    warm_start: bool = False
    """Take the plan before, moved on, for the proposal wherever it came true."""
    guidance: float = 1.0
    """Weight of classifier-free guidance: 0 ignores the wanted return, 1 only conditions on it;
    others cost twice the time."""
    temperature: float = 0.0
    """Of the choice among candidates; 0 takes the one of highest value."""
    expectile: float = 0.7
    """Of the state value that ranks candidates."""
    network: str = "mlp-256"
    """Of the denoiser; names of `offdiff.diffusion.networks`."""
    generator_width: int = 64
    """Of the transformer that proposes, a multiple of 4."""
    generator_depth: int = 2
    """Its blocks."""
    generator_noise: float = 0.02
    """Noise on its inputs in training, in standard deviations: it will read its own output."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden widths of inverse dynamics and value."""
    pin_goal: bool = True
    """Where observations hold a goal: the last row of a plan is there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start == "noise" and self.levels == 0:
            raise ValueError("levels must be at least 1 to start from noise")
        if self.start_level is not None and not 0 < self.start_level <= SIGMA_MAX:
            raise ValueError(f"start_level must lie in (0, {SIGMA_MAX:g}], got {self.start_level}")
        if self.generator_width % 4 or self.generator_width < 4 or self.generator_depth < 1:
            raise ValueError("generator_width must be a multiple of 4, generator_depth at least 1")
        if not 0 <= self.generator_noise <= 1:
            raise ValueError(f"generator_noise must lie in [0, 1], got {self.generator_noise}")

    @property
    def window(self) -> int:
        """The past that a proposal looks back on, and the plan."""
        return self.history + self.horizon - 1

    def at_paper_size(self) -> Self:
        """The sizes of the trajectory_diffuser specification, section 14."""
        return replace(
            self, history=15, levels=5, guidance=1.2, network="temporal-64", batch_size=256,
            generator_width=256, generator_depth=4, learning_rate=2e-4,
        )  # fmt: skip

    def build(self, task: Task) -> "TrajectoryDiffuser":
        """The planner before its first step."""
        require_horizon(self, task, 2)
        return TrajectoryDiffuser(self, task)


class TrajectoryDiffuser(PlannerModule):
    """Generator, denoiser, inverse dynamics and state value, each with a loss of its own."""

    known: Tensor
    start: Tensor
    errors: Tensor
    anchors: Tensor

    def __init__(self, config: TrajectoryDiffuserConfig, task: Task) -> None:
        super().__init__()
        self.config, self.task, spec = config, task, task.spec
        self.frame = PlanFrame(task, config.horizon)
        self.generator = Generator(
            spec.obs_dim, width=config.generator_width, depth=config.generator_depth
        )
        self.denoiser = SequenceDenoiser(
            config.network, spec.obs_dim, config.horizon, conditional=True
        )
        self.inverse = InverseDynamics(task, config.hidden)
        self.value = StateValue(spec.obs_dim, config.hidden)
        known = start_mask(config.horizon, spec.obs_dim, spec.obs_dim, task.goal)
        self.register_buffer("known", known, persistent=False)
        self.register_buffer("start", torch.tensor(1.0))
        self.register_buffer("errors", torch.zeros(config.horizon))
        if config.start == "anchors":
            self.register_buffer("anchors", torch.zeros(ANCHORS, config.horizon, spec.obs_dim))

    def begin(self, batch: PlanBatch, /) -> None:
        """Measures the spreads of plans, and their clusters."""
        self.frame.begin(batch)
        if self.config.start == "anchors":
            rows = self.frame.encode(batch.obs[:, : self.config.horizon])
            generator = torch.Generator(rows.device).manual_seed(0)
            found = kmeans(rows, ANCHORS, restarts=2, rounds=30, generator=generator)
            self.anchors.copy_(found.centres)

    def losses(self, batch: PlanBatch, /, *, generator: torch.Generator) -> dict[str, Tensor]:
        """Of the four parts; the denoiser learns from the first H rows of a window."""
        c = self.config
        obs = self.frame.standardise(batch.obs)
        to_go = self.task.condition(batch.to_go)
        rows = self.frame.encode(batch.obs[:, : c.horizon])
        counts = batch.counts[:, : c.horizon, None].expand_as(rows)
        few = slice(0, GENERATOR_WINDOWS)
        noise = torch.randn(obs[few].shape, generator=generator, device=obs.device)
        return {
            "generator": self.generator.loss(
                obs[few],
                to_go[few],
                batch.counts[few],
                unit=self._unit,
                noise=c.generator_noise * noise,
            ),
            "denoiser": sequence_loss(
                self.denoiser, rows, self.known, counts, to_go[:, 0], SequenceLaw(),
                generator=generator,
            ),
            "inverse": self.inverse.loss(self.frame, batch),
            "value": self.value.loss(
                obs, batch, scale=self.task.value_scale(c.discount), expectile=c.expectile
            ),
        }  # fmt: skip

    def calibrate(self, held: PlanBatch, /, *, generator: torch.Generator) -> None:
        """Measures how far proposals are off: as much noise is put on them (spec 14.4)."""
        past, rows = self.config.history, self.config.horizon
        if self.config.start == "anchors":
            proposal = self._nearest(held.obs[:, past - 1])
        else:
            obs, to_go = self.frame.standardise(held.obs), self.task.condition(held.to_go)
            ahead = self.generator.rollout(
                obs[:, :past], to_go[:, :past], held.real[:, :past], rows - 1, unit=self._unit
            )
            proposal = self._as_rows(held.obs[:, past - 1], ahead)
        later = held.counts[:, past - 1 :, None].expand_as(proposal)
        square = (proposal - self.frame.encode(held.obs[:, past - 1 :])).square() * later
        error = (square.sum((0, 2)) / later.sum((0, 2)).clamp(min=1)).sqrt()
        self.errors.copy_(error)
        self.start.copy_(error[1:].median().clamp(SIGMA_MIN, SIGMA_MAX))

    def plan(self, situation: Situation, /, *, generator: torch.Generator) -> Plan:
        """Proposal, candidates refined from it, the one of highest value."""
        c, n = self.config, self.config.candidates
        goal = self.task.goal if c.pin_goal else None
        decided, known = known_rows(situation, c.horizon, goal)
        values = self.frame.encode(decided)
        proposal, calls = values, 0
        if c.start == "proposal":
            proposal, calls = self._propose(situation)
        elif c.start == "anchors":
            proposal = self._nearest(situation.obs)
        proposal = torch.where(known, values, proposal)
        candidates = proposal[:, None]
        if c.levels:
            condition = self.task.condition(situation.wanted[:, -1])
            refined = self._refine(
                *(t.repeat_interleave(n, 0) for t in (proposal, values, known, condition)),
                generator=generator,
            )
            candidates = refined.unflatten(0, (-1, n))
        imagined = self.frame.decode_given(candidates, decided[:, None], known[:, None])
        worth = self.value(self.frame.standardise(imagined[:, :, 1:])).mean(-1)
        best = choose(worth, temperature=c.temperature, generator=generator)
        obs = pick(imagined, best)
        return Plan(
            action=self.inverse.steer(self.frame, obs, c.steps_planned),
            obs=obs,
            stride=c.stride,
            stages={} if c.start == "noise" else {"proposal": self.frame.decode(proposal)},
            candidates=imagined,
            calls=calls + c.levels,
        )

    def follow(self, obs: Tensor, ahead: Tensor, /) -> Tensor:
        """The action that leads to where the plan is one row later."""
        action: Tensor = self.inverse(self.frame, obs, ahead[:, 1])
        return action

    def start_sigma(self) -> float:
        """The level at which denoising starts."""
        if self.config.start == "noise":
            return SIGMA_MAX
        return self.config.start_level or float(self.start)

    def _propose(self, situation: Situation) -> tuple[Tensor, int]:
        """(B, H, O) proposed rows and how many network calls they took."""
        previous, follows, steps = situation.previous, situation.follows, self.config.horizon - 1
        if not self.config.warm_start or previous is None or follows is None:
            return self._rolled_out(situation, steps), steps
        # Held as far as the noise that is put on it can mend.
        off = self.frame.step(previous[:, 0], situation.obs).square().mean(-1).sqrt()
        held = follows & (off <= self.start_sigma())
        rows = self.frame.encode(torch.cat((situation.obs[:, None], previous[:, 1:]), dim=1))
        if held.all():
            return rows, 0
        rows[~held] = self._rolled_out(situation.rows(~held), steps)
        return rows, steps

    def _rolled_out(self, situation: Situation, steps: int) -> Tensor:
        """(B, H, O) rows by the generator."""
        ahead = self.generator.rollout(
            self.frame.standardise(situation.history),
            self.task.condition(situation.wanted),
            situation.remembered,
            steps,
            unit=self._unit,
        )
        return self._as_rows(situation.obs, ahead)

    def _nearest(self, obs: Tensor) -> Tensor:
        """(B, H, O) rows of the anchors that begin nearest to the observations (B, O).

        One for all candidates: the value would follow another, which begins elsewhere, for that.
        """
        distance = torch.cdist(self.frame.standardise(obs), self.anchors[:, 0])
        return self.anchors[distance.argmin(dim=1)]

    @property
    def _unit(self) -> Tensor:
        """(O,) what one row usually brings, in standard deviations."""
        return self.frame.spread[1] / self.frame.std

    def _as_rows(self, obs: Tensor, ahead: Tensor) -> Tensor:
        """(B, O) and standardised (B, H - 1, O) -> (B, H, O) rows."""
        later = ahead * self.frame.std + self.frame.mean
        return self.frame.encode(torch.cat((obs[:, None], later), dim=1))

    def _refine(
        self,
        rows: Tensor,
        values: Tensor,
        known: Tensor,
        condition: Tensor,
        *,
        generator: torch.Generator,
    ) -> Tensor:
        """Noise of the proposal's error, and off again: levels steps of the probability flow."""
        c, start = self.config, self.start_sigma()
        noise = torch.randn(rows.shape, generator=generator, device=rows.device)
        noisy = start * noise if c.start == "noise" else rows + start * noise
        sigmas = karras_sigmas(c.levels, min(SIGMA_MIN, start), start)
        denoise = self.denoiser.given(values, known, condition, weight=c.guidance)
        return sample_given(partial(sample_ddim, sigmas=sigmas), denoise, noisy, values, known)
