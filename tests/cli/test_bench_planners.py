"""`offdiff bench planners`: one row per planner and setting, and refusals in one sentence."""

import json
from pathlib import Path

import pytest
from straight_planner import CALLS, StraightConfig, record_drift

from offdiff.cli import main
from offdiff.config import RunConfig
from offdiff.run import run

NAME = "straight_planner:StraightConfig"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    record_drift(tmp_path / "drift.hdf5")
    return tmp_path / "drift.hdf5"


def quick(data: Path) -> list[str]:
    return ["--dataset", str(data), "--repeats", "3", "--warmup", "1", "--device", "cpu"]


def test_a_name_and_a_run_side_by_side(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = RunConfig(
        dataset=str(data),
        planner=StraightConfig(horizon=5, candidates=3),
        updates=1,
        eval_every=0,
        final_episodes=1,
        out=tmp_path / "runs",
        device="cpu",
    )
    (record,) = run(config, progress=False)
    folder = (config.out / record.run_id).parent
    sizes = ["--candidates", "5", "--environments", "6", "--json"]
    assert main(["bench", "planners", NAME, str(folder), *quick(data), *sizes]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["system"]["device"] == "cpu"
    assert seen["system"]["threads"] == 1
    named, from_run = seen["planners"]
    assert (named["planner"], Path(from_run["planner"]).name) == (NAME, "seed-0")
    assert (named["config"]["candidates"], from_run["config"]["candidates"]) == (2, 3)
    assert (named["config"]["horizon"], from_run["config"]["horizon"]) == (16, 5)
    for one in (named, from_run):
        names = ["1 environment", "1 environment, 5 candidates", "6 environments"]
        assert [timing["setting"] for timing in one["timings"]] == names
        assert one["parameters"] == 7
        assert one["served"] in (0, 1, 8, 64, 256)
        for timing in one["timings"]:
            assert timing["calls"] == CALLS
            assert 0 < timing["p50_ms"] <= timing["p95_ms"]
            assert timing["ratio_low"] <= timing["ratio"] <= timing["ratio_high"]


def test_the_table_says_where_and_how_much(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "planners", NAME, *quick(data)]) == 0
    out = capsys.readouterr().out
    assert "1 CPU threads" in out
    assert "observations of drift; 3 decisions each" in out
    assert "1 environment, 64 candidates" in out
    assert "1.00 [1.00, 1.00]" in out
    assert "horizon 16, stride 1, history 1, candidates 2" in out


def test_settings_are_of_all_that_have_them_or_of_one(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [NAME, "trajectory-diffuser"]
    changes = ["horizon=8", "network=mlp-128", "candidates=3", f"{NAME}.candidates=5"]
    assert main(["bench", "planners", *names, *quick(data), "--settings", *changes, "--json"]) == 0
    first, second = (one["config"] for one in json.loads(capsys.readouterr().out)["planners"])
    assert (first["horizon"], first["candidates"]) == (8, 5)
    assert "network" not in first
    assert (second["horizon"], second["candidates"], second["network"]) == (8, 3, "mlp-128")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([NAME, "--settings", "width=3"], "--settings width=3 is not FIELD=VALUE"),
        ([NAME, "--settings", "horizon"], "--settings horizon is not FIELD=VALUE"),
        ([NAME, "--settings", "dt.horizon=3"], "'dt' is not among the planners given by name"),
        (["difuser"], "unknown planner 'difuser'; did you mean 'diffuser'"),
        (["offdiff.algos.bc:BCConfig"], "must derive from PlannerConfig"),
        ([NAME, "--dataset", "nowhere.hdf5"], "no such file"),
        ([NAME, "--device", "tpu"], "tpu"),
        (["."], "holds no finished run"),
    ],
)
def test_refusals(args: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "planners", *args]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([NAME, "--repeats", "0"], "must be at least 1"),
        ([NAME, "--settings", "horizon=0"], "horizon must lie in"),
        ([NAME, "--settings", "horizon=far"], "horizon=far"),
        ([NAME, "--warmup", "-1"], "must be at least 0"),
        ([], "name at least one planner"),
    ],
)
def test_options_that_measure_nothing(
    args: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "planners", *args])
    # In a box, that is broken into lines.
    assert words in " ".join(capsys.readouterr().err.split())
