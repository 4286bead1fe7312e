"""D4RL-schema HDF5 files: flat rows in, flat rows out. The only module that opens them.

Fields: observations, actions, rewards, terminals; optionally timeouts, next_observations, and our
own successor_known. Everything else in a file (infos, metadata) is left alone: in kitchen files
`infos` is no group but a dataset.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offdiff.core.errors import InputError
from offdiff.core.files import replacing
from offdiff.data import validate
from offdiff.data.boundaries import FlatRows, episodes_from_rows
from offdiff.data.catalogue import Task, recognise
from offdiff.data.episodes import Episodes
from offdiff.data.hdf5_heap import has_endless_heap
from offdiff.data.validate import RecordedArray

REQUIRED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("timeouts", "next_observations", "successor_known")

Attribute = str | int | float | Sequence[float]
"""What a file attribute may hold."""

MAX_DEFLATE_RATIO = 1100
"""gzip packs at most 1032 to 1: a larger claim of a file's header is damage, not data."""
UNWRITTEN_ALLOWANCE = 1 << 26
"""Bytes a dataset may claim beyond that, for columns left at their fill value."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One file as recorded: actions in the environment's units."""

    episodes: Episodes
    attributes: Mapping[str, Attribute]
    task: Task
    """As recognised from the file's name and its attribute env_id."""
    notes: tuple[str, ...]
    """What had to be decided while reading, in words."""


def read_hdf5(path: Path, *, scratch: Path | None = None) -> Recording:
    """Reads and checks a whole file; 1M rows of Hopper take about a second.

    Rewards and terminals may be (N, 1); any float or integer type is cast to float32.
    scratch: a folder for memory-mapped copies of the columns, for files larger than memory. What
    is stored as float32 with next_observations then never enters memory as a whole.
    Raises InputError, naming file, field, value and remedy, for whatever is not such a file.
    """
    arrays, attributes = _stored(path, scratch)
    source = str(path)
    for field in REQUIRED:
        if field not in arrays:
            raise InputError(
                f"{source}: {field!r} is absent, found {', '.join(sorted(arrays)) or 'no field'}; "
                f"a D4RL file needs {', '.join(REQUIRED)}"
            )
    env_id = attributes.get("env_id")
    task = recognise(path.name, env_id if isinstance(env_id, str) else None)
    episodes, notes = episodes_from_rows(_checked(source, arrays, attributes, task))
    return Recording(episodes=episodes, attributes=attributes, task=task, notes=tuple(notes))


def write_hdf5(path: Path, episodes: Episodes, attributes: Mapping[str, Attribute]) -> None:
    """Writes D4RL's schema with gzip, whole or not at all; `read_hdf5` gives the same back.

    attributes: env_id, behaviour, action_low, action_high, max_episode_steps, ref_min_score and
    ref_max_score are understood on reading; others are kept.
    successor_known is written only where some successors are unknown; other readers ignore it.
    """
    import h5py

    columns: dict[str, RecordedArray] = {
        "observations": episodes.obs,
        "actions": episodes.action,
        "rewards": episodes.reward,
        "terminals": episodes.terminal,
        "timeouts": episodes.truncated,
        "next_observations": episodes.next_obs,
    }
    if not episodes.successor_known.all():
        columns["successor_known"] = episodes.successor_known
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        for field, column in columns.items():
            file.create_dataset(field, data=column, compression="gzip", shuffle=True)
        for name, value in attributes.items():
            file.attrs[name] = value


def number(source: str, attributes: Mapping[str, Attribute], name: str) -> float | None:
    """A numeric attribute, None if absent; InputError if it is no finite number."""
    value = attributes.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or not np.isfinite(value):
        raise InputError(f"{source}: attribute {name} is {value!r}, expected a finite number")
    return float(value)


