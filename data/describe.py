"""What a dataset holds, in numbers, and what a learner should be warned of."""

from typing import Any

import numpy as np

from offdiff.core.errors import InputError
from offdiff.data.actions import TOLERANCE, overshoot, to_unit
from offdiff.data.catalogue import installed_d4rl_disagrees
from offdiff.data.dataset import Dataset
from offdiff.data.episodes import Conversion, Episodes

Description = dict[str, Any]
"""Nested numbers, texts and lists, as JSON holds them."""


def describe(dataset: Dataset) -> Description:
    """Everything that can be said of a dataset as `read_dataset` gives it."""
    info, episodes = dataset.info, dataset.episodes
    returns = _summary(episodes.returns)
    description: Description = {
        "name": info.name,
        "suite": info.suite,
        "source": info.source,
        "sha256": info.sha256,
        "behaviour": info.behaviour,
        "environment": info.env_id,
        "family": info.family,
        "horizon": info.max_episode_steps,
        "episodes": episodes.n_episodes,
        "steps": len(episodes),
        "transitions": {
            "strict": _count(episodes, "strict"),
            "d4rl_compat": _count(episodes, "d4rl_compat"),
        },
        "terminals": int(episodes.terminal.sum()),
        "timeouts": int(episodes.truncated.sum()),
        "episode_length": _summary(episodes.lengths),
        "return": returns,
        "reward": _summary(episodes.reward),
        "observation": {"numbers": episodes.spec.obs_dim} | _range(episodes.obs),
        "action": {"numbers": episodes.spec.action_dim} | _range(episodes.action),
        "action_box": {"low": list(info.action_low), "high": list(info.action_high)},
    }
    if info.obs_layout:
        description["observation"]["layout"] = info.obs_layout
    if info.score_range is not None:
        description["score"] = {
            "mean": info.score_range.score(returns["mean"]),
            "return_of_0": info.score_range.minimum,
            "return_of_100": info.score_range.maximum,
            "constants": info.score_range.source,
        }
    return description | {"warnings": [*info.notes, *_warnings(dataset)]}


def _warnings(dataset: Dataset) -> list[str]:
    info, episodes = dataset.info, dataset.episodes
    warnings = []
    unit = to_unit(episodes.action, info.action_low, info.action_high, source=info.source)
    excess = overshoot(unit)
    if excess > TOLERANCE:
        outside = int((np.abs(unit) > 1 + TOLERANCE).any(axis=1).sum())
        warnings.append(
            f"{outside} of {len(unit)} actions leave their box, by up to {excess:.3g} half widths; "
            "load with --clip-actions"
        )
    constant = np.flatnonzero(np.ptp(episodes.obs, axis=0) == 0)
    if len(constant):
        warnings.append(f"observation numbers {constant.tolist()} never change")
    if info.max_episode_steps and episodes.lengths.max() > info.max_episode_steps:
        warnings.append(
            f"the longest episode has {episodes.lengths.max()} steps, evaluation "
            f"{info.max_episode_steps}: returns are not comparable"
        )
    if not episodes.successor_known[episodes.last].all():
        warnings.append("the last successor of some episodes is unknown: they lose their last step")
    if info.env_id is None:
        warnings.append("no environment is known: policies cannot be evaluated by rollouts")
    if info.score_range is None:
        warnings.append("no reference returns are known: no score, returns are shown as they are")
    disagreement = installed_d4rl_disagrees(info.name) if info.suite == "d4rl" else None
    return warnings + ([disagreement] if disagreement else [])


def _count(episodes: Episodes, conversion: Conversion) -> int:
    try:
        return len(episodes.transitions(conversion).reward)
    except InputError:
        return 0


def _summary(values: np.ndarray[Any, np.dtype[Any]]) -> dict[str, float]:
    return {
        "mean": float(values.mean(dtype=np.float64)),
        "std": float(values.std(dtype=np.float64, ddof=1)) if len(values) > 1 else 0.0,
        "min": float(values.min()),
        "max": float(values.max()),
    }


def _range(values: np.ndarray[Any, np.dtype[Any]]) -> dict[str, float]:
    return {"min": float(values.min()), "max": float(values.max())}
