"""RunConfig -> trained, evaluated policies and their records."""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from offdiff.augment.base import Source
from offdiff.checkpoint import CHECKPOINT, POLICY, save_policy
from offdiff.config import RunConfig
from offdiff.core.files import require_writable, scratch_folder
from offdiff.core.numerics import choose_device, keep_freed_memory, use_fastest_exact_matmul
from offdiff.core.protocols import Learner, Replay
from offdiff.core.seeding import SeedStreams
from offdiff.data.load import load_dataset
from offdiff.data.places import cache_dir
from offdiff.environments import make_simulator
from offdiff.evaluate import Evaluation, evaluate
from offdiff.folder import ROWS, RunFolder
from offdiff.loggers import CSVLogger, ProgressBar
from offdiff.planning import run_planner
from offdiff.policy import DeployedPolicy
from offdiff.prepare import Prepared, open_replay, prepare
from offdiff.records import RunRecord
from offdiff.results import changed, code_version, config_hash, peak_memory_mb, plain, system
from offdiff.synthesis import Synthesis, generations, start_synthesis
from offdiff.tracking import Trackers
from offdiff.training import Row, Schedule, Training, train
from offdiff.video import record_video, require_encoder

FILM = "policy.mp4"
Probe = Callable[[Learner, Prepared, int], Sequence[Row]]
"""Learner, data, update -> further numbers, one mapping per seed."""


def run(config: RunConfig, *, progress: bool = True, probe: Probe | None = None) -> list[RunRecord]:
    """Trains and evaluates every seed; gives one record per seed, also written to disk.

    A finished run of the same configuration is not repeated: its records are read and given.
    probe: asked at every point of a learner's curve, which then holds its numbers too. It must not
    change the learner, nor have a say in the result: runs are told apart by `config` alone.
    Raises InputError, before anything is written, for what cannot work.
    """
    device = choose_device(config.device)
    require_writable(config.out)
    with ExitStack() as stack:
        # Columns of a file that memory may not hold; only until the replay is written.
        scratch = stack.enter_context(scratch_folder(config.out)) if config.memory_mapped else None
        dataset = load_dataset(config.dataset, clip_actions=config.clip_actions, scratch=scratch)
        identity = config.identity(dataset.info.sha256)
        folder = RunFolder(
            config.out, dataset.info.name, config.method, config.seeds, config_hash(identity)
        )
        if not config.overwrite and (finished := folder.records()):
            folder.clean()  # a kill may have come between the last record and the clean-up
            print(f"offdiff: {folder.path} is finished; --overwrite runs it again", file=sys.stderr)
            return finished
        require_simulator(dataset.info.env_id)
        if config.video:
            require_encoder(Path(FILM))
        if config.planner is not None:
            return run_planner(config, config.planner, dataset, folder, device, progress)
        prepared, transitions = prepare(dataset, config.algo, config.conversion)
        torch.set_num_threads(config.threads)
        keep_freed_memory()
        kernels = use_fastest_exact_matmul() if device.type == "cpu" else "cublas"
        source = Source(
            episodes=transitions.episodes,
            info=dataset.info,
            device=device,
            cache=cache_dir(),
            progress=progress,
        )
        # Before the folder is begun: it may refuse the data. What it trains goes to the cache.
        augmenter = config.augment.build(source) if config.augment else None
        folder.open(identity, resume=config.resume, overwrite=config.overwrite)
        rows = folder.path / ROWS if config.memory_mapped else None
        replay = open_replay(transitions, prepared.spec, device, rows)
        training = _start(config, prepared, replay, device)
        synthesis = None
        if augmenter is not None:
            synthesis = start_synthesis(
                config, augmenter, source, prepared, transitions, training, folder
            )
        del dataset, transitions, source  # the replay holds what is needed

    if config.resume and (folder.path / CHECKPOINT).exists():
        training.load(folder.path / CHECKPOINT, folder.hash)
        if synthesis is not None:
            synthesis.restore(training)
    with Trackers(config, folder, folder.path, config.seeds, training.updates) as trackers:
        _train(config, prepared, training, folder, progress, synthesis, trackers, probe)
        context = _Context(
            config, prepared, training, folder, identity, system(device, kernels), synthesis
        )
        records = [_finish(context, position, progress) for position in range(len(config.seeds))]
        trackers.finish(records)
    folder.clean()
    return records


def require_simulator(env_id: str | None) -> None:
    """Raises InputError now, not after hours of training, if the environment cannot be made."""
    if env_id is not None:
        with make_simulator(env_id):
            pass


@dataclass(frozen=True)
class _Context:
    """What the records of all seeds share."""

    config: RunConfig
    prepared: Prepared
    training: Training
    folder: RunFolder
    identity: dict[str, Any]
    system: dict[str, Any]
    synthesis: Synthesis | None


