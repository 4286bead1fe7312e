"""The grid of planners: every line can be run, has one record, and is told when it is missing."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def planners(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)  # it imports scores.py beside it
    spec = importlib.util.spec_from_file_location("planner_grid", FOLDER / "planners.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "planner_grid", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_line_is_another_run_and_its_settings_are_no_defaults(planners: ModuleType) -> None:
    cells = planners.GRID
    assert len({(c.method, c.dataset, c.updates, str(c.options)) for c in cells}) == len(cells)
    for cell in cells:
        if cell.kind == "planner":
            default = planners.planner_config(cell.method, {})
            chosen = planners.planner_config(cell.method, cell.options)
            changed = {name for name in vars(chosen) if vars(chosen)[name] != vars(default)[name]}
            assert changed == set(cell.options), cell


def test_a_line_is_run_once_and_found_in_the_table(
    planners: ModuleType,
    toy_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {
        "horizon": 3, "network": "mlp-128", "levels": 2, "holdout": 0.2, "open_loop": True,
        "pin_goal": True, "candidates": 2,
    }  # fmt: skip
    cell = planners.Cell(method="veteran", dataset="toy", updates=4, options=options)
    monkeypatch.setattr(planners, "GRID", (cell,))
    results = tmp_path / "results"
    arguments = ["planners.py", "--data", str(toy_file.parent), "--results", str(results)]
    monkeypatch.setattr(sys, "argv", arguments)
    planners.main()
    assert "1 lines are to be run" in capsys.readouterr().out
    (path,) = results.rglob("run.json")
    record = json.loads(path.read_text())
    assert record["config"]["diff_from_default"] == options
    assert str(tmp_path) not in path.read_text()
    assert planners.job_of(cell, toy_file.parent, results / "runs") is None


def test_the_table_says_what_is_missing_and_what_was_scored(
    planners: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = planners.Cell(method="dt", dataset="hopper-medium-zoo")
    other = planners.Cell(method="veteran", dataset="hopper-medium-zoo", options={"levels": 3})
    monkeypatch.setattr(planners, "GRID", (cell, other))
    record = {
        "algo": {"name": "veteran", "n_gradient_steps": 4_000},
        "data": {
            "dataset_id": "hopper-medium-zoo",
            "behaviour": {"score_mean": 48.3, "return_mean": 1.0},
        },
        "seeds": {"train": 0},
        "config": {"diff_from_default": {"levels": 3}},
        "augment": {},
        "eval": {"scores": [10.0, 30.0], "returns": [1.0, 2.0], "success": None},
        "cost": {"calls_per_decision": 3.0, "decision_seconds": 0.0021},
    }
    page = planners.page([record])
    half = 1.96 * 200**0.5 / 2**0.5
    low, high = 20 - half, 20 + half
    expected = f"| 4,000 | 20.0 | [{low:.1f}, {high:.1f}] | - | 3 | 2.1 | 48.3 |"
    assert f"| veteran (levels 3) {expected}" in page
    assert "| dt | 4,000 | missing | - | - | - | - | - |" in page
