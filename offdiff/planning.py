"""A planner's run: trained seed by seed, evaluated and recorded as learners are."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from offdiff.algos.bc import BCConfig
from offdiff.checkpoint import CHECKPOINT, POLICY, load_planner, save_planner
from offdiff.config import RunConfig
from offdiff.core.numerics import keep_freed_memory, use_fastest_exact_matmul
from offdiff.data.dataset import Dataset
from offdiff.evaluate import evaluate
from offdiff.folder import RunFolder
from offdiff.loggers import CSVLogger
from offdiff.planners.base import PlannerConfig
from offdiff.planners.fit import PlannerFit, fit_planner
from offdiff.planners.task import Task
from offdiff.prepare import Prepared, prepare
from offdiff.records import RECORD, RunRecord, read_record
from offdiff.results import changed, code_version, peak_memory_mb, plain, system
from offdiff.tracking import Trackers
from offdiff.video import record_video

METRICS = "metrics.csv"
FILM = "policy.mp4"
FAR = 0.1
"""Share of the range of the data's returns beyond which a wanted return is far outside."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What all seeds share."""

    config: RunConfig
    planner: PlannerConfig
    dataset: Dataset
    task: Task
    prepared: Prepared
    folder: RunFolder
    identity: dict[str, Any]
    device: torch.device
    system: dict[str, Any]
    progress: bool


def run_planner(
    config: RunConfig,
    planner: PlannerConfig,
    dataset: Dataset,
    folder: RunFolder,
    device: torch.device,
    progress: bool,
) -> list[RunRecord]:
    """Trains and evaluates every seed, one after the other; gives their records, also on disk.

    A seed that has its record is not repeated; one that was trained is only evaluated.
    Raises InputError, before anything is written, for what cannot work.
    """
    identity = config.identity(dataset.info.sha256)
    # A planner sees the data as behaviour cloning does: scaled observations, rewards as they are.
    prepared, _ = prepare(dataset, BCConfig(), config.conversion)
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    kernels = use_fastest_exact_matmul() if device.type == "cpu" else "cublas"
    run = _Run(
        config=config,
        planner=planner,
        dataset=dataset,
        task=Task.of(dataset),
        prepared=prepared,
        folder=folder,
        identity=identity,
        device=device,
        system=system(device, kernels),
        progress=progress,
    )
    _warn_of_target(planner, run.task)
    first = _start(run, config.seeds[0])  # before the folder is begun: it may refuse the data
    folder.open(identity, resume=config.resume, overwrite=config.overwrite)
    records = []
    for seed in config.seeds:
        fit = first if seed == config.seeds[0] else _start(run, seed)
        records.append(_one_seed(run, fit, seed))
    folder.clean()
    return records


def _start(run: _Run, seed: int) -> PlannerFit:
    return PlannerFit.start(
        run.planner,
        run.task,
        run.dataset.episodes,
        updates=run.config.updates,
        seed=seed,
        device=run.device,
    )


def _one_seed(run: _Run, fit: PlannerFit, seed: int) -> RunRecord:
    """Training, evaluation and record of one seed, as far as they are still to be done."""
    place = run.folder.seed(seed)
    if (place / RECORD).exists():
        return read_record(place / RECORD)
    trained = (place / POLICY).exists()
    if not trained and (place / CHECKPOINT).exists() and fit.optimiser is not None:
        fit.load(place / CHECKPOINT, _identity(run, seed))
    steps = run.config.updates if trained else fit.steps
    with Trackers(run.config, run.folder, place, [seed], steps) as trackers:
        seconds = 0.0
        if not trained:
            started = time.perf_counter()
            _train(run, fit, place, seed, trackers)
            seconds = time.perf_counter() - started
        (place / CHECKPOINT).unlink(missing_ok=True)
        # Read back even when just trained: a resumed run must not differ from an unbroken one.
        outcome, cost = _evaluate(run, place, seed)
        record = _record(run, seed, outcome, {"train_seconds": seconds, **cost})
        record = run.folder.write(seed, record)
        trackers.finish([record])
    return record


def _identity(run: _Run, seed: int) -> str:
    return f"{run.folder.hash} seed {seed}"


def _train(run: _Run, fit: PlannerFit, place: Path, seed: int, trackers: Trackers) -> None:
    config = run.config
    lines = CSVLogger(place / METRICS, [seed], fit.steps)

    def log(update: int, row: Mapping[str, float]) -> None:
        lines.log(update, [row])
        for tracker in trackers.each:
            tracker.log(update, [row])

    try:
        module = fit_planner(
            fit,
            place / CHECKPOINT,
            _identity(run, seed),
            log=log,
            log_every=config.log_every,
            checkpoint_seconds=config.checkpoint_seconds,
            title=f"{config.name}, seed {seed}",
            progress=run.progress,
        )
    finally:
        lines.close()
    save_planner(place / POLICY, module, config.name, run.planner, run.task)


def _evaluate(run: _Run, place: Path, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The final evaluation as a record keeps it, and what it cost."""
    info, config = run.dataset.info, run.config
    if info.env_id is None:
        return {}, {"eval_seconds": 0.0}
    saved = load_planner(place / POLICY, run.device)
    policy = saved.policy(seed)
    started = time.perf_counter()
    result = evaluate(
        policy,
        info.env_id,
        episodes=config.final_episodes,
        seed=config.eval_seed,
        max_episode_steps=info.max_episode_steps,
        action_mode=f"a plan every {run.planner.replan_every} steps",
        progress=run.progress,
    )
    cost = {
        "eval_seconds": time.perf_counter() - started,
        "decision_seconds": policy.seconds / max(1, policy.decisions),
        "calls_per_decision": policy.calls / max(1, policy.decisions),
    }
    if config.video:
        record_video(
            saved.policy(seed),
            info.env_id,
            place / FILM,
            seed=config.eval_seed,
            max_episode_steps=info.max_episode_steps,
            progress=run.progress,
        )
    return run.prepared.score(result), cost


def _record(run: _Run, seed: int, outcome: dict[str, Any], cost: dict[str, Any]) -> RunRecord:
    config = run.config
    seconds = cost["train_seconds"]
    return RunRecord(
        run_id=run.folder.run_id(seed),
        status="finished",
        code=code_version(),
        config={
            "resolved": plain(config),
            "config_hash": run.folder.hash,
            "diff_from_default": changed(run.planner),
        },
        data=run.prepared.record,
        seeds={"train": seed, "trained_together": [seed], "eval_base": config.eval_seed},
        algo={
            "name": config.name,
            "kind": "planner",
            "n_gradient_steps": config.updates,
            "batch_size": run.planner.batch_size,
            "wanted_return": run.planner.target(run.task),
            "hyperparameter_provenance": config.provenance,
        },
        eval=outcome,
        curve=[],
        system=run.system,
        cost={
            **cost,
            "updates_per_second": config.updates / seconds if seconds else 0.0,
            "replicas_in_process": 1,
            "peak_memory_mb": peak_memory_mb(run.device),
        },
    )


def _warn_of_target(planner: PlannerConfig, task: Task) -> None:
    """Says on stderr when the wanted return lies far outside the data's."""
    low, high = task.returns
    wanted, margin = planner.target(task), FAR * (high - low)
    if not low - margin <= wanted <= high + margin:
        print(
            f"offdiff: the wanted return of {wanted:g} lies far outside the data's, which go from "
            f"{low:g} to {high:g}: plans will be extrapolations",
            file=sys.stderr,
        )
