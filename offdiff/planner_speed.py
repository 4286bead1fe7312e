"""How long planners take to decide, measured in turns so that noise hits all of them alike.

A decision goes from an observation array of the host to an action array of the host: transfer,
normalisation, search, choice, transfer. The simulator is left out. Observations are a dataset's,
replayed one after the other with every memory full. Dimension letters: B environments,
R repetitions, N rows of the dataset, O observation.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from offdiff.checkpoint import SavedPlanner, load_planner, planner_config
from offdiff.core.errors import InputError
from offdiff.core.seeding import derive_seed
from offdiff.data.dataset import Dataset
from offdiff.planners.base import PlannerConfig
from offdiff.planners.task import Task
from offdiff.statistics import bootstrap

CONTROL_SECONDS = 0.02
"""A control rate of 50 Hz."""
SERVED = (1, 8, 64, 256)
"""Numbers of environments that are tried at the control rate."""
SERVED_DECISIONS, SERVED_LATE = 20, 1
"""Decisions timed for that, and how many of them may be late."""
SERVED_WARMUP = 3
DRAWS = 10_000
"""Bootstrap samples of an interval."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How many environments are decided for at once, and among how many candidates."""

    environments: int = 1
    candidates: int | None = None
    """None leaves the planner's own number; a planner that knows none decides for so many copies of
    every environment, so that all make equally many plans"""

    def __str__(self) -> str:
        text = f"{self.environments} environment{'s' if self.environments > 1 else ''}"
        return text if self.candidates is None else f"{text}, {self.candidates} candidates"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The decisions of one planner in one setting; a decision is one for all environments."""

    setting: str
    mean_ms: float
    p50_ms: float
    p95_ms: float
    first_ms: float
    """The very first decision, with what is set up only once"""
    plans_per_second: float
    """Environments over the mean"""
    calls: float
    """Sequential network calls of a decision"""
    ratio: float
    """Median over the turns of: this planner's time over that of the first planner"""
    ratio_low: float
    ratio_high: float
    """95 % bootstrap interval of the ratio"""


@dataclass(frozen=True, kw_only=True)
class PlannerSpeed:
    """What was found of one planner."""

    planner: str
    parameters: int
    config: Mapping[str, Any]
    """Horizon, stride, history and, where there are any, candidates, levels and network"""
    served: int
    """Largest of SERVED that is decided for at the control rate; 0 if not even one is"""
    timings: list[Timing]
    """In the order of the settings"""


def contender(
    source: str | Path, dataset: Dataset, device: torch.device, config: PlannerConfig | None = None
) -> SavedPlanner:
    """A planner to time: a run's, or by its name an untrained one, which takes the same time.

    source: folder of a run's seed, or registered name or module:Class. config: of a name; None for
    its defaults. Raises InputError for unknown names, for a planner that does not fit the dataset,
    and for a run on data of other sizes.
    """
    task = Task.of(dataset)
    if isinstance(source, Path):
        saved = load_planner(source, device)
        if (own := saved.task.spec) != task.spec:
            raise InputError(
                f"{source} plans for {own.obs_dim} observation and {own.action_dim} action "
                f"numbers, dataset {dataset.info.name} has {task.spec.obs_dim} and "
                f"{task.spec.action_dim}; name its own with --dataset"
            )
        return replace(saved, name=str(source))
    config = config or planner_config(source, {})
    planner = config.build(task).to(device).eval().requires_grad_(False)
    return SavedPlanner(name=source, config=config, task=task, planner=planner, device=device)


