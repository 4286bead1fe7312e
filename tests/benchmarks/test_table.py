"""The table of scores, from made-up records with known means and intervals."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "table.py"


@pytest.fixture(scope="module")
def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(seed: int, mean: float, updates: int = 100) -> dict[str, Any]:
    return {
        "data": {
            "dataset_id": "hopper-x",
            "behaviour": {"return_mean": 500.0, "score_mean": 16.0},
        },
        "algo": {"name": "iql", "n_gradient_steps": updates},
        "seeds": {"train": seed},
        "eval": {"mean": mean, "score_mean": mean / 10},
    }


def test_means_spreads_and_intervals(table: ModuleType) -> None:
    rows = table.learner_rows([record(1, 1100.0), record(0, 1000.0), record(2, 1200.0)])
    # std 100, t(2) = 4.303: half width 4.303 * 100 / sqrt(3) = 248.4
    assert rows == [
        ("hopper-x", "iql", "100", "3", "1100 ± 100", "[852, 1348]", "1000, 1100, 1200", "110.0",
         "500 (16.0)"),
    ]  # fmt: skip


def test_runs_of_another_length_are_another_line(table: ModuleType) -> None:
    rows = table.learner_rows([record(0, 1.0, updates=100), record(0, 2.0, updates=200)])
    assert [row[2] for row in rows] == ["100", "200"]
    assert [row[5] for row in rows] == ["-", "-"]  # a single seed has no interval


def test_parity_lists_only_what_both_ran(table: ModuleType) -> None:
    peers = [
        {"data": "hopper-x.hdf5", "algo": "iql", "updates": 100, "returns": [1.0, 3.0]},
        {"data": "hopper-x.hdf5", "algo": "cql", "updates": 100, "returns": [9.0]},
    ]
    rows = table.parity_rows([record(0, 10.0)], peers)
    assert [row[3:6] for row in rows] == [("offdiff", "1", "10"), ("d3rlpy 2.8.1", "1", "2")]


def test_markdown_is_one_line_per_row(table: ModuleType) -> None:
    text = table.markdown(("a", "b"), [("1", "2")], "caption")
    assert text == "caption\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"
