"""Runs of a grid on a Ray cluster: an existing one by its address, or one started here."""

import logging
import os
import secrets
import socket
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from offdiff.checkpoint import CHECKPOINT
from offdiff.core.errors import InputError, MissingExtraError
from offdiff.core.files import replacing
from offdiff.data.places import cache_dir
from offdiff.grid_run import Attempt, LocalExecutor, Outcome
from offdiff.records import RECORD

Files = Mapping[str, bytes]
"""Path relative to the run's folder -> content."""
SCHEDULED = 100_000
"""All attempts are submitted at once: which of them run is Ray's to decide."""
KNOCK = 5.0
"""Seconds in which a cluster has to answer."""


class RayExecutor:
    """Ray tasks, each of which starts a process on its node.

    Where a node sees OUT (a shared disk, or the same machine) a run writes there, and one that lost
    its node is resumed on another. Elsewhere it writes to the node's cache, and its files come back
    through Ray when it has ended. Every node needs offdiff installed.
    """

    def __init__(self, address: str, out: Path, *, cpus: float, gpus: float, retries: int) -> None:
        """address: "local" starts Ray here, "auto" finds the one of this machine, or host:port.

        cpus, gpus: of every run. retries: how often an attempt may lose its node.
        Raises InputError if Ray is missing or does not answer at the address.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("--backend ray", "ray") from error
        if address not in ("local", "auto"):
            _require_answer(address)
        # A cluster's own settings hold elsewhere.
        local: dict[str, Any] = _LOCAL if address == "local" else {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _unreachable(address, error) from error
        self.slots: float = SCHEDULED
        self._ray = ray
        out.mkdir(parents=True, exist_ok=True)
        self._mark = out.resolve() / f".shared-{secrets.token_hex(8)}"
        self._mark.touch()
        self._task: Any = ray.remote(
            num_cpus=cpus, num_gpus=gpus, max_retries=retries, max_calls=1
        )(run_on_node)

    def submit(self, attempt: Attempt) -> Future[Outcome]:
        """Hands an attempt to the cluster."""
        settled: Future[Outcome] = Future()
        reference = self._task.remote(attempt, self._mark)

        def settle(answer: Future[tuple[Outcome, Files]]) -> None:
            try:
                outcome, files = answer.result()
                write_files(attempt.cwd / attempt.out / attempt.folder, files)
                settled.set_result(outcome)
            except self._ray.exceptions.RayError as error:
                settled.set_result(Outcome(1, f"Ray: {str(error).splitlines()[0]}"))
            except Exception as error:
                settled.set_exception(error)

        reference.future().add_done_callback(settle)
        return settled

    def stop(self) -> None:
        """Leaves the cluster, which ends what this grid runs there."""
        self._mark.unlink(missing_ok=True)
        self._ray.shutdown()


_LOCAL = {"include_dashboard": False, "object_store_memory": 200_000_000}


def run_on_node(attempt: Attempt, mark: Path) -> tuple[Outcome, Files]:
    """On a node: makes the attempt; gives the run's files if the caller cannot see them."""
    shared = mark.exists() and attempt.cwd.is_dir()
    if not shared:
        place = cache_dir() / "bench"
        place.mkdir(parents=True, exist_ok=True)
        attempt = replace(attempt, cwd=place, out=Path("runs"))
    outcome = LocalExecutor(1).submit(attempt).result()
    return outcome, {} if shared else read_files(attempt.cwd / attempt.out / attempt.folder)


def read_files(folder: Path) -> Files:
    """Everything that a run left, but for what only its continuation needs."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in paths
        if path.name != CHECKPOINT
    }


def write_files(folder: Path, files: Files) -> None:
    """Writes them, every record after all that it speaks of."""
    for name in sorted(files, key=lambda name: name.endswith(RECORD)):
        with replacing(folder / name) as temporary:
            temporary.write_bytes(files[name])


def _require_answer(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"--address must be local, auto or HOST:PORT, got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=KNOCK).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(
        f"no Ray cluster answers at {address} ({reason}); start one with `ray start --head`, or "
        "leave --address out to start Ray here"
    )
