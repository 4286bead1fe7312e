"""Dataset -> what a learner trains on, and what makes its network a policy of the environment."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from offdiff.core.protocols import LearnerConfig, Replay
from offdiff.core.types import Batch, Spec
from offdiff.data.buffer import ReplayBuffer
from offdiff.data.dataset import Dataset, DatasetInfo
from offdiff.data.episodes import Episodes
from offdiff.data.mapped import MappedReplay, write_rows
from offdiff.data.preprocess import ObservationStats, RewardTransform, reward_transform
from offdiff.evaluate import Evaluation
from offdiff.policy import DeployedPolicy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A dataset as one learner sees it."""

    info: DatasetInfo
    whole: Episodes
    """All episodes of the dataset."""
    used: Episodes
    """Those that are trained on."""
    batch: Batch
    """Their transitions on the CPU, observations and rewards transformed; fields (N, ...)."""
    stats: ObservationStats
    reward: RewardTransform
    conversion: Literal["strict", "d4rl_compat"]

    @property
    def spec(self) -> Spec:
        """Sizes of observation and action."""
        return self.used.spec

    def replay(self, device: torch.device) -> ReplayBuffer:
        """A buffer on the device that holds every transition."""
        buffer = ReplayBuffer(len(self.batch.reward), self.spec, device)
        buffer.extend(self.batch)
        return buffer

    def mapped_replay(self, path: Path, device: torch.device) -> MappedReplay:
        """The same from a file on disk, written if it is not there."""
        if not path.exists():
            write_rows(path, self.batch)
        return MappedReplay(path, self.spec, device)

    def deploy(self, network: nn.Module) -> DeployedPolicy:
        """Puts a learner's network between the scaling of observations and of actions."""
        parameter = next(network.parameters())
        action = torch.empty(self.spec.action_dim)
        return DeployedPolicy(
            network,
            obs_mean=torch.as_tensor(self.stats.mean),
            obs_std=torch.as_tensor(self.stats.std),
            action_low=torch.tensor(self.info.action_low).expand_as(action).clone(),
            action_high=torch.tensor(self.info.action_high).expand_as(action).clone(),
        ).to(parameter.device)

    def score(self, evaluation: Evaluation) -> dict[str, Any]:
        """An evaluation with its scores and summary, for a record."""
        returns = np.asarray(evaluation.returns)
        outcome = dataclasses.asdict(evaluation) | {
            "checkpoint": "last",
            "mean": float(returns.mean()),
            "std": float(returns.std(ddof=1)) if len(returns) > 1 else 0.0,
            "sem": float(returns.std(ddof=1) / len(returns) ** 0.5) if len(returns) > 1 else 0.0,
        }
        if self.info.score_range is not None:
            scores = [self.info.score_range.score(value) for value in evaluation.returns]
            outcome |= {
                "constants_source": self.info.score_range.source,
                "scores": scores,
                "score_mean": float(np.mean(scores)),
            }
        return outcome

    def record(self) -> dict[str, Any]:
        """Provenance for a run record."""
        returns = self.whole.returns
        stats = np.concatenate((self.stats.mean, self.stats.std)).astype(np.float32)
        behaviour: dict[str, Any] = {
            "description": self.info.behaviour,
            "return_mean": float(returns.mean()),
            "return_std": float(returns.std(ddof=1)) if len(returns) > 1 else 0.0,
            "return_max": float(returns.max()),
        }
        if self.info.score_range is not None:
            behaviour["score_mean"] = self.info.score_range.score(behaviour["return_mean"])
        return {
            "suite": self.info.suite,
            "dataset_id": self.info.name,
            "source": self.info.source,
            "file_sha256": self.info.sha256,
            "n_transitions": len(self.batch.reward),
            "n_episodes": self.used.n_episodes,
            "conversion_mode": self.conversion,
            "reward_transform": dataclasses.asdict(self.reward),
            "obs_stats_hash": hashlib.sha256(stats.tobytes()).hexdigest()[:16],
            "subset_fraction": len(self.used) / len(self.whole),
            "behaviour": behaviour,
        }


def prepare(
    dataset: Dataset, algo: LearnerConfig, conversion: Literal["strict", "d4rl_compat"]
) -> Prepared:
    """Selects, converts, scales. Raises InputError if no transition is left."""
    used = dataset.episodes
    if algo.keep_best < 1:
        used = used.best(algo.keep_best, algo.keep_best_by)
    stats = (
        ObservationStats.of(used)
        if algo.scale_observations
        else ObservationStats.identity(used.spec.obs_dim)
    )
    reward = reward_transform(algo.reward, used)
    raw = used.transitions(conversion, need_next_action=algo.needs_next_action)
    mean, std = torch.as_tensor(stats.mean), torch.as_tensor(stats.std)

    def scale(obs: Tensor) -> Tensor:
        return (obs - mean) / std

    batch = raw._replace(
        obs=scale(raw.obs), next_obs=scale(raw.next_obs), reward=reward(raw.reward)
    )
    return Prepared(
        info=dataset.info,
        whole=dataset.episodes,
        used=used,
        batch=batch,
        stats=stats,
        reward=reward,
        conversion=conversion,
    )


def open_replay(prepared: Prepared, device: torch.device, mapped: Path | None) -> Replay:
    """The transitions in memory, or in the file `mapped`."""
    if mapped is None:
        return prepared.replay(device)
    return prepared.mapped_replay(mapped, device)
