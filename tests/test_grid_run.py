"""Grids are carried out: retries, failures, full disks, kills; nothing lost, nothing repeated."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest

from offdiff import grid_run
from offdiff.cli import main
from offdiff.cli.run import parse
from offdiff.core.errors import InputError
from offdiff.grid import read_grid
from offdiff.grid_plan import Job, plan
from offdiff.grid_run import Attempt, LocalExecutor, Outcome, run_jobs
from offdiff.records import read_records

HOUSE = Path(__file__).parent / "modules"
End = Callable[[Job], Outcome]


class Pretended:
    """An executor that runs nothing: a function says how every attempt at a job ends."""

    slots = 1.0

    def __init__(self, jobs: list[Job], end: End) -> None:
        self.jobs = {job.folder.path: job for job in jobs}
        self.end = end
        self.attempts: list[str] = []
        self.stopped = False

    def submit(self, attempt: Attempt) -> Future[Outcome]:
        job = self.jobs[attempt.out / attempt.folder]
        self.attempts.append(job.method.name)
        future: Future[Outcome] = Future()
        future.set_result(self.end(job))
        return future

    def stop(self) -> None:
        self.stopped = True


def finish(job: Job) -> Outcome:
    for seed in job.seeds:
        job.folder.seed(seed).mkdir(parents=True, exist_ok=True)
        (job.folder.seed(seed) / "run.json").touch()
    return Outcome(0, "done")


@pytest.fixture
def jobs(tmp_path: Path, toy_file: Path) -> list[Job]:
    """BC, IQL and TD3+BC on the toy file."""
    spec = tmp_path / "grid.toml"
    spec.write_text(f'datasets = ["{toy_file}"]\n[[runs]]\nalgos = ["bc", "iql", "td3bc"]')
    return list(plan(read_grid(str(spec)), tmp_path / "out", parse).jobs)


def carry_out(jobs: list[Job], end: End, tmp_path: Path, retries: int = 2) -> Pretended:
    executor = Pretended(jobs, end)
    run_jobs(jobs, executor, out=tmp_path / "out", threads=1, retries=retries,
             tell=lambda text: None, glance=lambda running: None)  # fmt: skip
    assert executor.stopped
    return executor


def test_a_crash_is_tried_again_bad_input_is_not_and_the_others_finish(
    tmp_path: Path, jobs: list[Job]
) -> None:
    def end(job: Job) -> Outcome:
        outcomes = {"iql": Outcome(-9, "killed"), "td3bc": Outcome(2, "no such file")}
        return outcomes.get(job.method.name) or finish(job)

    tried = carry_out(jobs, end, tmp_path).attempts
    assert sorted(tried) == ["bc", "iql", "iql", "iql", "td3bc"]
    assert [job.state for job in jobs] == ["finished", "failed", "failed"]
    found = read_records([tmp_path / "out"]).failed
    assert [(f.method, f.attempts, f.exit_code, f.reason) for f in found] == [
        ("iql", 3, -9, "killed"),
        ("td3bc", 1, 2, "no such file"),
    ]
    # The next time they are tried again, and a note goes when its run has succeeded.
    assert sorted(carry_out(jobs, finish, tmp_path).attempts) == ["iql", "td3bc"]
    assert [job.state for job in jobs] == ["finished"] * 3
    assert not read_records([tmp_path / "out"]).failed
    assert carry_out(jobs, finish, tmp_path).attempts == []


def test_an_exit_without_records_is_no_success(tmp_path: Path, jobs: list[Job]) -> None:
    carry_out(jobs[:1], lambda job: Outcome(0, "bye"), tmp_path, retries=0)
    assert jobs[0].state == "failed"


def test_a_full_disk_stops_the_grid_and_blames_no_run(tmp_path: Path, jobs: list[Job]) -> None:
    def end(job: Job) -> Outcome:
        return finish(job) if job.method.name == "bc" else Outcome(2, "x: No space left on device")

    with pytest.raises(InputError, match="is full; make room and start the grid again, 2 runs"):
        carry_out(jobs, end, tmp_path)
    assert [job.state for job in jobs] == ["finished", "missing", "missing"]


def test_nothing_is_started_on_a_disk_that_is_nearly_full(
    tmp_path: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid_run.shutil, "disk_usage", lambda path: SimpleNamespace(free=1e6))
    executor = Pretended(jobs, finish)
    with pytest.raises(InputError, match="3 runs are left"):
        run_jobs(jobs, executor, out=tmp_path / "out", threads=1, retries=0,
                 tell=lambda text: None, glance=lambda running: None)  # fmt: skip
    assert executor.attempts == []


def test_real_runs_one_that_always_crashes_and_one_that_is_killed_once(
    tmp_path: Path,
    toy_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HOUSE))
    monkeypatch.chdir(tmp_path)
    spec = tmp_path / "grid.toml"
    text = f"""
        datasets = ["{toy_file.name}"]
        options = {{ updates = 20, log_every = 10 }}
        [[runs]]
        algos = ["bc", "crashing_learner:CrashingConfig"]
        seeds = [0, 1]
    """
    spec.write_text(text)
    command = ["bench", "grid.toml", "--out", "runs", "--jobs", "2", "--retries", "1"]
    monkeypatch.setenv("CRASH", "raise")
    assert main(command) == 1
    said = capsys.readouterr()
    assert "this learner always crashes" in said.out
    assert "2 runs: 1 finished, 0 begun, 1 failed, 0 missing" in said.out
    found = read_records([tmp_path / "runs"])
    assert [record.method for record in found.finished] == ["bc", "bc"]
    assert (found.failed[0].attempts, found.failed[0].seeds) == (2, [0, 1])
    assert "runs" in found.finished[0].code["command"]
    assert str(tmp_path) not in json.dumps(found.finished[0].code)

    # Killed at its first attempt, it succeeds at its second.
    monkeypatch.setenv("CRASH", str(tmp_path / "killed"))
    assert main(command) == 0
    assert (tmp_path / "killed").exists()
    found = read_records([tmp_path / "runs"])
    assert (len(found.finished), len(found.failed)) == (4, 0)
    assert main(["bench", "status", "grid.toml", "--out", "runs"]) == 0


def children(pid: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True
    )
    return [int(word) for word in listed.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="asks ps for children")
def test_a_killed_grid_takes_its_runs_along_and_goes_on_where_it_was(
    tmp_path: Path, toy_file: Path
) -> None:
    spec = tmp_path / "grid.toml"
    text = f"""
        datasets = ["{toy_file}"]
        options = {{ log_every = 10, checkpoint_seconds = 0 }}
        [[runs]]
        algos = ["bc"]
        options = {{ updates = 20 }}
        [[runs]]
        algos = ["iql"]
        options = {{ updates = 400 }}
    """
    spec.write_text(text)
    command = [sys.executable, "-m", "offdiff", "bench", str(spec), "--jobs", "1",
               "--out", str(tmp_path / "runs")]  # fmt: skip
    bench = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_for(lambda: any(tmp_path.glob("runs/toy/iql/*/metrics.csv")), bench)
    wait_for(lambda: any(tmp_path.glob("runs/toy/iql/*/*.safetensors")), bench)
    (worker,) = children(bench.pid)
    bench.send_signal(signal.SIGKILL)
    bench.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()
    (first,) = tmp_path.glob("runs/toy/bc/*/seed-0/run.json")
    written = first.stat().st_mtime_ns
    assert not any(tmp_path.glob("runs/toy/iql/*/seed-0/run.json"))

    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "1 of 2 runs" in again.stderr
    assert "resumed  iql" in again.stderr
    assert first.stat().st_mtime_ns == written
    assert len(read_records([tmp_path / "runs"]).finished) == 2


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.02)


def test_a_second_grid_in_the_same_folder_is_refused(
    tmp_path: Path, toy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from filelock import FileLock

    spec = tmp_path / "grid.toml"
    spec.write_text(f'datasets = ["{toy_file}"]\n[[runs]]\nalgos = ["bc"]')
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".bench.lock"):
        assert main(["bench", str(spec), "--out", str(tmp_path / "out")]) == 2
    assert "another `offdiff bench` is at work" in capsys.readouterr().err


def test_stopping_an_executor_ends_its_processes(tmp_path: Path, toy_file: Path) -> None:
    executor = LocalExecutor(1)
    arguments = ("--algo", "iql", "--dataset", str(toy_file), "--updates", "1000000")
    future = executor.submit(Attempt(arguments, tmp_path, Path("out"), Path("run"), 1))
    wait_until = time.monotonic() + 30
    while not (tmp_path / "out" / "run" / "log.txt").exists() and time.monotonic() < wait_until:
        time.sleep(0.02)
    time.sleep(0.2)
    executor.stop()
    assert future.result(timeout=30).exit_code == 75
    assert os.path.exists(tmp_path / "out" / "run" / "log.txt")
