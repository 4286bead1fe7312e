"""Whole runs: records, resuming after kill -9, mapped and joint seeds, data without simulator."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offdiff.algos.bc import BCConfig
from offdiff.algos.iql import IQLConfig
from offdiff.algos.rebrac import ReBRACConfig
from offdiff.algos.td3bc import TD3BCConfig
from offdiff.checkpoint import load_policy
from offdiff.config import RunConfig
from offdiff.core.errors import InputError
from offdiff.core.protocols import Learner, LearnerConfig
from offdiff.core.tensors import load_tensors
from offdiff.data.episodes import Episodes
from offdiff.data.hdf5 import write_hdf5
from offdiff.prepare import Prepared
from offdiff.records import RunRecord, read_record
from offdiff.run import run
from offdiff.training import Row

SMALL = (16, 16)


def config(out: Path, algo: LearnerConfig | None = None, **changes: Any) -> RunConfig:
    base = RunConfig(
        algo=algo or IQLConfig(hidden=SMALL, batch_size=32),
        updates=60,
        log_every=20,
        eval_every=0,
        final_episodes=2,
        out=out,
        device="cpu",
    )
    return replace(base, **changes)


@pytest.fixture
def no_simulator(tmp_path: Path) -> str:
    """Ten episodes of noise, of which no environment is known."""
    random_numbers = np.random.default_rng(0)
    n = 200
    last = np.arange(n) % 20 == 19
    obs, beyond = random_numbers.normal(size=(2, n, 3)).astype(np.float32)
    next_obs = np.where(last[:, None], beyond, np.roll(obs, -1, axis=0))
    episodes = Episodes(
        obs=obs,
        action=random_numbers.uniform(-1, 1, (n, 2)).astype(np.float32),
        reward=random_numbers.normal(size=n).astype(np.float32),
        next_obs=next_obs,
        terminal=last & (np.arange(n) < 100),
        truncated=last & (np.arange(n) >= 100),
        successor_known=np.ones(n, bool),
    )
    path = tmp_path / "noise.hdf5"
    write_hdf5(path, episodes, {})
    return str(path)


def folder_of(out: Path) -> Path:
    (found,) = out.glob("*/*/*")
    return found


def test_a_run_leaves_a_complete_record(tmp_path: Path) -> None:
    (record,) = run(config(tmp_path, eval_every=20, eval_episodes=1), progress=False)
    folder = folder_of(tmp_path)
    assert read_record(folder / "seed-0" / "run.json") == record
    assert record.status == "finished"
    assert len(record.eval["returns"]) == len(record.eval["scores"]) == 2
    assert record.eval["mean"] == pytest.approx(np.mean(record.eval["returns"]))
    assert record.eval["env_id"] == "Hopper-v4"
    assert record.eval["checkpoint"] == "last"
    assert [point["update"] for point in record.curve] == [20, 40]
    assert record.data["dataset_id"] == "hopper-mixed-sample"
    assert record.data["behaviour"]["score_mean"] < 100
    assert record.config["diff_from_default"] == {"batch_size": 32, "hidden": [16, 16]}
    assert len(record.code["git_commit"] or "0" * 40) == 40
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [row["update"] for row in rows] == ["20", "40", "60"]
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "metrics.csv", "seed-0"]


def test_a_probe_adds_to_the_curve_and_changes_nothing_else(tmp_path: Path) -> None:
    def probe(learner: Learner, prepared: Prepared, update: int) -> list[Row]:
        policies = [prepared.deploy(learner.policy(i)) for i in range(2)]
        return [{"seen": update + i, "inputs": len(p.obs_mean)} for i, p in enumerate(policies)]

    asked = {"eval_every": 20, "eval_episodes": 1, "seeds": (0, 1)}
    plain = run(config(tmp_path / "plain", **asked), progress=False)
    probed = run(config(tmp_path / "probed", **asked), progress=False, probe=probe)
    for i, (without, with_it) in enumerate(zip(plain, probed, strict=True)):
        more = [{**row, "seen": row["update"] + i, "inputs": 11} for row in without.curve]
        assert with_it.curve == more
        assert with_it.eval == without.eval
        assert with_it.config["config_hash"] == without.config["config_hash"]


def test_the_saved_policy_is_the_evaluated_one(tmp_path: Path) -> None:
    from offdiff.reevaluate import play

    (record,) = run(config(tmp_path), progress=False)
    again = play(folder_of(tmp_path) / "seed-0", "", 2, record.eval["seed"], False)
    assert again["returns"] == record.eval["returns"]


def test_same_seed_same_result_and_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    first = run(config(tmp_path / "a"), progress=False)
    second = run(config(tmp_path / "b"), progress=False)
    assert first[0].eval == second[0].eval
    weights = [load_tensors(folder_of(tmp_path / x) / "seed-0/policy.safetensors")[0] for x in "ab"]
    assert all(np.array_equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert run(config(tmp_path / "a"), progress=False)[0].cost == first[0].cost


def test_joint_seeds_agree_with_single_ones(tmp_path: Path) -> None:
    joint = run(config(tmp_path / "joint", seeds=(4, 2)), progress=False)
    (alone,) = run(config(tmp_path / "alone", seeds=(2,)), progress=False)
    assert [record.seeds["train"] for record in joint] == [4, 2]
    # Float32 rounding differs between batched and single products; after 60 updates the policies
    # still agree to about 1e-5, and short episodes of Hopper to a fraction of a point.
    assert joint[1].eval["mean"] == pytest.approx(alone.eval["mean"], rel=0.02)


def test_data_without_a_simulator_trains_and_says_so(tmp_path: Path, no_simulator: str) -> None:
    for algo in (BCConfig(hidden=SMALL), ReBRACConfig(hidden=SMALL, batch_size=32)):
        (record,) = run(config(tmp_path / "out", algo, dataset=no_simulator), progress=False)
        assert record.eval == {}
        assert record.data["n_transitions"] == (195 if algo.needs_next_action else 200)


def test_memory_mapped_training_is_the_same(tmp_path: Path, no_simulator: str) -> None:
    for name, mapped in (("memory", False), ("disk", True)):
        run(
            config(tmp_path / name, dataset=no_simulator, memory_mapped=mapped, seeds=(0, 1)),
            progress=False,
        )
    files = [sorted((tmp_path / x).rglob("policy.safetensors")) for x in ("memory", "disk")]
    for a, b in zip(*files, strict=True):
        assert a.read_bytes() == b.read_bytes()
    assert not list((tmp_path / "disk").rglob("*.npy"))


def test_ten_percent_cloning_keeps_the_best_episodes(tmp_path: Path, no_simulator: str) -> None:
    algo = BCConfig(hidden=SMALL, keep_best=0.1)
    (record,) = run(config(tmp_path / "out", algo, dataset=no_simulator), progress=False)
    assert record.data["n_episodes"] == 1
    assert record.data["subset_fraction"] == pytest.approx(0.1)


def test_diverging_training_stops_with_the_metrics_name(tmp_path: Path, no_simulator: str) -> None:
    algo = TD3BCConfig(hidden=SMALL, batch_size=32, reward="scale_shift(1e30,0)")
    with pytest.raises(InputError, match=r"critic_loss of seed .* became (inf|nan)"):
        run(config(tmp_path / "out", algo, dataset=no_simulator), progress=False)
    assert not list((tmp_path / "out").rglob("run.json"))


def test_an_unfinished_run_is_neither_lost_nor_entered_by_accident(
    tmp_path: Path, no_simulator: str
) -> None:
    wanted = config(tmp_path / "out", dataset=no_simulator)
    run(wanted, progress=False)
    folder = folder_of(tmp_path / "out")
    (folder / "seed-0" / "run.json").unlink()
    with pytest.raises(InputError, match="--resume"):
        run(wanted, progress=False)
    run(replace(wanted, resume=True), progress=False)
    with pytest.raises(InputError, match="no run to resume"):
        run(replace(wanted, resume=True, updates=70), progress=False)


def test_resuming_with_other_options_names_them(tmp_path: Path, no_simulator: str) -> None:
    process = start_cli(tmp_path / "out", no_simulator)
    wait_for_checkpoint(tmp_path / "out", process)
    process.kill()
    process.wait()
    done = subprocess.run(
        [*cli(tmp_path / "out", no_simulator), "--resume", "--updates", "77"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "updates 600 -> 77" in done.stderr


def cli(out: Path, dataset: str) -> list[str]:
    return [
        sys.executable, "-c", "import sys; from offdiff.cli import main; sys.exit(main())",
        "run", "--algo", "td3bc", "--dataset", dataset, "--updates", "600", "--log-every", "10",
        "--checkpoint-seconds", "0", "--seeds", "0", "1", "--out", str(out),
        "--algo.hidden", "16", "16", "--algo.batch-size", "32",
    ]  # fmt: skip


def start_cli(out: Path, dataset: str, *more: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [*cli(out, dataset), *more], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def wait_for_checkpoint(out: Path, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(1200):
        if list(out.rglob("checkpoint.safetensors")) or process.poll() is not None:
            return
        time.sleep(0.05)
    raise TimeoutError


def test_killed_runs_end_in_the_same_bits(tmp_path: Path, no_simulator: str) -> None:
    undisturbed = tmp_path / "undisturbed"
    assert start_cli(undisturbed, no_simulator).wait() == 0
    disturbed, moments, kills = tmp_path / "disturbed", random.Random(0), 0
    process = start_cli(disturbed, no_simulator)
    while kills < 3:
        wait_for_checkpoint(disturbed, process)
        time.sleep(moments.uniform(0.0, 0.3))
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        process = start_cli(disturbed, no_simulator, "--resume")
    assert process.wait() == 0, (process.stderr.read() if process.stderr else b"").decode()
    assert kills == 3, "the run is too short to be killed three times"

    for name in ("metrics.csv", "seed-0/policy.safetensors", "seed-1/policy.safetensors"):
        wanted = (folder_of(undisturbed) / name).read_bytes()
        assert (folder_of(disturbed) / name).read_bytes() == wanted, name


def test_tensorboard_and_offline_wandb_record_beside_the_csv(
    tmp_path: Path, no_simulator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the wandb extra is not installed")
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    for variable in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no key in ~/.netrc either
    run(
        config(tmp_path / "out", dataset=no_simulator, tensorboard=True, wandb=True), progress=False
    )
    folder = folder_of(tmp_path / "out")
    assert list((folder / "tensorboard").glob("events.*"))
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert (folder / "metrics.csv").exists()


def test_a_policy_file_with_a_pickle_is_refused(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "policy.safetensors"
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(InputError, match="holds a pickle"):
        load_policy(path)
    path.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(InputError, match="holds a pickle"):
        load_policy(path)
    path.write_bytes(b"\x10\x00")
    with pytest.raises(InputError, match="damaged"):
        load_policy(path)


def test_records_of_another_schema_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(InputError, match="schema version 99"):
        read_record(path)
    for text in ("{", "[]", json.dumps({"schema_version": 1, "foreign": 2})):
        path.write_text(text)
        with pytest.raises(InputError, match="no run record"):
            read_record(path)
    assert "schema_version" in RunRecord.__dataclass_fields__
