"""D4RL HDF5 <-> Minari, both ways, exactly: actions stay in the environment's units."""

from pathlib import Path

from offdiff.core.errors import InputError
from offdiff.data.dataset import Dataset, DatasetInfo
from offdiff.data.hdf5 import Attribute, write_hdf5
from offdiff.data.load import read_dataset
from offdiff.data.minari_ids import is_id
from offdiff.data.minari_write import write_minari
from offdiff.data.observations import ObsMode


def convert(
    source: str, destination: str, *, obs_mode: ObsMode = "concat_goal", overwrite: bool = False
) -> Path:
    """Writes what `read_dataset(source)` gives to `destination`; returns where it now is.

    destination: a path ending in .hdf5 or .h5, or a Minari id.
    overwrite: replace an existing HDF5 file. Minari datasets are never replaced.
    Raises InputError for unusable names and existing destinations, before anything is read.
    """
    path = Path(destination).expanduser()
    if path.suffix in (".hdf5", ".h5"):
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists already; pass --overwrite or choose another name")
        recorded = read_dataset(source, obs_mode=obs_mode)
        write_hdf5(path, recorded.episodes, _attributes(recorded.info))
        return path
    if not is_id(destination):
        raise InputError(
            f"destination {destination!r} is neither a file ending in .hdf5 nor a Minari id; "
            "write for example out.hdf5 or offdiff/hopper/mixed-v0"
        )
    return _to_minari(read_dataset(source, obs_mode=obs_mode), destination)


def _to_minari(recorded: Dataset, dataset_id: str) -> Path:
    info = recorded.info
    return write_minari(
        dataset_id,
        recorded.episodes,
        env_id=info.env_id,
        description=f"{info.name}, converted by offdiff. Behaviour: {info.behaviour or 'unknown'}.",
        max_episode_steps=info.max_episode_steps,
        action_low=info.action_low,
        action_high=info.action_high,
        score_range=info.score_range,
        metadata={
            "behaviour": info.behaviour,
            "converted_from": info.name,
            "obs_layout": info.obs_layout,
            "source_sha256": info.sha256,
        },
    )


def _attributes(info: DatasetInfo) -> dict[str, Attribute]:
    attributes: dict[str, Attribute | None] = {
        "env_id": info.env_id,
        "behaviour": info.behaviour,
        "max_episode_steps": info.max_episode_steps,
        "action_low": info.action_low,
        "action_high": info.action_high,
        "obs_layout": info.obs_layout,
        "converted_from": info.name,
        "source_sha256": info.sha256,
    }
    if info.score_range is not None:
        attributes |= {
            "ref_min_score": info.score_range.minimum,
            "ref_max_score": info.score_range.maximum,
            "score_source": info.score_range.source,
        }
    return {name: value for name, value in attributes.items() if value is not None}
