"""RunConfig -> trained, evaluated policies and their records."""

import dataclasses
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from offdiff.algos.iql import IQLConfig
from offdiff.checkpoint import CHECKPOINT, POLICY, save_policy
from offdiff.core.errors import InputError
from offdiff.core.files import require_writable
from offdiff.core.numerics import choose_device, keep_freed_memory, use_fastest_exact_matmul
from offdiff.core.protocols import LearnerConfig, Replay
from offdiff.core.registry import name_of
from offdiff.core.seeding import SeedStreams
from offdiff.data.load import load_dataset
from offdiff.evaluate import Evaluation, evaluate
from offdiff.folder import ROWS, RunFolder
from offdiff.loggers import CSVLogger, Logger, ProgressBar, TensorBoardLogger, WandbLogger
from offdiff.policy import DeployedPolicy
from offdiff.prepare import Prepared, open_replay, prepare
from offdiff.results import RunRecord, code_version, config_hash, plain, system
from offdiff.training import Row, Schedule, Training, train


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One experiment: a dataset, a learner, and some seeds trained together."""

    dataset: str = "sample"
    """Bundled sample, path of an HDF5 file, D4RL name, or Minari id (`offdiff data list`)."""
    algo: LearnerConfig = field(default_factory=IQLConfig)
    """The learner and its hyperparameters."""
    seeds: tuple[int, ...] = (0,)
    """Training seeds; several are trained as one batched computation."""
    updates: int = 10_000
    """Gradient steps."""
    log_every: int = 500
    """Gradient steps between two lines of metrics.csv."""
    eval_every: int = 2_500
    """Gradient steps between two points of the learning curve; 0 for none."""
    eval_episodes: int = 5
    """Episodes per seed and point of the learning curve."""
    final_episodes: int = 20
    """Episodes per seed of the final evaluation, the one that counts."""
    eval_seed: int = 1_000
    """Episodes start from seeds derived from this one; it does not depend on the training seeds."""
    conversion: Literal["strict", "d4rl_compat"] = "strict"
    """How episodes become transitions: with true successors, or exactly as D4RL's loader does."""
    clip_actions: bool = False
    """Clip the data's actions to the action box instead of refusing those outside."""
    memory_mapped: bool = False
    """Keep the transitions on disk, in the run folder, and read batches ahead."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int = 1
    """CPU threads. One is the fastest for one run of small networks on a busy machine."""
    out: Path = Path("results/runs")
    """Runs are written to OUT/<dataset>/<algo>/<seeds>-<hash of the configuration>."""
    resume: bool = False
    """Continue a run that was stopped; its result is the same as if it had not been."""
    overwrite: bool = False
    """Throw away what an earlier run of this configuration left."""
    checkpoint_seconds: float = 20.0
    """Least time between two checkpoints; a kill loses no more than this."""
    tensorboard: bool = False
    """Also write TensorBoard event files."""
    wandb: bool = False
    """Also log to Weights & Biases; without a key or a network, offline into the run folder."""
    video: bool = False
    """Record an mp4 of each seed's final policy."""
    provenance: str = "defaults of the paper"
    """Where the hyperparameters come from; written into the record."""

    def __post_init__(self) -> None:
        least = {"updates": 1, "log_every": 1, "eval_every": 0, "eval_episodes": 1,
                 "final_episodes": 1, "eval_seed": 0, "threads": 1}  # fmt: skip
        for name, low in least.items():
            if not low <= getattr(self, name) < 2**40:
                raise InputError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if self.threads > (cores := os.cpu_count() or 1):
            # Far beyond, torch ends the process without a word.
            raise InputError(f"threads must be at most the {cores} cores here, got {self.threads}")
        if not self.checkpoint_seconds >= 0:  # NaN is refused, too
            raise InputError(f"checkpoint_seconds must be >= 0, got {self.checkpoint_seconds}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise InputError(f"seeds must be different numbers >= 0, got {list(self.seeds)}")
        if self.resume and self.overwrite:
            raise InputError("--resume and --overwrite exclude each other; choose one")

    @property
    def algo_name(self) -> str:
        """Registered name of the learner, or its module:Class."""
        return name_of("learners", type(self.algo))

    def identity(self, data_sha256: str) -> dict[str, Any]:
        """What the result depends on: runs of equal identity and seeds end in the same numbers."""
        names = ("updates", "log_every", "eval_every", "eval_episodes", "final_episodes",
                 "eval_seed", "conversion", "clip_actions")  # fmt: skip
        values = {name: getattr(self, name) for name in names}
        data = data_sha256 or self.dataset
        return {"data": data, "algo": self.algo_name, "hyperparameters": plain(self.algo), **values}


def run(config: RunConfig, *, progress: bool = True) -> list[RunRecord]:
    """Trains and evaluates every seed; gives one record per seed, also written to disk.

    A finished run of the same configuration is not repeated: its records are read and given.
    Raises InputError, before anything is written, for what cannot work.
    """
    device = choose_device(config.device)
    require_writable(config.out)
    dataset = load_dataset(config.dataset, clip_actions=config.clip_actions)
    identity = config.identity(dataset.info.sha256)
    folder = RunFolder(
        config.out, dataset.info.name, config.algo_name, config.seeds, config_hash(identity)
    )
    if not config.overwrite and (finished := folder.records()):
        return finished
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    kernels = use_fastest_exact_matmul() if device.type == "cpu" else "cublas"
    require_simulator(config, dataset.info.env_id)
    prepared, transitions = prepare(dataset, config.algo, config.conversion)
    folder.open(identity, resume=config.resume, overwrite=config.overwrite)
    rows = folder.path / ROWS if config.memory_mapped else None
    replay = open_replay(transitions, prepared.spec, device, rows)
    del dataset, transitions  # the replay holds what is needed

    training = _start(config, prepared, replay, device)
    if config.resume and (folder.path / CHECKPOINT).exists():
        training.load(folder.path / CHECKPOINT, folder.hash)
    _train(config, prepared, training, folder, progress)
    context = _Context(config, prepared, training, folder, identity, system(device, kernels))
    records = [_finish(context, position, progress) for position in range(len(config.seeds))]
    folder.clean()
    return records


def require_simulator(config: RunConfig, env_id: str | None) -> None:
    """Raises InputError now, not after hours of training, if the environment cannot be made."""
    if env_id is not None:
        from offdiff.environments import make_simulator

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


def _start(config: RunConfig, prepared: Prepared, replay: Replay, device: torch.device) -> Training:
    noise = SeedStreams(config.seeds, "learner", device)
    learner = config.algo.build(prepared.spec, random=noise, updates=config.updates, device=device)
    # Indices of a memory-mapped store are used by the host.
    sampling = torch.device("cpu") if config.memory_mapped else device
    batches = SeedStreams(config.seeds, "batches", sampling)
    return Training(learner, replay, batches, noise)


def _train(
    config: RunConfig, prepared: Prepared, training: Training, folder: RunFolder, progress: bool
) -> None:
    def curve_point(update: int) -> list[Row]:
        # Other episodes at every point, or the curve would look smoother than it is.
        results = _evaluations(config, prepared, training, config.eval_episodes, update)
        return [_summary(prepared, result) for result in results]

    schedule = Schedule(
        updates=config.updates,
        batch_size=config.algo.batch_size,
        log_every=config.log_every,
        eval_every=config.eval_every if prepared.info.env_id else 0,
        checkpoint_seconds=config.checkpoint_seconds,
    )
    loggers: list[Logger] = [CSVLogger(folder.path / "metrics.csv", config.seeds, training.updates)]
    if config.tensorboard:
        loggers.append(TensorBoardLogger(folder.path, config.seeds))
    if config.wandb:
        loggers.append(WandbLogger(folder.path, config.seeds, plain(config)))
    try:
        with ProgressBar(config.updates, training.updates, progress) as bar:
            train(
                training,
                schedule,
                evaluate=curve_point,
                loggers=loggers,
                progress=bar,
                save=lambda: training.save(folder.path / CHECKPOINT, folder.hash),
            )
    finally:
        for logger in loggers:
            logger.close()


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
            from offdiff.video import record_video

            record_video(policy, prepared.info.env_id, folder / "policy.mp4", seed=config.eval_seed)
    record = RunRecord(
        run_id=context.folder.run_id(config.seeds[position]),
        status="finished",
        code=code_version(),
        config={
            "resolved": plain(config),
            "config_hash": context.folder.hash,
            "diff_from_default": _changed(config.algo),
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
        },
    )
    context.folder.write(config.seeds[position], record)
    return record


def _changed(algo: LearnerConfig) -> dict[str, Any]:
    default = type(algo)()
    return {
        f.name: plain(getattr(algo, f.name))
        for f in dataclasses.fields(algo)
        if getattr(algo, f.name) != getattr(default, f.name)
    }
