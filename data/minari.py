"""Minari datasets -> episodes: local or downloaded, as recorded."""

import contextlib
import difflib
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from offdiff.core.errors import InputError, MissingExtraError
from offdiff.core.files import sha256
from offdiff.data.catalogue import catalogue, family_of
from offdiff.data.dataset import Dataset, DatasetInfo, ScoreRange
from offdiff.data.minari_episodes import Reading, read_episodes
from offdiff.data.minari_ids import datasets_root, import_minari, is_id, local_ids
from offdiff.data.minari_write import write_minari
from offdiff.data.observations import ObsMode

__all__ = ["read_minari", "write_minari"]

LONGEST_HORIZON = 100_000
"""Point-maze data were collected without a step limit, stored as a million: no horizon at all."""

UNREADABLE = (
    OSError, KeyError, ValueError, TypeError, AttributeError, AssertionError, RuntimeError,
    ImportError, NotImplementedError, IndexError,
)  # fmt: skip
"""What minari and h5py were seen to raise for damaged or foreign folders."""


def read_minari(name: str, *, obs_mode: ObsMode = "concat_goal") -> Dataset:
    """A Minari dataset as recorded: actions in the environment's units.

    name: an id, downloaded if it is not on this machine, or the path of a dataset's folder.
    obs_mode: how dict observations become one vector (see `offdiff.data.observations`).
    Raises InputError for unknown ids, missing network, and data that break Minari's own schema.
    """
    minari = import_minari(f"Minari dataset {name}")
    folder = _folder(minari, name)
    try:
        stored = minari.MinariDataset(folder / "data")
        metadata = stored.storage.metadata
        reading = read_episodes(name, stored, obs_mode)
        return Dataset(
            info=_info(name, folder, stored, metadata, reading), episodes=reading.episodes
        )
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(
            f"{folder}: not a readable Minari dataset ({type(error).__name__}: {_line(error)}); "
            "it is damaged or incomplete: delete it and fetch or create it again"
        ) from error


def _info(
    name: str, folder: Path, stored: Any, metadata: Mapping[str, Any], reading: Reading
) -> DatasetInfo:
    from gymnasium.spaces import Box

    space = stored.action_space
    if not isinstance(space, Box):
        raise InputError(f"{name}: its actions are {space}; only continuous actions are supported")
    if math.prod(space.shape) != reading.episodes.spec.action_dim:
        raise InputError(
            f"{name}: actions have {reading.episodes.spec.action_dim} numbers but the action space "
            f"{space.shape}; record it again"
        )
    own = metadata.get("offdiff") or {}
    spec = stored._eval_env_spec or stored.env_spec
    env_id = spec.id if spec else own.get("env_id")
    steps = spec.max_episode_steps if spec else None
    score_range, notes = _score_range(metadata, own)
    return DatasetInfo(
        name=str(metadata["dataset_id"]),
        suite="minari",
        source=name,
        sha256=sha256(folder / "data" / "main_data.hdf5"),
        family=family_of(env_id),
        env_id=env_id,
        max_episode_steps=steps if steps and steps <= LONGEST_HORIZON else None,
        score_range=score_range,
        behaviour=str(
            own.get("behaviour")
            or metadata.get("algorithm_name")
            or metadata.get("description")
            or ""
        ),
        action_low=_shortest(space.low),
        action_high=_shortest(space.high),
        obs_layout=own.get("obs_layout") or reading.obs_layout,
        notes=(*reading.notes, *notes),
    )


def _score_range(
    metadata: Mapping[str, Any], own: Mapping[str, Any]
) -> tuple[ScoreRange | None, list[str]]:
    """Minari's own reference returns. D4RL's, of the same name, belong to other environments."""
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    if low is None or high is None:
        return None, []
    try:
        source = str(own.get("score_source") or "minari_metadata")
        return ScoreRange(minimum=float(low), maximum=float(high), source=source), []
    except (TypeError, ValueError):
        return None, [f"reference returns {low!r} and {high!r} of its metadata are unusable"]


def _shortest(bounds: NDArray[Any]) -> tuple[float, ...]:
    values = tuple(float(bound) for bound in bounds.reshape(-1))
    return values[:1] if len(set(values)) == 1 else values


def _folder(minari: Any, name: str) -> Path:
    """The dataset's folder, downloaded if need be."""
    path = Path(name).expanduser()
    if (path / "data" / "metadata.json").is_file():
        return path
    if not is_id(name):
        raise InputError(
            f"{name!r} is neither a Minari id (such as D4RL/door/human-v2) nor a folder that holds "
            "data/metadata.json"
        )
    folder = datasets_root() / name
    if not (folder / "data").is_dir():
        _download(minari, name)
    return folder


def _download(minari: Any, dataset_id: str) -> None:
    print(f"downloading Minari dataset {dataset_id} to {datasets_root()}", file=sys.stderr)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            minari.load_dataset(dataset_id, download=True)
    # Its classes of network errors are those of private dependencies, which differ by version.
    except Exception as error:
        if "huggingface_hub is not installed" in str(error):
            raise MissingExtraError(f"downloading {dataset_id}", "minari") from error
        known = {e.minari_id for e in catalogue().values() if e.minari_id} | {*local_ids()}
        near = difflib.get_close_matches(dataset_id, sorted(known - {dataset_id}), n=3)
        offer = f" Did you mean {' or '.join(near)}?" if near and dataset_id not in known else ""
        raise InputError(
            f"Minari dataset {dataset_id} is not in {datasets_root()} and cannot be downloaded "
            f"({type(error).__name__}: {_line(error)}); check the id and the network, or copy its "
            f"folder to {datasets_root() / dataset_id}.{offer}"
        ) from error


def _line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
