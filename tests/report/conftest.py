"""Records for pages: two families, seeds, curves, synthetic data, and names that mean harm."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offdiff.records import RunRecord, write_record

HARMFUL = "</script><img src=x onerror=document.title='harmed'>"
Factory = Callable[..., RunRecord]


@pytest.fixture(scope="session")
def make_record() -> Factory:
    """A record with a curve, ten episodes and, for names with a plus, diagnostics."""

    def make(dataset: str, method: str, seed: int, score: float) -> RunRecord:
        random = np.random.default_rng([seed, len(dataset), len(method)])
        scores = (score + random.standard_normal(10)).tolist()
        learner, _, augment = method.partition("+")
        outcome: dict[str, Any] = {
            "env_id": "PointMaze_UMaze-v3" if "maze" in dataset else "Hopper-v4",
            "simulator_version": "s", "n_episodes": 10, "returns": scores, "success": None,
            "mean": float(np.mean(scores)), "action_mode": "deterministic", "fidelity": "close",
        }  # fmt: skip
        if "maze" not in dataset:
            outcome |= {"scores": scores, "score_mean": outcome["mean"]}
        generations = [
            {"update": u, "dynamics": {"median": 0.1}, "policy": {"log_likelihood": -1.0}}
            for u in (0, 50)
        ]
        curve = [
            {"update": u, "eval_return": score * u / 100, "eval_score": score * u / 100}
            for u in (50, 100)
        ]
        return RunRecord(
            run_id=f"{dataset.split('<')[0] or 'harmful'}/{method}/x/seed-{seed}",
            status="finished",
            code={"git_commit": "0123456789", "dirty": False, "command": f"offdiff run {method}"},
            config={"diff_from_default": {}, "config_hash": "abcd1234", "resolved": {"a": 1}},
            data={"dataset_id": dataset, "file_sha256": "f" * 64,
                  "behaviour": {"return_mean": 3.0, "score_mean": 20.0}},
            seeds={"train": seed},
            algo={"name": learner, "n_gradient_steps": 100},
            eval=outcome,
            curve=curve,
            system={"cpu": "c", "device": "cpu", "torch": "2", "python": "3"},
            cost={"train_seconds": 2.0 + seed},
            augment={"name": augment, "diff_from_default": {}, "generations": generations}
            if augment
            else {},
        )  # fmt: skip

    return make


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, make_record: Factory) -> Path:
    """A folder of records; one was edited, one has a picture beside it."""
    folder = tmp_path_factory.mktemp("records") / "runs"
    for seed in (0, 1, 2):
        for dataset, method, score in (
            ("hopper-a", "bc", 40.0), ("hopper-a", "iql+pgd", 60.0), ("hopper-b", "bc", 5.0),
            ("hopper-b", "iql+pgd", 100.0), ("pointmaze-u", "bc", 200.0), (HARMFUL, "td3bc", 1.0),
        ):  # fmt: skip
            record = make_record(dataset, method, seed, score + seed)
            write_record(folder / record.run_id, record)
    edited = make_record("hopper-a", "cql", 0, 50.0)
    write_record(folder / edited.run_id, edited)
    path = folder / edited.run_id / "run.json"
    path.write_text(path.read_text().replace("deterministic", "lucky"))
    return folder
