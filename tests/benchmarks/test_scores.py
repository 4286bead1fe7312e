"""The grid runner: runs what has no record, once, under the folder it looks for."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scores.py"


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("scores", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "scores", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_cell_is_run_once_and_its_record_names_no_path_of_this_machine(
    scores: ModuleType,
    toy_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = {"hidden": (8, 8), "batch_size": 16, "scale_observations": False}
    cell = scores.Cell(
        learner="bc",
        dataset="toy",
        updates=4,
        log_every=2,
        eval_every=0,
        seeds=(3, 5),
        hyperparameters=small,
    )
    monkeypatch.setitem(scores.GRIDS, "scores", (cell,))
    results = tmp_path / "results"
    arguments = ["scores.py", "--data", str(toy_file.parent), "--grid", "scores"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--results", str(results)])

    scores.main()
    records = [json.loads(path.read_text()) for path in sorted(results.rglob("run.json"))]
    assert [record["seeds"]["train"] for record in records] == [3, 5]
    assert records[0]["config"]["diff_from_default"] == {
        "hidden": [8, 8], "batch_size": 16, "scale_observations": False,
    }  # fmt: skip
    assert str(tmp_path) not in json.dumps(records)
    assert "1 of 1 lines of the tables are to be run" in capsys.readouterr().out

    scores.main()  # the folder that `offdiff run` chose is the one that is looked for
    assert capsys.readouterr().out == "0 of 1 lines of the tables are to be run\n"


def test_a_failed_run_is_said_and_fails_the_whole(
    scores: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = scores.Job("good", [sys.executable, "-c", ""])
    bad = scores.Job("bad", [sys.executable, "-c", "raise SystemExit('reason')"])
    assert scores.run_all([good, bad, good], workers=2) == 1
    printed = capsys.readouterr()
    assert "FAILED    bad" in printed.out
    assert "reason" in printed.err


def test_the_peers_runs_with_a_record_are_left_out(scores: ModuleType, tmp_path: Path) -> None:
    record = {"algo": "iql", "data": "hopper-x.hdf5", "updates": 100, "seed": 1}
    (tmp_path / "any-name.json").write_text(json.dumps(record))
    cell = scores.Cell(learner="iql", dataset="hopper-x", updates=100, log_every=1, eval_every=0)
    jobs = scores.peer_jobs(cell, Path("data"), tmp_path, "python")
    assert [job.name[-1] for job in jobs] == ["0", "2"]
    longer = scores.Cell(learner="iql", dataset="hopper-x", updates=200, log_every=1, eval_every=0)
    assert len(scores.peer_jobs(longer, Path("data"), tmp_path, "python")) == 3
