"""Grids on Ray: nodes that share the disk and nodes that do not, a node that dies, no cluster."""

import time
from pathlib import Path
from typing import Any

import pytest

from offdiff.cli import main
from offdiff.core.errors import InputError
from offdiff.folder import IDENTITY
from offdiff.grid_ray import RayExecutor, run_on_node, write_files
from offdiff.grid_run import Attempt
from offdiff.records import read_record, read_records

HOUSE = Path(__file__).parent / "modules"


def executor(address: str, out: Path) -> RayExecutor:
    return RayExecutor(address, out, cpus=1, gpus=0, retries=0)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:9", "no Ray cluster answers at 127.0.0.1:9"),
        ("here", "must be local, auto or HOST:PORT, got 'here'"),
        ("host:port", "must be local, auto or HOST:PORT"),
    ],
)
def test_an_address_where_nobody_answers(tmp_path: Path, address: str, said: str) -> None:
    pytest.importorskip("ray", exc_type=ImportError)
    with pytest.raises(InputError, match=said):
        executor(address, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_node_without_the_disk_sends_the_files_back(
    tmp_path: Path, toy_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFDIFF_CACHE", str(tmp_path / "cache"))
    arguments = ("--algo", "bc", "--dataset", str(toy_file), "--updates", "20")
    folder = Path("toy") / "bc" / "0-12345678"
    attempt = Attempt(arguments, tmp_path / "absent", Path("runs"), folder, threads=1)
    outcome, files = run_on_node(attempt, tmp_path / "no mark")
    assert outcome.exit_code == 0
    # What runs where is decided by the run's own folder name, not by the attempt's.
    assert set(files) == {"log.txt"}
    (ledger,) = (tmp_path / "cache").glob("bench/runs/toy/bc/*/config.json")
    made = ledger.parent
    attempt = Attempt(arguments, tmp_path / "absent", Path("runs"), folder.with_name(made.name), 1)
    outcome, files = run_on_node(attempt, tmp_path / "no mark")  # finished: nothing is repeated
    assert outcome.exit_code == 0
    assert {"seed-0/run.json", "seed-0/policy.safetensors", "metrics.csv", IDENTITY} <= set(files)
    home = tmp_path / "home" / made.name
    write_files(home, files)
    assert read_record(home / "seed-0" / "run.json").method == "bc"


GRID = """
    datasets = ["toy.hdf5"]
    seeds = [0, 1, 2, 3]
    options = {{ updates = {updates}, log_every = 50, checkpoint_seconds = 0 }}
    [[runs]]
    algos = ["bc", "iql", "td3bc"]
    together = false
    [[runs]]
    algos = ["crashing_learner:CrashingConfig"]
"""


@pytest.mark.slow
def test_two_nodes_one_of_which_dies(
    tmp_path: Path,
    toy_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("ray", exc_type=ImportError)
    from threading import Thread

    from ray.cluster_utils import Cluster

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(HOUSE))
    monkeypatch.setenv("CRASH", "raise")
    (tmp_path / "grid.toml").write_text(GRID.format(updates=1500))
    small: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=small | {"include_dashboard": False})
    second = cluster.add_node(**small)
    ends: list[int] = []

    def bench() -> None:
        command = ["bench", "grid.toml", "--out", "runs", "--backend", "ray"]
        ends.append(main([*command, "--address", cluster.address, "--retries", "2"]))

    grid = Thread(target=bench)
    try:
        grid.start()
        deadline = time.monotonic() + 120
        while len(set(tmp_path.glob("runs/toy/*/*/metrics.csv"))) < 4:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        cluster.remove_node(second, allow_graceful=False)
        grid.join(timeout=400)
    finally:
        cluster.shutdown()
    assert ends == [1]
    found = read_records([tmp_path / "runs"])
    assert len(found.finished) == 12
    assert [failure.method for failure in found.failed] == ["crashing_learner:CrashingConfig"]
    assert "this learner always crashes" in capsys.readouterr().out
    logs = "".join(path.read_text() for path in tmp_path.glob("runs/**/log.txt"))
    assert "--resume" in logs  # what the dead node had begun was continued
    assert not list(tmp_path.glob("runs/.shared-*"))