def measure(
    contenders: Sequence[SavedPlanner],
    dataset: Dataset,
    settings: Sequence[Setting],
    *,
    repeats: int,
    warmup: int,
    seed: int,
    progress: bool = False,
) -> list[PlannerSpeed]:
    """Times every planner in every setting; in each repetition every planner has one turn."""
    if repeats < 1 or warmup < 0 or not contenders:
        raise InputError("give at least one planner and one repeat, and no negative warm-up")
    timings: list[list[Timing]] = [[] for _ in contenders]
    obs, served = dataset.episodes.obs, []
    with Progress(console=Console(stderr=True), disable=not progress, transient=True) as bar:
        task = bar.add_task("", total=len(settings) * repeats + len(contenders))
        for setting in settings:
            bar.update(task, description=str(setting))
            replays = [_Replay(one, obs, setting, seed) for one in contenders]
            first = [replay.decide() for replay in replays]
            for replay in replays:
                replay.warm_up(warmup)
            turns: list[list[float]] = [[] for _ in replays]
            for turn in range(repeats):
                # Back and forth, so that nobody always follows the same planner.
                for i in range(len(replays))[:: 1 if turn % 2 == 0 else -1]:
                    turns[i].append(replays[i].decide())
                bar.advance(task)
            for i, replay in enumerate(replays):
                timings[i].append(_timing(setting, replay, first[i], turns[i], turns[0], seed))
        for one in contenders:
            bar.update(task, description="environments at 50 Hz")
            served.append(_served(one, obs, seed))
            bar.advance(task)
    return [
        PlannerSpeed(
            planner=one.name,
            parameters=sum(p.numel() for p in one.planner.parameters()),
            config=_sizes(one.config),
            served=at_once,
            timings=found,
        )
        for one, at_once, found in zip(contenders, served, timings, strict=True)
    ]


class _Replay:
    """A planner that decides on the observations of a dataset, one after the other."""

    def __init__(
        self, saved: SavedPlanner, obs: NDArray[np.float32], setting: Setting, seed: int
    ) -> None:
        # Every step a decision, whatever the planner would do between two plans.
        changes: dict[str, Any] = {"replan_every": 1}
        copies = 1
        if setting.candidates is not None and hasattr(saved.config, "candidates"):
            changes["candidates"] = setting.candidates
        elif setting.candidates is not None:
            copies = setting.candidates
        config = replace(saved.config, **changes)
        planner = config.build(saved.task)
        planner.load_state_dict(saved.planner.state_dict())
        planner = planner.to(saved.device).eval().requires_grad_(False)
        self.policy = replace(saved, config=config, planner=planner).policy(seed)
        self._obs, self._fill = obs, config.history
        random = np.random.default_rng(derive_seed(seed, "replayed rows"))
        self._rows = random.integers(len(obs), size=setting.environments).repeat(copies)

    def decide(self) -> float:
        """Seconds of one decision, the copies between host and device included."""
        # Beyond an episode's end come the next one's observations: only time is measured.
        obs = self._obs[self._rows]
        self._rows = (self._rows + 1) % len(self._obs)
        started = time.perf_counter()
        action = self.policy.act(torch.from_numpy(obs).to(self.policy.device))
        action.cpu().numpy()  # waits for the device
        return time.perf_counter() - started

    def warm_up(self, decisions: int) -> None:
        """So many decisions, at least as many as the planner remembers; then counts from 0."""
        for _ in range(max(decisions, self._fill)):
            self.decide()
        self.policy.decisions, self.policy.calls = 0, 0


def _timing(
    setting: Setting,
    replay: _Replay,
    first: float,
    seconds: Sequence[float],
    base: Sequence[float],
    seed: int,
) -> Timing:
    ms = 1e3 * np.array(seconds)
    ratios = np.array(seconds) / np.array(base)
    ratio = bootstrap(
        lambda drawn: np.median(drawn, axis=(-2, -1)),
        ratios[:, None],
        random=np.random.default_rng(derive_seed(seed, "bootstrap")),
        draws=DRAWS,
    )
    return Timing(
        setting=str(setting),
        mean_ms=float(ms.mean()),
        p50_ms=float(np.median(ms)),
        p95_ms=float(np.quantile(ms, 0.95)),
        first_ms=1e3 * first,
        plans_per_second=float(setting.environments / np.mean(seconds)),
        calls=replay.policy.calls / replay.policy.decisions,
        ratio=float(ratio.value),
        ratio_low=float(ratio.low),
        ratio_high=float(ratio.high),
    )


def _served(saved: SavedPlanner, obs: NDArray[np.float32], seed: int) -> int:
    """How many environments get their decisions in time, as the planner is configured."""
    in_time = 0
    for environments in SERVED:
        replay = _Replay(saved, obs, Setting(environments=environments), seed)
        replay.warm_up(SERVED_WARMUP)
        late = 0
        for _ in range(SERVED_DECISIONS):
            late += replay.decide() > CONTROL_SECONDS
            if late > SERVED_LATE:
                return in_time
        in_time = environments
    return in_time


def _sizes(config: PlannerConfig) -> dict[str, Any]:
    names = ("horizon", "stride", "history", "candidates", "levels", "network")
    return {name: getattr(config, name) for name in names if hasattr(config, name)}
