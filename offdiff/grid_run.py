"""Carries out a plan: what is not finished is run, resumed and retried, on some executor.

An executor turns attempts into futures; there is one for processes on this machine, below, and one
for a Ray cluster (`offdiff.grid_ray`). An attempt is always a process of its own: a run that
crashes takes nothing with it.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from offdiff.core.errors import InputError
from offdiff.core.files import write_text
from offdiff.folder import IDENTITY
from offdiff.grid_plan import Job
from offdiff.records import FAILURE, Failure

LOG = "log.txt"
"""Everything that the attempts at a run printed, in the run's folder."""
BAD_INPUT = 2
"""Exit code that no second attempt will change."""
LEAST_FREE = 200e6
"""Bytes of disk below which no further run is started."""
DISK_FULL = "No space left on device"
GLANCE = 2.0
"""Seconds between two looks at how far the running ones are."""


@dataclass(frozen=True)
class Attempt:
    """One call of `offdiff run`, wherever it will be made."""

    arguments: tuple[str, ...]
    """Of `offdiff run`, but for --out and --resume."""
    cwd: Path
    out: Path
    """As given, mostly relative to `cwd`: a record then names no machine's folders."""
    folder: Path
    """The run's folder, relative to `out`."""
    threads: int


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    exit_code: int
    """0 is success; negative: the signal that ended it."""
    reason: str
    """Its last line."""


class Executor(Protocol):
    """Where attempts are made."""

    slots: float
    """How many at once."""

    def submit(self, attempt: Attempt) -> Future[Outcome]:
        """Starts an attempt."""
        ...

    def stop(self) -> None:
        """Ends what is running."""
        ...


class LocalExecutor:
    """Processes on this machine."""

    def __init__(self, slots: int) -> None:
        self.slots: float = slots
        self._pool = ThreadPoolExecutor(slots)
        self._running: set[subprocess.Popen[bytes]] = set()

    def submit(self, attempt: Attempt) -> Future[Outcome]:
        """Starts a process that ends with this one (`offdiff.worker`)."""
        return self._pool.submit(self._call, attempt)

    def stop(self) -> None:
        """Closes the input of every process, at which it leaves."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in tuple(self._running):
            assert process.stdin is not None
            process.stdin.close()
        self._pool.shutdown()

    def _call(self, attempt: Attempt) -> Outcome:
        folder = attempt.cwd / attempt.out / attempt.folder
        folder.mkdir(parents=True, exist_ok=True)
        # Only here is it known what an attempt that lost its machine has left.
        resume = ["--resume"] if (folder / IDENTITY).exists() else []
        command = ["run", *attempt.arguments, "--out", str(attempt.out), *resume]
        with (folder / LOG).open("ab") as log:
            log.write(f"$ offdiff {' '.join(command)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                [sys.executable, "-m", "offdiff.worker", *command],
                cwd=attempt.cwd,
                env=os.environ | {"OMP_NUM_THREADS": str(attempt.threads)},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            self._running.add(process)
            process.wait()
            self._running.discard(process)
        return Outcome(process.returncode, _last_line(folder / LOG, process.returncode))


def run_jobs(
    jobs: Sequence[Job],
    executor: Executor,
    *,
    out: Path,
    threads: int,
    retries: int,
    tell: Callable[[str], None],
    glance: Callable[[Sequence[Job]], None],
) -> None:
    """Runs every job that is not finished; afterwards their states say what became of them.

    retries: further attempts at a run that crashed; bad input is not tried again.
    tell: takes a line for people; glance: takes the running jobs every two seconds.
    Raises InputError when the disk is full: what runs is let end, the rest can be continued.
    """
    queue = deque(job for job in jobs if job.state != "finished")
    attempts: Counter[Job] = Counter()
    running: dict[Future[Outcome], Job] = {}
    full = False
    try:
        while queue or running:
            full = full or shutil.disk_usage(_existing(out)).free < LEAST_FREE
            if full and not running:
                raise InputError(
                    f"the disk of {out} is full; make room and start the grid again, "
                    f"{len(queue)} runs are left"
                )
            while queue and not full and len(running) < executor.slots:
                job = queue.popleft()
                attempts[job] += 1
                tell(f"{'resumed' if job.begun else 'started':9}{job}")
                running[executor.submit(_attempt(job, out, threads))] = job
            done, _ = wait(running, timeout=GLANCE, return_when=FIRST_COMPLETED)
            for future in done:
                job = running.pop(future)
                outcome = future.result()
                full = full or DISK_FULL in outcome.reason
                again = attempts[job] <= retries and outcome.exit_code != BAD_INPUT
                if job.finished:
                    (job.folder.path / FAILURE).unlink(missing_ok=True)
                    tell(f"{'finished':9}{job}")
                elif full or again:
                    tell(f"{'stopped':9}{job}: {outcome.reason}")
                    queue.append(job)
                else:
                    _note(job, out, outcome, attempts[job])
                    tell(f"{'failed':9}{job}: {outcome.reason}")
            glance(list(running.values()))
    finally:
        executor.stop()


def _attempt(job: Job, out: Path, threads: int) -> Attempt:
    return Attempt(
        arguments=job.arguments,
        cwd=Path.cwd(),
        out=out,
        folder=job.folder.path.relative_to(out),
        threads=threads,
    )


def _note(job: Job, out: Path, outcome: Outcome, attempts: int) -> None:
    failure = Failure(
        dataset=job.dataset,
        method=job.method.name,
        changes=dict(job.changes),
        updates=job.updates,
        seeds=list(job.seeds),
        command=" ".join(["offdiff", "run", *job.arguments, "--out", str(out)]),
        attempts=attempts,
        exit_code=outcome.exit_code,
        reason=outcome.reason,
        log=LOG,
    )
    text = json.dumps(dataclasses.asdict(failure), indent=1)
    write_text(job.folder.path / FAILURE, text + "\n")


def _last_line(log: Path, exit_code: int) -> str:
    if exit_code < 0:
        return f"ended by signal {-exit_code}" + (" (out of memory?)" if exit_code == -9 else "")
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    words = [line.strip(" │╭╮╰╯─") for line in lines]
    return next((line for line in reversed(words) if line), f"exit code {exit_code}")


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
