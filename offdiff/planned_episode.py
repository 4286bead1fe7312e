"""One episode with a planner, and everything that it imagined on the way.

Dimension letters: T steps, P plans, H rows of a plan, N candidates, O observation, A action.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from offdiff.core.planning import Plan
from offdiff.environments import Simulator
from offdiff.mazes import Maze
from offdiff.planners.policy import PlannerPolicy
from offdiff.waypoints import Route

FloatArray = NDArray[np.float32]

CANDIDATES_KEPT = 16
"""Of every plan, for pictures: all those of a long episode could fill the memory."""


@dataclass(frozen=True, kw_only=True)
class Imagined:
    """A plan and the step of the episode at which it was made."""

    step: int
    obs: FloatArray
    """(H, O)"""
    stride: int
    stages: Mapping[str, FloatArray]
    """Name -> (H, O)"""
    candidates: FloatArray | None
    """(N, H, O), at most CANDIDATES_KEPT of them"""

    @property
    def steps(self) -> NDArray[np.int64]:
        """(H,) step of the episode that every row is meant for."""
        return self.step + self.stride * np.arange(len(self.obs))


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """How well observations so many steps ahead were imagined.

    Distances are root mean squares over the observation's numbers, each in standard deviations of
    the data, averaged over the plans of which the episode shows the outcome.
    """

    steps: int
    distance: float
    """Between imagined and executed observation"""
    moved: float
    """Between the observation then and the one that the plan was made at: what standing still
    would have been off"""
    plans: int


@dataclass(frozen=True, kw_only=True)
class PlannedEpisode:
    """What was seen, done and imagined."""

    env_id: str
    seed: int
    """That the simulator was reset with"""
    goal: tuple[float, ...]
    """That it was given; () if it drew one or has none"""
    max_episode_steps: int
    obs: FloatArray
    """(T + 1, O)"""
    action: FloatArray
    """(T, A) in [-1, 1]"""
    rewards: list[float]
    """T"""
    success: bool | None
    """Whether any step reported success; None if the environment does not"""
    plans: list[Imagined]
    """In the order of their making; none if the planner imagines no observations"""
    decisions: int
    seconds: float
    """Spent on all decisions"""
    calls: int
    """Sequential network calls of all decisions"""
    maze: Maze | None

    @property
    def total(self) -> float:
        """The return."""
        return sum(self.rewards)


def play_planned(
    policy: PlannerPolicy,
    simulator: Simulator,
    *,
    seed: int,
    goal: Sequence[float] = (),
    route: Route | None = None,
    progress: bool = False,
) -> PlannedEpisode:
    """Plays one episode to its end. seed, goal: of the simulator; the policy has its own seed.

    Raises InputError for a goal that cannot be set and for a planner that ignores the route.
    """
    obs = simulator.reset(seed, goal)
    device = policy.device
    policy.begin(policy.seed)
    policy.reset(torch.ones(1, dtype=torch.bool, device=device))
    seen, rewards = [obs], []
    done: list[FloatArray] = []
    plans: list[Imagined] = []
    success: bool | None = None
    ended = False
    with Progress(console=Console(stderr=True), disable=not progress, transient=True) as bar:
        task = bar.add_task("planning", total=simulator.max_episode_steps)
        while not ended:
            time, before = len(done), policy.decisions
            if route is not None:
                policy.pinning = route.pinning(time)
            # A copy: the policy keeps what it was given.
            action = policy.act(torch.from_numpy(obs[None].copy()).to(device))
            plan = policy.last_plan
            if policy.decisions > before and plan is not None:
                if route is not None:
                    route.require_kept(plan, time, policy.name)
                plans += _imagined(plan, time)
            done.append(action[0].cpu().numpy())
            step = simulator.step(done[-1])
            policy.observe(torch.tensor([step.reward], dtype=torch.float32, device=device))
            obs, ended = step.obs, step.ended
            seen.append(obs)
            rewards.append(step.reward)
            if step.success is not None:
                success = bool(success) or step.success
            bar.advance(task)
    spec = simulator.env.spec
    return PlannedEpisode(
        env_id=spec.id if spec else str(simulator.env),
        seed=seed,
        goal=tuple(goal),
        max_episode_steps=simulator.max_episode_steps,
        obs=np.stack(seen),
        action=np.stack(done),
        rewards=rewards,
        success=success,
        plans=plans,
        decisions=policy.decisions,
        seconds=policy.seconds,
        calls=policy.calls,
        maze=simulator.maze,
    )


def imagination(episode: PlannedEpisode, std: Sequence[float]) -> list[Ahead]:
    """How far off plans were 1, 2, 4, 8... rows ahead, and in their last row.

    std: (O,) standard deviations of the data. Empty if no plan reaches a row ahead.
    """
    scale = np.array(std)
    rows = max((len(plan.obs) for plan in episode.plans), default=0)
    wanted = sorted({2**k for k in range(rows.bit_length()) if 2**k < rows} | {rows - 1} - {-1, 0})
    found = []
    for row in wanted:
        pairs = [
            (plan.obs[row], episode.obs[plan.steps[row]], episode.obs[plan.step])
            for plan in episode.plans
            if row < len(plan.obs) and plan.steps[row] < len(episode.obs)
        ]
        if not pairs:
            continue
        imagined, then, now = np.array(pairs, np.float64).swapaxes(0, 1) / scale
        found.append(
            Ahead(
                steps=row * episode.plans[0].stride,
                distance=float(rms(imagined - then).mean()),
                moved=float(rms(now - then).mean()),
                plans=len(pairs),
            )
        )
    return found


def refinements(episode: PlannedEpisode, std: Sequence[float]) -> dict[str, NDArray[np.float64]]:
    """Stage -> (P, H) distance of every row from the plan's final form, as in `Ahead`."""
    names = episode.plans[0].stages if episode.plans else {}
    return {
        name: np.stack([rms((p.stages[name] - p.obs) / np.array(std)) for p in episode.plans])
        for name in names
    }


def rms(difference: NDArray[np.floating]) -> NDArray[np.float64]:
    """(..., O) -> (...) root mean square."""
    return np.asarray(np.sqrt(np.square(difference, dtype=np.float64).mean(-1)))


def _imagined(plan: Plan, time: int) -> list[Imagined]:
    """The plan of the only environment, on the host; [] if it imagines nothing."""
    if plan.obs is None:
        return []
    candidates = plan.candidates
    return [
        Imagined(
            step=time,
            obs=plan.obs[0].cpu().numpy(),
            stride=plan.stride,
            stages={name: value[0].cpu().numpy() for name, value in plan.stages.items()},
            candidates=None
            if candidates is None
            else candidates[0, :CANDIDATES_KEPT].cpu().numpy().copy(),
        )
    ]
