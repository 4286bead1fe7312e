"""A dataset in memory -> D4RL's HDF5 or Minari, by the form of the destination's name."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from offdiff.core.errors import InputError
from offdiff.data.dataset import Dataset, DatasetInfo
from offdiff.data.episodes import Episodes, FloatArray
from offdiff.data.hdf5 import Attribute, write_hdf5
from offdiff.data.minari import write_minari
from offdiff.data.minari_ids import datasets_root, is_id


def destination_path(destination: str, *, overwrite: bool = False) -> Path:
    """Where `save_dataset` will write: a file, or the folder of a Minari dataset.

    destination: a path ending in .hdf5 or .h5, or a Minari id.
    Raises InputError for other names and for what exists; overwrite allows existing HDF5 files.
    """
    path = Path(destination).expanduser()
    if path.suffix in (".hdf5", ".h5"):
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists already; pass --overwrite or choose another name")
        return path
    if not is_id(destination):
        raise InputError(
            f"destination {destination!r} is neither a file ending in .hdf5 nor a Minari id; "
            "write for example out.hdf5 or offdiff/hopper/mixed-v0"
        )
    folder = datasets_root() / destination
    if folder.exists():
        raise InputError(
            f"Minari dataset {destination} exists already in {datasets_root()}; choose another "
            f"version, or delete it with: minari delete {destination}"
        )
    return folder


def save_dataset(
    dataset: Dataset, destination: str, provenance: Mapping[str, Attribute], *, overwrite: bool
) -> Path:
    """Writes a dataset whose actions lie in [-1, 1]; `load_dataset` gives it back.

    On disk actions are in the environment's units, as in every D4RL and Minari dataset.
    provenance: what else to keep with the data. Gives the path of the file or folder.
    Raises InputError if the destination is taken or cannot be written.
    """
    recorded = replace(dataset, episodes=_in_environment_units(dataset))
    description = f"Recorded by offdiff. Behaviour: {dataset.info.behaviour}."
    return save_recorded(recorded, destination, description, provenance, overwrite=overwrite)


def save_recorded(
    recorded: Dataset,
    destination: str,
    description: str,
    provenance: Mapping[str, Attribute],
    *,
    overwrite: bool,
) -> Path:
    """The same for a dataset whose actions are in the environment's units already."""
    path = destination_path(destination, overwrite=overwrite)
    info = recorded.info
    if path.suffix in (".hdf5", ".h5"):
        write_hdf5(path, recorded.episodes, {**_attributes(info), **provenance})
        return path
    return write_minari(
        destination,
        recorded.episodes,
        env_id=info.env_id,
        description=description,
        max_episode_steps=info.max_episode_steps,
        action_low=info.action_low,
        action_high=info.action_high,
        score_range=info.score_range,
        metadata={"behaviour": info.behaviour, "obs_layout": info.obs_layout, **provenance},
    )


def _attributes(info: DatasetInfo) -> dict[str, Attribute]:
    attributes: dict[str, Attribute | None] = {
        "env_id": info.env_id,
        "behaviour": info.behaviour,
        "max_episode_steps": info.max_episode_steps,
        "action_low": info.action_low,
        "action_high": info.action_high,
        "obs_layout": info.obs_layout,
    }
    if info.score_range is not None:
        attributes |= {
            "ref_min_score": info.score_range.minimum,
            "ref_max_score": info.score_range.maximum,
            "score_source": info.score_range.source,
        }
    return {name: value for name, value in attributes.items() if value is not None}


def _in_environment_units(dataset: Dataset) -> Episodes:
    low = np.array(dataset.info.action_low, np.float32)
    half = (np.array(dataset.info.action_high, np.float32) - low) / np.float32(2)
    action: FloatArray = low + (dataset.episodes.action + 1) * half
    return replace(dataset.episodes, action=action)
