"""What TensorBoard and Weights & Biases are given, read back from files, without key or network."""

import http.server
import importlib
import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from straight_planner import record_drift

import offdiff
from offdiff.algos.bc import BCConfig
from offdiff.cli import main
from offdiff.config import RunConfig
from offdiff.outcome import episode_table, final_numbers, flat
from offdiff.planners.veteran import VeteranConfig
from offdiff.records import RunRecord, read_record
from offdiff.tensorboard_logger import TensorBoardLogger
from offdiff.wandb_logger import WandbLogger

wandb = pytest.importorskip("wandb", exc_type=ImportError)
pytest.importorskip("tensorboard", exc_type=ImportError)

OUTCOME = {"mean": 3.0, "std": 1.0, "score_mean": 5.0, "returns": [2.0, 4.0],
           "scores": [4.0, 6.0], "lengths": [7, 8], "success": [True, False]}  # fmt: skip
RECORD = RunRecord(
    run_id="r", status="finished", code={}, config={}, data={}, seeds={"train": 6},
    algo={"n_gradient_steps": 70}, eval=OUTCOME, curve=[], system={}, cost={"train_seconds": 9},
)  # fmt: skip


class NotWandb(http.server.BaseHTTPRequestHandler):
    """Answers, but not as W&B does."""

    def do_GET(self) -> None:
        self.send_error(404)

    def do_POST(self) -> None:
        self.send_error(401)

    def log_message(self, *args: object) -> None:
        pass


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
    """Of the offline recordings below a folder: the run, last summary and history, artefacts."""
    for _ in range(100):  # wandb's service may write the end of a file after `finish` returns
        found = _kept_so_far(folder)
        if found["runs"] == found["ended"]:
            break
        time.sleep(0.1)
    return found