def _checked(
    source: str,
    arrays: Mapping[str, RecordedArray],
    attributes: Mapping[str, Attribute],
    task: Task,
) -> FlatRows:
    validate.require_continuous(source, "actions", arrays["actions"])
    obs = validate.rows(source, "observations", arrays["observations"])
    next_obs = None
    if "next_observations" in arrays:
        next_obs = validate.rows(source, "next_observations", arrays["next_observations"])
        if next_obs.shape[1:] != obs.shape[1:]:
            raise InputError(
                f"{source}: next_observations have {next_obs.shape[1]} numbers per row but "
                f"observations {obs.shape[1]}; store both alike"
            )
    optional_flags = {
        field: validate.flags(source, field, arrays[field])
        for field in ("timeouts", "successor_known")
        if field in arrays
    }
    rows = FlatRows(
        source=source,
        obs=obs,
        action=validate.rows(source, "actions", arrays["actions"]),
        reward=validate.column(source, "rewards", arrays["rewards"]),
        terminal=validate.flags(source, "terminals", arrays["terminals"]),
        timeout=optional_flags.get("timeouts"),
        next_obs=next_obs,
        successor_known=optional_flags.get("successor_known"),
        family=task.family,
        horizon=_horizon(source, attributes, task),
    )
    validate.require_same_length(
        source, {f: arrays[f] for f in (*REQUIRED, *OPTIONAL) if f in arrays}
    )
    return rows


def _horizon(source: str, attributes: Mapping[str, Attribute], task: Task) -> int | None:
    stated = number(source, attributes, "max_episode_steps")
    if stated is None:
        return task.horizon
    if stated < 1 or stated != int(stated):
        raise InputError(
            f"{source}: attribute max_episode_steps is {stated:g}, expected a positive whole number"
        )
    return int(stated)


def _stored(
    path: Path, scratch: Path | None
) -> tuple[dict[str, RecordedArray], dict[str, Attribute]]:
    """Fields and attributes as the file holds them, unchecked."""
    import h5py

    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path")
    budget = MAX_DEFLATE_RATIO * path.stat().st_size + UNWRITTEN_ALLOWANCE
    try:
        if has_endless_heap(path):
            raise OSError("impossible size in a global heap")
        with h5py.File(path, "r") as file:
            arrays = {
                field: _array(path, field, file[field], budget, scratch)
                for field in (*REQUIRED, *OPTIONAL)
                if field in file
            }
            return arrays, _attributes(file)
    except InputError:
        raise
    # What h5py raises for damaged files is not documented; these were seen on thousands of them.
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(
            f"{path}: not a readable HDF5 file ({reason}); it is damaged, incomplete or of another "
            "format: fetch or record it again"
        ) from error


def _array(path: Path, field: str, stored: Any, budget: int, scratch: Path | None) -> RecordedArray:
    import h5py

    if not isinstance(stored, h5py.Dataset):
        raise InputError(f"{path}: {field} is a group, expected a dataset with one row per step")
    if stored.shape is None or stored.ndim == 0:
        raise InputError(f"{path}: {field} is a single value, expected one row per step")
    if stored.nbytes > budget:
        raise InputError(
            f"{path}: {field} claims {stored.nbytes} bytes, more than the file can hold; "
            "it is damaged: fetch or record it again"
        )
    if scratch is None:
        array: RecordedArray = stored[...]
        return array
    mapped: RecordedArray = np.lib.format.open_memmap(
        scratch / f"{field}.npy", mode="w+", dtype=stored.dtype, shape=stored.shape
    )
    for start in range(0, len(mapped), validate.BLOCK):
        mapped[start : start + validate.BLOCK] = stored[start : start + validate.BLOCK]
    return mapped


def _attributes(file: Any) -> dict[str, Attribute]:
    """Numbers and texts; other kinds are none of ours, and libhdf5 crashes on damaged ones."""
    from h5py import h5a, h5t

    plain = {h5t.INTEGER, h5t.FLOAT, h5t.STRING}
    return {
        name: _attribute(file.attrs[name])
        for name in file.attrs
        # A name of bytes is one that is no UTF-8.
        if isinstance(name, str)
        and h5a.open(file.id, name.encode()).get_type().get_class() in plain
    }


def _attribute(value: Any) -> Attribute:
    """Python's own types instead of numpy's; text as str."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, np.ndarray | np.generic):
        plain: Attribute = value.tolist()
        return plain
    return value if isinstance(value, str | int | float) else str(value)
