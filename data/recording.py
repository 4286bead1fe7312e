"""Long recordings in instalments: killed at any moment, continued to the identical dataset.

Finished episodes go to numbered shards in a work folder beside the target, each written whole or
not at all and holding all that is needed to play on.
"""

import json
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import numpy as np

from offdiff.core.errors import InputError
from offdiff.core.files import replacing, write_text
from offdiff.data.episodes import Episodes
from offdiff.data.recorder import EpisodeSource, State, join

SHARD_SECONDS = 10.0
"""Time between two shards: what a kill loses at most."""

NOTE = "recording.json"
"""Says in a work folder what is being recorded there."""

Identity = Mapping[str, str | int | float | bool | None]
"""The options that decide what is recorded; a continued recording must agree in all of them."""


@contextmanager
def work_folder(destination: Path, identity: Identity, *, resume: bool) -> Iterator[Path]:
    """A hidden folder beside the destination, where instalments are kept until it is whole.

    It goes when the block succeeds, or fails with nothing recorded yet; else it stays, to resume.
    resume: continue what is there; with nothing there, begin.
    Raises InputError for a recording that is there but was not to be resumed, or is another one.
    """
    folder = destination.parent / f".{destination.name}.work"
    _open(folder, identity, resume=resume)
    try:
        yield folder
    except BaseException:
        if [path.name for path in folder.iterdir()] == [NOTE]:
            shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)


def record(
    source: EpisodeSource,
    *,
    steps: int,
    folder: Path,
    show: bool = True,
    shard_seconds: float = SHARD_SECONDS,
) -> Episodes:
    """Plays until there are exactly `steps` rows; the last episode is truncated there.

    folder: made by `work_folder`; shards found there are taken up. Where one shard ends and
    the next begins has no influence on the rows.
    show: a progress bar with the time left, on stderr.
    Raises InputError if a shard is damaged or the folder cannot be written.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    parts, following = _take_up(folder, source)
    done = sum(len(part) for part in parts)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not show) as bar:
        task = bar.add_task("recording", total=steps, completed=done)
        pending: list[Episodes] = []
        last_shard = time.monotonic()
        while done < steps:
            episode = source.play(following, steps - done)
            pending.append(episode)
            following += 1
            done += len(episode)
            bar.update(task, completed=done)
            if done >= steps or time.monotonic() - last_shard >= shard_seconds:
                shard = join(pending)
                _write_shard(folder / f"shard-{len(parts):05}.npz", shard, following, source)
                parts.append(shard)
                pending, last_shard = [], time.monotonic()
    return join(parts)


def _open(folder: Path, identity: Identity, *, resume: bool) -> None:
    note = folder / NOTE
    if not note.exists():
        write_text(note, json.dumps(dict(identity), indent=1))
        return
    if not resume:
        raise InputError(
            f"{folder} holds an unfinished recording; pass --resume to continue it, or delete it"
        )
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        differing = [key for key in {**found, **identity} if found.get(key) != identity.get(key)]
    except (ValueError, TypeError) as error:
        raise _damaged(note) from error
    if differing:
        key = differing[0]
        raise InputError(
            f"{folder} holds a recording with {key} {found.get(key)!r}, now it is "
            f"{identity.get(key)!r}; give the options of the first call, or delete the folder"
        )


def _write_shard(path: Path, shard: Episodes, following: int, source: EpisodeSource) -> None:
    columns = {field.name: getattr(shard, field.name) for field in fields(Episodes)}
    after = json.dumps({"following": following, "state": source.state()})
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, after=np.array(after), **columns)


def _take_up(folder: Path, source: EpisodeSource) -> tuple[list[Episodes], int]:
    """Shards found, and the number of the episode that follows them."""
    parts: list[Episodes] = []
    following = 0
    state: State | None = None
    for path in sorted(folder.glob("shard-*.npz")):
        try:
            with np.load(path, allow_pickle=False) as stored:
                columns = {field.name: stored[field.name] for field in fields(Episodes)}
                after = json.loads(str(stored["after"]))
            parts.append(Episodes(**columns))
            following, state = after["following"], after["state"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise _damaged(path) from error
    if state is not None:
        source.restore(state)
    return parts, following


def _damaged(path: Path) -> InputError:
    return InputError(f"{path} is damaged; delete the folder {path.parent} and record again")
