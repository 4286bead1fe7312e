"""Hyperparameter search: trials on tuning seeds, then the run on others that reports the best.

What is chosen by its score is not judged by it: training seeds and evaluation episodes of the
search are other ones than those of the report, and the episodes spent on choosing are counted.
A trial is an ordinary run with its record. Its hyperparameters depend on the sampler's seed, its
number and the scores before it alone, so that a search that was killed goes on to the same trials.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from offdiff.config import RunConfig
from offdiff.core.errors import DivergedError, InputError
from offdiff.core.files import write_text
from offdiff.data.load import load_dataset
from offdiff.folder import IDENTITY, RunFolder
from offdiff.records import RunRecord
from offdiff.results import config_hash, plain
from offdiff.run import run
from offdiff.search_space import Parameter, Value, apply, grid
from offdiff.search_study import Trials

SUMMARY = "search.json"

Run = Callable[[RunConfig], list[RunRecord]]
"""What carries out a trial."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One configuration that was tried."""

    number: int
    values: dict[str, Value]
    score: float | None
    """Mean over the tuning seeds; None if training diverged."""
    scores: list[float]
    """Of every tuning seed."""
    unit: str
    """Of the scores: "score" (D4RL's), "return" for data without its constants, or empty."""
    online_episodes: int
    """Episodes that were played for this trial; none if an earlier one had the same values."""
    run: str
    """Folder of the run below that of the search's runs."""
    reason: str = ""
    """Why there is no score."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched, and how."""

    config: RunConfig
    """Of every run, but for what is searched; its seeds and evaluation seed are not used."""
    space: tuple[Parameter, ...]
    folder: Path
    """Where trials and results are kept."""
    trials: int = 20
    """How many; a grid ends when it is through."""
    sampler: Literal["tpe", "grid"] = "tpe"
    sampler_seed: int = 0
    tuning_seeds: tuple[int, ...] = (1000, 1001, 1002)
    report_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    tuning_eval_seed: int = 500_000
    """Of the episodes that trials are compared on."""

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise InputError(f"trials must be at least 1, got {self.trials}")
        if self.sampler_seed < 0:
            raise InputError(f"sampler_seed must be at least 0, got {self.sampler_seed}")
        if shared := sorted({*self.tuning_seeds} & {*self.report_seeds}):
            raise InputError(
                f"seeds {shared} are for tuning and for the report; what is chosen on a seed must "
                "not be judged on it: make them disjoint"
            )
        if self.tuning_eval_seed == self.config.eval_seed:
            raise InputError(
                f"tuning_eval_seed and eval_seed are both {self.config.eval_seed}; the report "
                "needs other episodes than the choice: change one"
            )
        replace(self.config, seeds=self.report_seeds)  # raises what is wrong with them
        self.of({})

    @property
    def runs(self) -> Path:
        """Folder of the trials' runs."""
        return self.folder / "runs"

    def of(self, values: Mapping[str, Value]) -> RunConfig:
        """The configuration of a trial."""
        tried = " ".join(f"{name}={value}" for name, value in values.items())
        return replace(
            apply(self.config, values),
            seeds=self.tuning_seeds,
            eval_seed=self.tuning_eval_seed,
            eval_every=0,  # a learning curve would cost episodes and decide nothing
            out=self.runs,
            wandb_group=self.config.wandb_group or f"search/{self.folder.name}",
            provenance=f"trial of the search {self.folder.name}: {tried}",
        )


@dataclass(frozen=True)
class Found:
    """What came of a search."""

    trials: list[Trial]
    """In the order of their numbers."""

    @property
    def unit(self) -> str:
        """Of the scores."""
        return next((trial.unit for trial in self.trials if trial.unit), "score")

    @property
    def best(self) -> Trial | None:
        """The trial of highest score, the first of equal ones; None if none has a score."""
        scored = [trial for trial in self.trials if trial.score is not None]
        return max(scored, key=lambda trial: trial.score or 0.0, default=None)

    @property
    def online_episodes(self) -> int:
        """Episodes that were played to choose."""
        return sum(trial.online_episodes for trial in self.trials)

    def provenance(self, search: Search) -> str:
        """For the record of a run with the best hyperparameters."""
        return (
            f"search of {len(self.trials)} trials with {self.online_episodes} online episodes "
            f"({search.sampler} seed {search.sampler_seed})"
        )


