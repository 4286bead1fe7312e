"""Worker processes that take turns: timings of them are paired, whatever else the machine does.

The driver starts one worker per contender and lets them work block by block, one at a time; the
others are stopped meanwhile, so that no thread of theirs spins or reads ahead. A worker reads lines
"TASK COUNT" from stdin and answers each with one JSON line. Nothing but the standard library is
needed, so that a worker can run in another library's interpreter.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Task = Callable[[int], None]
"""Does something so many times."""


@dataclass(frozen=True)
class Block:
    """What some repetitions of a task took."""

    wall: float
    """Seconds by the clock."""
    cpu: float
    """Seconds of processor time, all threads together."""


class Worker:
    """The driver's end: a process that works when told to, and is stopped meanwhile."""

    def __init__(self, command: Sequence[str]) -> None:
        """Waits until the worker is ready. SystemExit if it ends before."""
        self._command = list(command)
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.about = self._answer()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        """Process number."""
        return self._process.pid

    def run(self, task: str, count: int) -> Block:
        """What `count` repetitions of the task took."""
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.write(f"{task} {count}\n")
        self._process.stdin.flush()
        return Block(**self._answer())

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise SystemExit(f"worker ended with code {code}: {' '.join(self._command)}")
        self._process.send_signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        return answer


def serve(prepare: Callable[[], tuple[Mapping[str, Task], dict[str, Any]]]) -> None:
    """The worker's end. prepare: makes the tasks, and what the driver wants to know of them."""
    # Libraries print to stdout; the answers must not be among that.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    tasks, about = prepare()
    print(json.dumps(about), file=answers)
    for line in sys.stdin:
        name, count = line.split()
        wall, cpu = time.perf_counter(), time.process_time()
        tasks[name](int(count))
        block = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps(block), file=answers)


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile."""
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return {"median": statistics.median(values), "p10": cuts[0], "p90": cuts[-1]}


def cpu_name() -> str:
    """Model of the processor; family and model number too, for the name alone may say little."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    fields = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    name, family, model = (fields.get(k, "?") for k in ("model name", "cpu family", "model"))
    return f"{name} (family {family}, model {model})"
