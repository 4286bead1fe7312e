"""`offdiff eval` and `offdiff export` on a finished run."""

import json
from pathlib import Path

import pytest
import torch

from offdiff.algos.bc import BCConfig
from offdiff.checkpoint import load_policy
from offdiff.cli import main
from offdiff.config import RunConfig
from offdiff.run import run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two seeds."""
    config = RunConfig(
        algo=BCConfig(hidden=(16,)),
        seeds=(0, 1),
        updates=20,
        eval_every=0,
        final_episodes=1,
        out=tmp_path_factory.mktemp("runs"),
        device="cpu",
    )
    records = run(config, progress=False)
    return (config.out / records[0].run_id).parent


def test_eval_plays_other_episodes_of_all_seeds(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(finished), "--episodes", "2", "--seed", "5", "--json"]) == 0
    outcomes = json.loads(capsys.readouterr().out)
    assert [Path(o["policy"]).name for o in outcomes] == ["seed-0", "seed-1"]
    for outcome in outcomes:
        assert outcome["n_episodes"] == len(outcome["returns"]) == 2
        assert outcome["mean"] == pytest.approx(sum(outcome["returns"]) / 2)


def test_eval_of_one_seed_repeats_the_records_returns(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((finished / "seed-1" / "run.json").read_text())
    options = ["--episodes", "1", "--seed", str(record["eval"]["seed"]), "--json"]
    assert main(["eval", str(finished / "seed-1"), *options]) == 0
    (outcome,) = json.loads(capsys.readouterr().out)
    assert outcome["returns"] == record["eval"]["returns"]


def test_eval_without_a_simulator_estimates_the_value(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(finished), "--fqe", "--fqe-updates", "5", "--json"]) == 0
    outcomes = json.loads(capsys.readouterr().out)
    assert len(outcomes) == 2
    assert all(o["low"] <= o["value"] <= o["high"] for o in outcomes)


@pytest.mark.parametrize(
    ("format", "name"), [("torchscript", "policy.pt"), ("onnx", "policy.onnx")]
)
def test_export_agrees_with_the_policy(
    finished: Path, capsys: pytest.CaptureFixture[str], format: str, name: str
) -> None:
    if format == "onnx":
        pytest.importorskip("onnxscript", reason="the export extra is not installed")
    assert main(["export", str(finished / "seed-1"), "--format", format]) == 0
    assert "differs by at most" in capsys.readouterr().out
    assert (finished / "seed-1" / name).stat().st_size > 0
    if format == "torchscript":
        obs = torch.randn(5, 11, generator=torch.Generator().manual_seed(0))
        exported = torch.jit.load(str(finished / "seed-1" / name))
        torch.testing.assert_close(exported(obs), load_policy(finished / "seed-1")(obs))