def search(
    wanted: Search,
    *,
    carry_out: Run | None = None,
    tell: Callable[[Trial], None] = lambda trial: None,
) -> Found:
    """Runs the trials that are still to be done; gives all of them, also in `search.json`.

    carry_out: runs a trial; `offdiff.run.run` without progress bars by default.
    tell: takes every trial in order, those of an earlier process first.
    Raises InputError if the folder holds another search, or for data without a simulator.
    """
    from filelock import FileLock, Timeout

    carry_out = carry_out or _run
    info = load_dataset(wanted.config.dataset, clip_actions=wanted.config.clip_actions).info
    if info.env_id is None:
        raise InputError(
            f"{wanted.config.dataset} has no simulator, so trials cannot be scored; `offdiff eval` "
            "estimates single policies without one"
        )
    wanted.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(wanted.folder / ".search.lock", timeout=0):
            return _search(wanted, info.name, info.sha256, carry_out, tell)
    except Timeout as error:
        raise InputError(
            f"another search is at work in {wanted.folder}; wait for it, or give another name"
        ) from error


def _search(
    wanted: Search, dataset: str, digest: str, carry_out: Run, tell: Callable[[Trial], None]
) -> Found:
    kept = Trials(wanted.folder, _protocol(wanted) | {"identity": wanted.of({}).identity(digest)})
    found = Found([Trial(**one) for one in kept.finished()])
    for trial in found.trials:
        tell(trial)
    combinations = list(grid(wanted.space)) if wanted.sampler == "grid" else []
    total = min(wanted.trials, len(combinations)) if combinations else wanted.trials
    for number in range(len(found.trials), total):
        if combinations:
            values = combinations[number]
        else:
            values = kept.propose(wanted.space, wanted.sampler_seed, number)
        config = wanted.of(values)
        hash_ = config_hash(config.identity(digest))
        folder = RunFolder(wanted.runs, dataset, config.method, config.seeds, hash_)
        same = next((t for t in found.trials if t.values == values), None)
        if same is not None:
            trial = replace(same, number=number, online_episodes=0)
        else:
            trial = _carry_out(number, values, config, folder, carry_out)
        kept.keep(wanted.space, values, trial.score, asdict(trial))
        found.trials.append(trial)
        _write(wanted, found)
        tell(trial)
    _write(wanted, found)
    return found


def _run(config: RunConfig) -> list[RunRecord]:
    return run(config, progress=False)


def _carry_out(
    number: int, values: dict[str, Value], config: RunConfig, folder: RunFolder, carry_out: Run
) -> Trial:
    begun = (folder.path / IDENTITY).exists()
    name = "/".join(folder.path.parts[-3:])
    try:
        records = carry_out(replace(config, resume=begun))
    except DivergedError as error:
        return Trial(number=number, values=values, score=None, scores=[], unit="",
                     online_episodes=0, run=name, reason=str(error))  # fmt: skip
    unit = "score" if all("score_mean" in record.eval for record in records) else "return"
    key = "score_mean" if unit == "score" else "mean"
    scores = [float(record.eval[key]) for record in records]
    return Trial(
        number=number,
        values=values,
        score=sum(scores) / len(scores),
        scores=scores,
        unit=unit,
        online_episodes=sum(int(record.eval["n_episodes"]) for record in records),
        run=name,
    )


def _protocol(wanted: Search) -> dict[str, Any]:
    """What decides which trials there are."""
    return {
        "method": wanted.config.method,
        "space": [str(parameter) for parameter in wanted.space],
        "sampler": wanted.sampler,
        "sampler_seed": wanted.sampler_seed,
        "tuning_seeds": list(wanted.tuning_seeds),
        "report_seeds": list(wanted.report_seeds),
        "report_eval_seed": wanted.config.eval_seed,
    }


def _write(wanted: Search, found: Found) -> None:
    """`search.json`: everything, whole at any time."""
    best = found.best
    content = {
        "name": wanted.folder.name,
        "provenance": found.provenance(wanted),
        "online_episodes": found.online_episodes,
        "unit": found.unit,
        "best": asdict(best) if best else None,
        **_protocol(wanted),
        "tuning_eval_seed": wanted.tuning_eval_seed,
        "trials_asked_for": wanted.trials,
        "trials": [asdict(trial) for trial in found.trials],
        "config": plain(wanted.of({})),
        "command": " ".join(["offdiff", *sys.argv[1:]]),
    }
    write_text(wanted.folder / SUMMARY, json.dumps(content, indent=1, allow_nan=False) + "\n")
