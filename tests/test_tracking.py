"""What TensorBoard and Weights & Biases are given, read back from files, without key or network."""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import offdiff
from offdiff.algos.bc import BCConfig
from offdiff.cli import main
from offdiff.config import RunConfig
from offdiff.outcome import episode_table, final_numbers, flat
from offdiff.records import RunRecord

wandb = pytest.importorskip("wandb", exc_type=ImportError)
pytest.importorskip("tensorboard", exc_type=ImportError)


@pytest.fixture
def keyless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key in the environment or the home folder."""
    for variable in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_RUN_GROUP", "WANDB_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(
        algo=BCConfig(batch_size=8), seeds=(0, 1), updates=4, log_every=2, eval_every=0,
        final_episodes=2, out=tmp_path / "runs", wandb=True, tensorboard=True, device="cpu",
    )  # fmt: skip


def stored(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format after seven bytes of W&B's."""
    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:  # what is left of a block holds no header
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or last
            yield parts
            parts = b""


def kept_by_wandb(folder: Path) -> dict[str, Any]:
    """Of the offline recordings below a folder: the run, its config, last summary, artefacts."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[str, Any] = {"summary": {}, "history": {}, "artefacts": [], "runs": 0}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        found["runs"] += 1
        for data in stored(path):
            record = Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                found |= {"id": record.run.run_id, "group": record.run.run_group,
                          "tags": set(record.run.tags), "type": record.run.job_type}  # fmt: skip
            elif kind == "summary":
                for item in record.summary.update:
                    name = item.key or "/".join(item.nested_key)
                    found["summary"][name] = json.loads(item.value_json)
            elif kind == "history":
                for item in record.history.item:
                    name = item.key or "/".join(item.nested_key)
                    found["history"][name] = json.loads(item.value_json)
            elif kind == "request" and record.request.HasField("log_artifact"):
                found["artefacts"].append(record.request.log_artifact.artifact)
            elif kind == "artifact":
                found["artefacts"].append(record.artifact)
    return found


@pytest.mark.usefixtures("keyless", "own_matmul")
def test_a_run_without_a_key_is_whole_on_disk(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    records = offdiff.run(config, progress=False)
    assert "no W&B key" in capsys.readouterr().err
    folder = (config.out / records[0].run_id).parent
    kept = kept_by_wandb(folder)
    assert kept["runs"] == 1
    assert kept["group"] == f"hopper-mixed-sample/bc/{records[0].config['config_hash']}"
    assert kept["tags"] == {"hopper-mixed-sample", "bc"}
    assert kept["type"] == "run"
    scores = [record.eval["score_mean"] for record in records]
    assert kept["summary"]["final_score"] == pytest.approx(sum(scores) / 2)
    assert kept["summary"]["seed-1/final_score"] == pytest.approx(scores[1])
    assert kept["history"]["final_episodes/nrows"] == 4
    files = {
        entry.path
        for artefact in kept["artefacts"]
        if artefact.type == "run"
        for entry in artefact.manifest.contents
    }
    assert {"seed-0/run.json", "seed-1/run.json"} <= files

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    for seed, score in enumerate(scores):
        (point,) = events.Scalars(f"final_score/{seed}")
        assert (point.step, point.value) == (4, pytest.approx(score))


@pytest.mark.usefixtures("keyless")
def test_tables_are_one_run(tmp_path: Path) -> None:
    pytest.importorskip("pandas", exc_type=ImportError)
    runs = Path(__file__).parents[1] / "results" / "runs" / "hopper-medium-zoo"
    assert main(["table", str(runs), "--out", str(tmp_path), "--draws", "20", "--wandb"]) == 0
    kept = kept_by_wandb(tmp_path)
    assert (kept["runs"], kept["type"], kept["group"]) == (1, "tables", "scores")
    assert kept["history"]["scores/nrows"] >= 8


def test_without_the_extra_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    command = ["run", "--algo", "bc", "--updates", "2", "--wandb", "--out", str(tmp_path / "o")]
    assert main(command) == 2
    assert "pip install 'offdiff[wandb]'" in capsys.readouterr().err


def test_numbers_and_episodes_of_a_record() -> None:
    outcome = {"mean": 3.0, "std": 1.0, "score_mean": 5.0, "returns": [2.0, 4.0],
               "scores": [4.0, 6.0], "lengths": [7, 8], "success": [True, False]}  # fmt: skip
    record = RunRecord(
        run_id="r", status="finished", code={}, config={}, data={}, seeds={"train": 6}, algo={},
        eval=outcome, curve=[], system={}, cost={"train_seconds": 9},
    )  # fmt: skip
    assert final_numbers(record) == {
        "final_return": 3.0, "final_return_std": 1.0, "final_score": 5.0, "final_success": 0.5,
        "train_seconds": 9.0,
    }  # fmt: skip
    assert episode_table(record) == (
        ["seed", "episode", "return", "score", "length", "success"],
        [[6, 0, 2.0, 4.0, 7, True], [6, 1, 4.0, 6.0, 8, False]],
    )
    assert flat({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}
