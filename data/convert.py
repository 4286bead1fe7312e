"""D4RL HDF5 <-> Minari, both ways, exactly: actions stay in the environment's units."""

from pathlib import Path

from offdiff.data.load import read_dataset
from offdiff.data.observations import ObsMode
from offdiff.data.save import destination_path, save_recorded


def convert(
    source: str, destination: str, *, obs_mode: ObsMode = "concat_goal", overwrite: bool = False
) -> Path:
    """Writes what `read_dataset(source)` gives to `destination`; returns where it now is.

    destination: a path ending in .hdf5 or .h5, or a Minari id.
    overwrite: replace an existing HDF5 file. Minari datasets are never replaced.
    Raises InputError for unusable names and existing destinations, before anything is read.
    """
    destination_path(destination, overwrite=overwrite)
    recorded = read_dataset(source, obs_mode=obs_mode)
    info = recorded.info
    description = f"{info.name}, converted by offdiff. Behaviour: {info.behaviour or 'unknown'}."
    provenance = {"converted_from": info.name, "source_sha256": info.sha256}
    return save_recorded(recorded, destination, description, provenance, overwrite=overwrite)
