"""What can be said about a run, and which part of it decides the result."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from offdiff.algos.iql import IQLConfig
from offdiff.augment.base import AugmentConfig
from offdiff.core.errors import InputError
from offdiff.core.files import sha256
from offdiff.core.protocols import LearnerConfig
from offdiff.core.registry import name_of
from offdiff.planners.base import PlannerConfig
from offdiff.results import changed, plain


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One experiment: a dataset, a learner (or a planner), and some seeds."""

    dataset: str = "sample"
    """Bundled sample, path of an HDF5 file, D4RL name, or Minari id (`offdiff data list`)."""
    algo: LearnerConfig = field(default_factory=IQLConfig)
    """The learner and its hyperparameters."""
    augment: AugmentConfig | None = None
    """Synthetic experience beside the data; None for the data alone."""
    planner: PlannerConfig | None = None
    """A planner instead of a learner; `algo` is then not used."""
    seeds: tuple[int, ...] = (0,)
    """Training seeds; a learner trains several as one batched computation."""
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
    """Also write TensorBoard event files: curves, final scores, hyperparameters, pictures."""
    wandb: bool = False
    """Also log to Weights & Biases: curves, final scores, every episode, media and the record.
    Without a key or a network all of it goes into the run folder; `wandb sync` uploads it."""
    wandb_group: str = ""
    """Group of the W&B run; default: $WANDB_RUN_GROUP, else dataset/method/hash."""
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
        if self.augment is not None:
            if self.augment.start >= self.updates:
                raise InputError(
                    f"augment.start must lie below updates, got {self.augment.start} of "
                    f"{self.updates}: nothing synthetic would ever be made"
                )
            if round(self.algo.batch_size * self.augment.share) == 0:
                raise InputError(
                    f"a share of {self.augment.share} of a batch of {self.algo.batch_size} is no "
                    "transition; raise augment.share"
                )
        if self.planner is not None and (self.augment is not None or self.memory_mapped):
            what = "memory_mapped" if self.memory_mapped else "augment"
            raise InputError(f"{what} is for learners; leave it out with planner {self.name}")
        if self.resume and self.overwrite:
            raise InputError("--resume and --overwrite exclude each other; choose one")

    @property
    def name(self) -> str:
        """Registered name of the learner or planner, or its module:Class."""
        return name_of("planners", type(self.planner)) if self.planner else self.algo_name

    @property
    def algo_name(self) -> str:
        """Registered name of the learner, or its module:Class."""
        return name_of("learners", type(self.algo))

    @property
    def augment_name(self) -> str:
        """Registered name of the augmenter, or its module:Class; "none"."""
        return name_of("augmenters", type(self.augment)) if self.augment else "none"

    @property
    def method(self) -> str:
        """Learner or planner, and its augmenter: "iql+pgd"."""
        return self.name + (f"+{self.augment_name}" if self.augment else "")

    @property
    def changes(self) -> dict[str, Any]:
        """Hyperparameters that are not the defaults, as `RunRecord.changes`."""
        augment = changed(self.augment) if self.augment else {}
        own = changed(self.planner or self.algo)
        return own | {f"augment.{name}": value for name, value in augment.items()}

    def identity(self, data_sha256: str) -> dict[str, Any]:
        """What the result depends on: runs of equal identity and seeds end in the same numbers."""
        names = ("updates", "log_every", "eval_every", "eval_episodes", "final_episodes",
                 "eval_seed", "conversion", "clip_actions")  # fmt: skip
        values = {name: getattr(self, name) for name in names}
        if self.augment is not None:
            values["augment"] = {"name": self.augment_name, **plain(self.augment)}
            # A file's content counts, not its name.
            if (file := Path(getattr(self.augment, "model_file", ""))).is_file():
                values["augment"]["model_file"] = sha256(file)
        data = data_sha256 or self.dataset
        method = plain(self.planner or self.algo)
        if self.planner is not None:
            values["kind"] = "planner"
        return {"data": data, "algo": self.name, "hyperparameters": method, **values}