def _start(config: RunConfig, prepared: Prepared, replay: Replay, device: torch.device) -> Training:
    noise = SeedStreams(config.seeds, "learner", device)
    learner = config.algo.build(prepared.spec, random=noise, updates=config.updates, device=device)
    # Indices of a memory-mapped store are used by the host.
    sampling = torch.device("cpu") if config.memory_mapped else device
    batches = SeedStreams(config.seeds, "batches", sampling)
    return Training(learner, replay, batches, noise)


def _train(
    config: RunConfig,
    prepared: Prepared,
    training: Training,
    folder: RunFolder,
    progress: bool,
    synthesis: Synthesis | None,
    trackers: Trackers,
    probe: Probe | None,
) -> None:
    def curve_point(update: int) -> list[Row]:
        # Other episodes at every point, or the curve would look smoother than it is.
        results = _evaluations(config, prepared, training, config.eval_episodes, update)
        rows = [_summary(prepared, result) for result in results]
        more = probe(training.learner, prepared, update) if probe else [{}] * len(rows)
        return [{**row, **further} for row, further in zip(rows, more, strict=True)]

    schedule = Schedule(
        updates=config.updates,
        batch_size=config.algo.batch_size,
        log_every=config.log_every,
        eval_every=config.eval_every if prepared.info.env_id else 0,
        checkpoint_seconds=config.checkpoint_seconds,
        generations=generations(config.augment, config.updates) if config.augment else (),
    )
    lines = CSVLogger(folder.path / "metrics.csv", config.seeds, training.updates)
    try:
        with ProgressBar(config.updates, training.updates, progress) as bar:
            train(
                training,
                schedule,
                evaluate=curve_point,
                loggers=[lines, *trackers.each],
                progress=bar,
                save=lambda: training.save(folder.path / CHECKPOINT, folder.hash),
                generate=None if synthesis is None else partial(synthesis.generate, training),
            )
    finally:
        lines.close()


def _evaluations(
    config: RunConfig, prepared: Prepared, training: Training, episodes: int, salt: int
) -> list[Evaluation]:
    policies = [prepared.deploy(training.learner.policy(i)) for i in range(len(config.seeds))]
    return [_evaluate(config, prepared, policy, episodes, salt, False) for policy in policies]


def _evaluate(
    config: RunConfig,
    prepared: Prepared,
    policy: DeployedPolicy,
    episodes: int,
    salt: int,
    progress: bool,
) -> Evaluation:
    assert prepared.info.env_id is not None
    return evaluate(
        policy,
        prepared.info.env_id,
        episodes=episodes,
        seed=config.eval_seed + salt,
        max_episode_steps=prepared.info.max_episode_steps,
        device=policy.obs_mean.device,
        progress=progress,
    )


def _summary(prepared: Prepared, evaluation: Evaluation) -> Row:
    mean = sum(evaluation.returns) / len(evaluation.returns)
    score_range = prepared.info.score_range
    return {"eval_return": mean} | ({"eval_score": score_range.score(mean)} if score_range else {})


def _finish(context: _Context, position: int, progress: bool) -> RunRecord:
    """Final evaluation, policy file and record of one seed."""
    config, prepared, training = context.config, context.prepared, context.training
    folder = context.folder.seed(config.seeds[position])
    policy = prepared.deploy(training.learner.policy(position))
    save_policy(folder / POLICY, policy, config.algo_name, config.algo)
    started = time.perf_counter()
    outcome: dict[str, Any] = {}
    if prepared.info.env_id is not None:
        result = _evaluate(config, prepared, policy, config.final_episodes, 0, progress)
        outcome = prepared.score(result)
        if config.video:
            film = folder / FILM
            record_video(
                policy,
                prepared.info.env_id,
                film,
                seed=config.eval_seed,
                max_episode_steps=prepared.info.max_episode_steps,
                progress=progress,
            )
    record = RunRecord(
        run_id=context.folder.run_id(config.seeds[position]),
        status="finished",
        code=code_version(),
        config={
            "resolved": plain(config),
            "config_hash": context.folder.hash,
            "diff_from_default": changed(config.algo),
        },
        data=prepared.record,
        seeds={
            "train": config.seeds[position],
            "trained_together": list(config.seeds),
            "eval_base": config.eval_seed,
        },
        algo={
            "name": config.algo_name,
            "n_gradient_steps": config.updates,
            "batch_size": config.algo.batch_size,
            "hyperparameter_provenance": config.provenance,
        },
        eval=outcome,
        curve=[rows[position] for rows in training.curve],
        system=context.system,
        cost={
            "train_seconds": training.seconds,
            "updates_per_second": config.updates / training.seconds,
            "eval_seconds": time.perf_counter() - started,
            "replicas_in_process": len(config.seeds),
            "peak_memory_mb": peak_memory_mb(policy.obs_mean.device),
        }
        | ({"generation_seconds": training.generation_seconds} if context.synthesis else {}),
        augment=context.synthesis.record(config.seeds[position]) if context.synthesis else {},
    )
    return context.folder.write(config.seeds[position], record)