def _kept_so_far(folder: Path) -> dict[str, Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[str, Any] = {"summary": {}, "history": {}, "artefacts": [], "runs": 0, "ended": 0}
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
            elif kind == "exit":
                found["ended"] += 1
            elif kind == "artifact":
                found["artefacts"].append(record.artifact)
    return found


@pytest.mark.usefixtures("keyless")
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


@pytest.mark.parametrize("answers", [False, True])
@pytest.mark.usefixtures("keyless")
def test_with_a_key_and_no_service_the_run_is_recorded_offline(
    answers: bool, tmp_path: Path
) -> None:
    """Nobody listens, or a server that is not W&B's does. In a process of its own: wandb remembers
    a key as long as its process lives."""
    program = (
        "import sys; from offdiff import cli, wandb_logger; wandb_logger.INIT_SECONDS = 3.0; "
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NotWandb) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port if answers else 9}"
        done = subprocess.run(
            [sys.executable, "-c", program, "run", "--algo", "bc", "--updates", "4",
             "--eval-every", "0", "--final-episodes", "1", "--out", "runs", "--wandb",
             "--device", "cpu"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
            env=os.environ | {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": address},
        )  # fmt: skip
        server.shutdown()
    assert done.returncode == 0, done.stderr
    (warning,) = [line for line in done.stderr.splitlines() if "offdiff:" in line]
    assert ("has refused" if answers else f"not reachable at {address}") in warning
    assert warning.endswith("recording offline")
    (path,) = (tmp_path / "runs").rglob("run.json")
    kept = kept_by_wandb(path.parents[1])
    assert kept["summary"]["final_score"] == pytest.approx(read_record(path).eval["score_mean"])


@pytest.mark.usefixtures("keyless")
def test_a_run_that_goes_on_is_the_same_run_there(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(*args: object) -> None:
        raise KeyboardInterrupt

    run_module = importlib.import_module("offdiff.run")  # the package's `run` is the function
    config = replace(config, seeds=(0,), wandb_group="mine")
    finish = run_module._finish
    monkeypatch.setattr(run_module, "_finish", stopping)
    with pytest.raises(KeyboardInterrupt):
        offdiff.run(config, progress=False)
    (folder,) = config.out.glob("*/*/*")
    before = kept_by_wandb(folder)
    assert before["runs"] == 1
    assert "final_score" not in before["summary"]
    monkeypatch.setattr(run_module, "_finish", finish)
    offdiff.run(replace(config, resume=True), progress=False)
    after = kept_by_wandb(folder)
    assert (after["runs"], after["id"], after["group"]) == (2, before["id"], "mine")
    assert after["id"] == (folder / "wandb-id.txt").read_text().strip()
    assert "final_score" in after["summary"]


@pytest.mark.usefixtures("keyless")
def test_planners_are_one_run_per_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_GROUP", "grid of planners")
    record_drift(tmp_path / "drift.hdf5")
    planner = VeteranConfig(horizon=3, network="mlp-128", hidden=(16, 16), candidates=2, levels=2,
                            batch_size=16, replan_every=2, holdout=0.2)  # fmt: skip
    records = offdiff.run(
        RunConfig(
            dataset=str(tmp_path / "drift.hdf5"), planner=planner, seeds=(0, 3), updates=4,
            log_every=2, final_episodes=2, out=tmp_path / "runs", wandb=True, device="cpu",
        ),
        progress=False,
    )  # fmt: skip
    kept = [kept_by_wandb(tmp_path / "runs" / record.run_id) for record in records]
    assert [one["runs"] for one in kept] == [1, 1]
    assert kept[0]["id"] != kept[1]["id"]
    assert {one["group"] for one in kept} == {"grid of planners"}
    assert kept[1]["tags"] == {"drift", "veteran"}
    assert kept[1]["summary"]["final_return"] == pytest.approx(records[1].eval["mean"])


@pytest.mark.usefixtures("keyless")
def test_pictures_and_films_are_shown_and_kept(tmp_path: Path) -> None:
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture, film = tmp_path / "synthetic.png", tmp_path / "seed-6" / "policy.mp4"
    Image.new("RGB", (5, 4), (255, 0, 0)).save(picture)
    film.parent.mkdir()
    film.write_bytes(b"a film")
    media = [film, picture]
    logger = WandbLogger(tmp_path, [6], {"alpha": 1}, name="a", tags=["b"], group="",
                         default_group="c")  # fmt: skip
    logger.finish([RECORD], media)
    logger.close()
    kept = kept_by_wandb(tmp_path)
    assert kept["history"]["synthetic.png/width"] == 5
    assert kept["history"]["seed-6/policy.mp4/_type"] == "video-file"
    (files,) = [[e.path for e in a.manifest.contents] for a in kept["artefacts"] if a.type == "run"]
    assert files == ["seed-6/policy.mp4", "synthetic.png"]

    board = TensorBoardLogger(tmp_path, [6], {"algo": {"alpha": 1}, "hidden": [2, 3]})
    board.finish([RECORD], media)
    board.close()
    assert [path.name for path in (tmp_path / "tensorboard").iterdir()] == [
        path.name for path in (tmp_path / "tensorboard").glob("events.*")
    ]  # no time-stamped folder beside the events
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == ["synthetic.png"]
    assert "episodes/6/text_summary" in events.Tags()["tensors"]
    assert "_hparams_/session_start_info" in events.summary_metadata
    (point,) = events.Scalars("final_score/6")
    assert (point.step, point.value) == (70, 5.0)


def test_a_logger_that_fails_is_told_of_once_and_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = WandbLogger(tmp_path, [6], {}, name="a", tags=[], group="", default_group="c")

    def broken(*args: object, **options: object) -> None:
        raise ConnectionError("the service is gone\nmore of it")

    monkeypatch.setattr(logger._run, "log", broken)
    logger.log(1, [{"loss": 1.0}])
    logger.log(2, [{"loss": 0.5}])
    logger.finish([RECORD], [])
    logger.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "offdiff: W&B logging has stopped (the service is gone); the run goes on"


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
    assert final_numbers(RECORD) == {
        "final_return": 3.0, "final_return_std": 1.0, "final_score": 5.0, "final_success": 0.5,
        "train_seconds": 9.0,
    }  # fmt: skip
    assert episode_table(RECORD) == (
        ["seed", "episode", "return", "score", "length", "success"],
        [[6, 0, 2.0, 4.0, 7, True], [6, 1, 4.0, 6.0, 8, False]],
    )
    assert flat({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}
