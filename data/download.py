"""Fetches a file over http: with progress, resumable, checked, and whole or absent."""

import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from offdiff.core.errors import InputError
from offdiff.core.files import require_writable, sha256, write_text

CHUNK = 1 << 18
"""Bytes per read."""
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""
ATTEMPTS = 4
"""Connections tried one after the other without a single new byte before giving up."""


def fetch(url: str, target: Path, *, pause: float = 1.0) -> Path:
    """Downloads `url` to `target`, unless it is there; gives `target`.

    What has arrived is kept in `target` + ".part": the next call continues there, after a broken
    connection as after a kill. The whole is checked for its size and for being HDF5, its SHA-256
    recorded in `target` + ".sha256", and only then renamed.
    pause: seconds between attempts. Raises InputError, which says what to do by hand, if the file
    cannot be had.
    """
    if target.is_file():
        return target
    require_writable(target.parent)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        with _exclusive(target.parent), part.open("ab") as file:
            # Another process may have finished it while this one waited for the lock.
            if target.is_file():
                return target
            _receive_all(url, file, target, pause)
            _require_hdf5(part, url)
            write_text(_digest_path(target), f"{sha256(part)}  {target.name}\n")
            part.replace(target)
    except (OSError, http.client.HTTPException) as error:
        raise _by_hand(url, target, error) from error
    return target


def require_unchanged(path: Path, digest: str) -> None:
    """Raises InputError if a SHA-256 was recorded beside `path` and differs from `digest`."""
    recorded = _digest_path(path)
    if recorded.is_file() and recorded.read_text(encoding="utf-8").split()[:1] != [digest]:
        raise InputError(
            f"{path}: its content differs from the SHA-256 recorded when it was downloaded; "
            f"delete it and {recorded.name} to fetch it again"
        )


def _receive_all(url: str, file: IO[bytes], target: Path, pause: float) -> None:
    """Appends to `file` until it is complete, over as many connections as that takes."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft
    from rich.progress import TransferSpeedColumn as Speed

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), Speed(), TimeLeft())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(target.name, total=None)
        failures = 0
        while True:
            before = file.tell()
            try:
                for arrived, total in _receive(url, file):
                    progress.update(task, completed=arrived, total=total)
                return
            except urllib.error.HTTPError:
                raise
            except (OSError, http.client.HTTPException):
                failures = 0 if file.tell() > before else failures + 1
                if failures == ATTEMPTS:
                    raise
                time.sleep(pause)


def _receive(url: str, file: IO[bytes]) -> Iterator[tuple[int, int | None]]:
    """One connection: appends what is missing, yields (bytes held, bytes in all or None).

    Raises IncompleteRead if the connection ends early.
    """
    held = file.seek(0, 2)
    request = urllib.request.Request(url, headers={"Range": f"bytes={held}-"} if held else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        # 416: nothing follows what is held. Either all of it is here, or it is another file.
        if error.code != 416 or not held:
            raise
        if _total(error.headers.get("Content-Range")) == held:
            return
        _empty(file)
        raise http.client.IncompleteRead(b"") from error
    with response:
        if held and response.status != 206:
            # The server sends everything again.
            held = _empty(file)
        total = _total(response.headers.get("Content-Range"))
        if total is None and response.headers.get("Content-Length"):
            total = held + int(response.headers["Content-Length"])
        while chunk := response.read(CHUNK):
            file.write(chunk)
            file.flush()
            held += len(chunk)
            yield held, total
        if total is not None and held != total:
            raise http.client.IncompleteRead(b"", total - held)


def _empty(file: IO[bytes]) -> int:
    file.truncate(0)
    return file.seek(0)


def _total(content_range: str | None) -> int | None:
    """The size after the slash of "bytes 5-9/10" or "bytes */10"."""
    size = (content_range or "").rpartition("/")[2]
    return int(size) if size.isdigit() else None


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Two runs that start together must not append to one file; the second waits."""
    try:
        import fcntl
    except ImportError:
        # No such lock on Windows. The size check and HDF5's own checks remain.
        yield
        return
    # The folder is locked, not the file: HDF5 locks that itself when it checks it.
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _require_hdf5(part: Path, url: str) -> None:
    """Deletes what is no HDF5 file (an error page, say) and raises InputError."""
    import h5py

    size = part.stat().st_size
    try:
        with h5py.File(part, "r") as file:
            empty = not list(file)
    except (OSError, RuntimeError) as error:
        part.unlink()
        raise InputError(
            f"{url} gave {size} bytes that are no HDF5 file ({error}); the address or a proxy on "
            "the way is wrong: try again, or fetch it by hand"
        ) from error
    if empty:
        part.unlink()
        raise InputError(f"{url} gave an HDF5 file without content; try again later")


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _by_hand(url: str, target: Path, error: Exception) -> InputError:
    reason = getattr(error, "reason", None) or error
    return InputError(
        f"cannot download {target.name} ({reason}); run again to continue where it stopped, or "
        f"fetch {url} elsewhere and put it at {target}"
    )
