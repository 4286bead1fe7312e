"""Finished runs looked at again: more episodes, fitted Q evaluation, a film."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from offdiff.checkpoint import POLICY, load_policy
from offdiff.core.errors import InputError
from offdiff.data.load import load_dataset
from offdiff.evaluate import evaluate
from offdiff.ope import FQEConfig, fitted_q_evaluation
from offdiff.results import RECORD, read_record
from offdiff.video import record_video


def seed_folders(run: Path) -> list[Path]:
    """The folders of a run's seeds; `run` may be one of them.

    Raises InputError if there is no finished run.
    """
    folders = [run] if (run / POLICY).exists() else sorted(run.glob("seed-*"))
    finished = [folder for folder in folders if (folder / RECORD).exists()]
    if not finished:
        raise InputError(f"{run} holds no finished run; give the folder that `offdiff run` named")
    return finished


def play(folder: Path, env_id: str, episodes: int, seed: int, progress: bool) -> dict[str, Any]:
    """Evaluates one seed's policy. env_id: "" for the run's own. Gives an evaluation as JSON."""
    env_id, steps = _task(folder, env_id)
    result = evaluate(
        load_policy(folder),
        env_id,
        episodes=episodes,
        seed=seed,
        max_episode_steps=steps,
        progress=progress,
    )
    return {"policy": str(folder), "mean": sum(result.returns) / episodes, **asdict(result)}


def estimate_values(
    folders: Sequence[Path], updates: int, seed: int, progress: bool
) -> list[dict[str, Any]]:
    """Fitted Q evaluation of all policies on the dataset that they were trained on."""
    settings = read_record(folders[0] / RECORD).config["resolved"]
    dataset = load_dataset(settings["dataset"], clip_actions=settings["clip_actions"])
    estimates = fitted_q_evaluation(
        {str(folder): load_policy(folder) for folder in folders},
        dataset.episodes,
        FQEConfig(updates=updates),
        seed=seed,
        progress=progress,
    )
    return [{"policy": name, **asdict(estimate)} for name, estimate in estimates.items()]


def film(folder: Path, env_id: str, path: Path, seed: int, progress: bool) -> None:
    """Records one episode of a policy. env_id: "" for the run's own."""
    env_id, steps = _task(folder, env_id)
    policy = load_policy(folder)
    record_video(policy, env_id, path, seed=seed, max_episode_steps=steps, progress=progress)


def _task(folder: Path, env_id: str) -> tuple[str, int | None]:
    """Environment and horizon: as asked for, else as in the run's own evaluation."""
    own = read_record(folder / RECORD).eval
    if env_id:
        return env_id, None
    if not own:
        raise InputError(
            f"{folder} was trained on data without a simulator; name one with --env, or estimate "
            "its value from the data with --fqe"
        )
    return own["env_id"], own["max_episode_steps"]
