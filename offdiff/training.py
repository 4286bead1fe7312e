"""The one training loop: updates, logs, evaluations, checkpoints, exact resume."""

import bisect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offdiff.core.errors import DivergedError, InputError
from offdiff.core.protocols import Learner, Replay
from offdiff.core.seeding import SeedStreams
from offdiff.core.tensors import load_tensors, save_tensors
from offdiff.core.types import Metrics
from offdiff.loggers import Logger, ProgressBar

Row = dict[str, float]
Evaluate = Callable[[int], list[Row]]
"""Update -> one mapping of evaluation metrics per seed."""


@dataclass
class Training:
    """A run in progress: everything that later updates depend on."""

    learner: Learner
    replay: Replay
    batches: SeedStreams
    """Draws the batches' indices."""
    noise: SeedStreams
    """Draws the learner's initial weights, noise and dropout."""
    synthetic: SeedStreams | None = None
    """Draws the synthetic part of the batches."""
    updates: int = 0
    """Gradient steps done."""
    seconds: float = 0.0
    """Time spent in them."""
    generation_seconds: float = 0.0
    """Time spent in generating synthetic experience and looking at it."""
    curve: list[list[Row]] = field(default_factory=list)
    """Evaluations so far: one entry per evaluation, one mapping per seed."""

    def save(self, path: Path, config_hash: str) -> None:
        """Writes the state atomically; a kill at any moment leaves the old or the new one."""
        tensors = _prefixed("learner", self.learner.state_dict())
        tensors |= _prefixed("batches", self.batches.state_dict())
        tensors |= _prefixed("noise", self.noise.state_dict())
        if self.synthetic is not None:
            tensors |= _prefixed("synthetic", self.synthetic.state_dict())
        meta = {
            "kind": "checkpoint",
            "config_hash": config_hash,
            "updates": self.updates,
            "seconds": self.seconds,
            "generation_seconds": self.generation_seconds,
            "curve": self.curve,
        }
        save_tensors(path, tensors, meta)

    def load(self, path: Path, config_hash: str) -> None:
        """Continues from a saved state. Raises InputError if it is another configuration's."""
        tensors, meta = load_tensors(path)
        if meta.get("kind") != "checkpoint" or meta["config_hash"] != config_hash:
            raise InputError(
                f"{path} belongs to configuration {meta.get('config_hash')}, this run is "
                f"{config_hash}; give the options of the first call, or another --out"
            )
        self.learner.load_state_dict(_own("learner", tensors))
        self.batches.load_state_dict(_own("batches", tensors))
        self.noise.load_state_dict(_own("noise", tensors))
        if self.synthetic is not None:
            self.synthetic.load_state_dict(_own("synthetic", tensors))
        self.updates, self.seconds = meta["updates"], meta["seconds"]
        self.generation_seconds = meta["generation_seconds"]
        self.curve = meta["curve"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When things happen, in gradient steps, but for checkpoints."""

    updates: int
    batch_size: int
    log_every: int
    eval_every: int
    """0: only after the last update."""
    checkpoint_seconds: float
    """Least time between two checkpoints; their moments do not influence the result."""
    generations: Sequence[int] = ()
    """Rising updates before which synthetic experience is generated."""

    def next_stop(self, update: int) -> int:
        """The next update after which something is logged, evaluated or generated."""
        periods = [self.log_every] + [self.eval_every] * (self.eval_every > 0)
        regular = ((update // period + 1) * period for period in periods)
        following = bisect.bisect_right(self.generations, update)
        return min([self.updates, *regular, *self.generations[following : following + 1]])

    def evaluates_at(self, update: int) -> bool:
        """True where the learning curve has a point; the end is left to the final evaluation."""
        return self.eval_every > 0 and update % self.eval_every == 0 and update < self.updates


def train(
    training: Training,
    schedule: Schedule,
    *,
    evaluate: Evaluate,
    loggers: Sequence[Logger],
    progress: ProgressBar,
    save: Callable[[], None],
    generate: Callable[[int], None] | None = None,
) -> None:
    """Brings `training` to the schedule's last update.

    generate: called before the updates of `schedule.generations`, with a checkpoint just saved.
    Raises InputError if a metric stops being finite; the last checkpoint is then from before.
    """
    last_save = time.monotonic()
    while training.updates < schedule.updates:
        if generate is not None and training.updates in schedule.generations:
            save()
            begun = time.perf_counter()
            generate(training.updates)
            training.generation_seconds += time.perf_counter() - begun
        start, begun = training.updates, time.perf_counter()
        stop = schedule.next_stop(start)
        totals = _update_until(training, stop, schedule.batch_size, progress)
        rows = _rows(totals, stop - start)
        training.seconds += time.perf_counter() - begun
        _require_finite(rows, stop)
        if schedule.evaluates_at(stop):
            scores = evaluate(stop)
            training.curve.append([{"update": stop, **score} for score in scores])
            rows = [{**row, **score} for row, score in zip(rows, scores, strict=True)]
        for logger in loggers:
            logger.log(stop, rows)
        progress.show(rows)
        done = stop == schedule.updates
        if done or time.monotonic() - last_save >= schedule.checkpoint_seconds:
            save()
            last_save = time.monotonic()


def _update_until(
    training: Training, stop: int, batch_size: int, progress: ProgressBar
) -> dict[str, Tensor]:
    """Gradient steps up to `stop`; gives the sums of their metrics, still on the device."""
    totals: dict[str, Tensor] = {}
    shown = training.updates
    while training.updates < stop:
        batch = training.replay.sample(batch_size, random=training.batches)
        add_metrics(totals, training.learner.update(batch))
        training.updates += 1
        if training.updates - shown == 50 or training.updates == stop:
            progress.advance(training.updates - shown)
            shown = training.updates
    return totals


def add_metrics(totals: dict[str, Tensor], metrics: Metrics) -> None:
    """Adds metrics to their running sums, on the device: nothing waits for it."""
    for name, value in metrics.items():
        if name in totals:
            totals[name].add_(value)
        else:
            totals[name] = value.clone()


def _rows(totals: dict[str, Tensor], count: int) -> list[Row]:
    """Means over the interval, read from the device at once: one mapping per seed."""
    table = (torch.stack(list(totals.values()), dim=1) / count).tolist()
    return [dict(zip(totals, values, strict=True)) for values in table]


def _require_finite(rows: Sequence[Row], update: int) -> None:
    for position, row in enumerate(rows):
        for name, value in row.items():
            if not math.isfinite(value):
                raise DivergedError(
                    f"{name} of seed number {position} became {value} before update {update}; "
                    "lower the learning rates or check the rewards' scale (the last checkpoint "
                    "is from before)"
                )


def _prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{key}": tensor for key, tensor in state.items()}


def _own(prefix: str, tensors: dict[str, Any]) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)}
