"""Dataset -> what a learner trains on, and what makes its network a policy of the environment."""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from offdiff.core.protocols import LearnerConfig, Replay
from offdiff.core.types import Batch, Spec
from offdiff.data.buffer import ReplayBuffer
from offdiff.data.dataset import Dataset, DatasetInfo
from offdiff.data.episodes import Conversion, Episodes
from offdiff.data.mapped import MappedReplay, write_rows
from offdiff.data.preprocess import ObservationStats, RewardTransform, reward_transform
from offdiff.evaluate import Evaluation
from offdiff.policy import DeployedPolicy, deploy

CHUNK_ROWS = 65_536


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """What is kept of a dataset while a learner trains on its transitions."""

    info: DatasetInfo
    spec: Spec
    stats: ObservationStats
    record: dict[str, Any]
    """Provenance of the data and the behaviour's returns, for the run record."""

    def deploy(self, network: nn.Module) -> DeployedPolicy:
        """Puts a learner's network between the scaling of observations and of actions."""
        parameter = next(network.parameters())
        action = torch.empty(self.spec.action_dim)
        return deploy(
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """Transitions in the environment's units -> as a learner sees them."""

    stats: ObservationStats
    reward: RewardTransform

    def __call__(self, raw: Batch) -> Batch:
        """Scales observations, transforms rewards; on the device of the batch."""
        mean, std = (
            torch.from_numpy(numbers).to(raw.obs.device)
            for numbers in (self.stats.mean, self.stats.std)
        )
        return raw._replace(
            obs=(raw.obs - mean) / std,
            next_obs=(raw.next_obs - mean) / std,
            reward=self.reward(raw.reward),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transitions:
    """The usable transitions of some episodes as a learner sees them, made when asked for."""

    episodes: Episodes
    rows: NDArray[np.int64]
    """(M,) usable rows"""
    conversion: Conversion
    view: View
    """Real and synthetic transitions pass through the same."""

    def __len__(self) -> int:
        return len(self.rows)

    def chunks(self) -> Iterator[Batch]:
        """All transitions in order, CHUNK_ROWS at a time: no second copy of the data is made."""
        for start in range(0, len(self), CHUNK_ROWS):
            rows = self.rows[start : start + CHUNK_ROWS]
            yield self.view(self.episodes.transitions_at(rows, self.conversion))


def prepare(
    dataset: Dataset, algo: LearnerConfig, conversion: Conversion
) -> tuple[Prepared, Transitions]:
    """Selects episodes and rows, computes statistics.

    Raises InputError if no transition is left.
    """
    used = dataset.episodes
    if algo.keep_best < 1:
        used = used.best(algo.keep_best, algo.keep_best_by)
    rows = used.usable(conversion, need_next_action=algo.needs_next_action)
    stats = (
        ObservationStats.of(used)
        if algo.scale_observations
        else ObservationStats.identity(used.spec.obs_dim)
    )
    reward = reward_transform(algo.reward, used)
    record = {
        "suite": dataset.info.suite,
        "dataset_id": dataset.info.name,
        "source": dataset.info.source,
        "file_sha256": dataset.info.sha256,
        "n_transitions": len(rows),
        "n_episodes": used.n_episodes,
        "conversion_mode": conversion,
        "reward_transform": dataclasses.asdict(reward),
        "obs_stats_hash": _digest(stats),
        "subset_fraction": len(used) / len(dataset.episodes),
        "obs_layout": dataset.info.obs_layout,
        "notes": list(dataset.info.notes),
        "behaviour": _behaviour(dataset),
    }
    transitions = Transitions(
        episodes=used,
        rows=rows,
        conversion=conversion,
        view=View(stats=stats, reward=reward),
    )
    return Prepared(info=dataset.info, spec=used.spec, stats=stats, record=record), transitions


def open_replay(
    transitions: Transitions, spec: Spec, device: torch.device, mapped: Path | None
) -> Replay:
    """The transitions on the device, or in the file `mapped`, written if it is not there."""
    if mapped is None:
        buffer = ReplayBuffer(len(transitions), spec, device)
        for chunk in transitions.chunks():
            buffer.extend(chunk)
        return buffer
    if not mapped.exists():
        write_rows(mapped, transitions.chunks(), len(transitions), spec)
    return MappedReplay(mapped, spec, device)


def _behaviour(dataset: Dataset) -> dict[str, Any]:
    """Who acted in the data, and how well: what a learner is to beat."""
    returns, score_range = dataset.episodes.returns, dataset.info.score_range
    mean = float(returns.mean())
    return {
        "description": dataset.info.behaviour,
        "return_mean": mean,
        "return_std": float(returns.std(ddof=1)) if len(returns) > 1 else 0.0,
        "return_max": float(returns.max()),
    } | ({"score_mean": score_range.score(mean)} if score_range else {})


def _digest(stats: ObservationStats) -> str:
    numbers = np.concatenate((stats.mean, stats.std)).astype(np.float32)
    return hashlib.sha256(numbers.tobytes()).hexdigest()[:16]
