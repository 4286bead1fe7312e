"""One way in: any name of a dataset -> episodes with their provenance."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from offdiff.core.errors import InputError, unknown_name
from offdiff.core.files import sha256
from offdiff.data.actions import in_unit_box
from offdiff.data.catalogue import Entry, catalogue
from offdiff.data.dataset import Dataset, DatasetInfo, ScoreRange
from offdiff.data.download import require_unchanged
from offdiff.data.hdf5 import Attribute, number, read_hdf5
from offdiff.data.minari import read_minari
from offdiff.data.minari_ids import is_id, local_ids
from offdiff.data.observations import ObsMode
from offdiff.data.places import locate, own_file

SAMPLE = "sample"
"""The name of the dataset that comes with the package."""
SAMPLE_NAME = "hopper-mixed-sample"
SAMPLE_PATH = Path(__file__).with_name("hopper_sample.hdf5")


def load_dataset(
    name: str,
    *,
    clip_actions: bool = False,
    obs_mode: ObsMode = "concat_goal",
    scratch: Path | None = None,
) -> Dataset:
    """A dataset ready for learning: actions in [-1, 1], everything checked.

    name: "sample"; the path of a D4RL-schema file (.hdf5, .h5), or its name without suffix if it
    lies in $D4RL_DATASET_DIR; a D4RL name such as "hopper-medium-v2", fetched into the cache if it
    is nowhere on this machine; a Minari id such as "D4RL/door/human-v2", likewise; the folder of a
    Minari dataset.
    clip_actions: move actions outside the box to its border instead of refusing them.
    obs_mode: how Minari's dict observations become one vector (`offdiff.data.observations`).
    scratch: a folder for memory-mapped columns of an HDF5 file that memory does not hold; the
    dataset is good as long as the folder is.
    Raises InputError for unknown names, unreadable data and actions outside their box.
    """
    recorded = read_dataset(name, obs_mode=obs_mode, scratch=scratch)
    episodes = in_unit_box(
        recorded.episodes,
        recorded.info.action_low,
        recorded.info.action_high,
        source=recorded.info.source,
        clip_actions=clip_actions,
    )
    return replace(recorded, episodes=episodes)


def read_dataset(
    name: str, *, obs_mode: ObsMode = "concat_goal", scratch: Path | None = None
) -> Dataset:
    """As `load_dataset`, but as recorded: actions in the environment's units, unclipped."""
    if name in (SAMPLE, SAMPLE_NAME):
        return _from_file(SAMPLE_PATH, SAMPLE_NAME, "sample", scratch)
    if name in catalogue():
        return _from_d4rl(catalogue()[name], scratch)
    if (own := own_file(name)) is not None:
        found = _from_file(own, name, "hdf5", scratch)
        # Named by its folder's variable, a record says the same on every machine.
        return replace(found, info=replace(found.info, source=f"$D4RL_DATASET_DIR/{own.name}"))
    path = Path(name).expanduser()
    if path.is_dir():
        return read_minari(str(path), obs_mode=obs_mode)
    if path.is_file() or path.suffix in (".hdf5", ".h5"):
        return _from_file(path, path.stem, "hdf5", scratch)
    # Without a namespace a misspelt D4RL name looks like a Minari id, too.
    if is_id(name) and ("/" in name or name in local_ids()):
        return read_minari(name, obs_mode=obs_mode)
    known = [SAMPLE, *catalogue(), *local_ids()]
    raise unknown_name("dataset", name, known, "(or give the path of an HDF5 file)")


def _from_d4rl(entry: Entry, scratch: Path | None) -> Dataset:
    path = locate(entry)
    found = _from_file(path, entry.name, "d4rl", scratch)
    require_unchanged(path, found.info.sha256)
    task = entry.task
    info = replace(
        found.info,
        # Names of the same file may differ in horizon: human data of adroit, "longhorizon".
        family=task.family,
        env_id=task.env_id,
        max_episode_steps=task.horizon,
        score_range=task.score_range,
    )
    return replace(found, info=info)


def _from_file(path: Path, name: str, suite: str, scratch: Path | None) -> Dataset:
    recording = read_hdf5(path, scratch=scratch)
    attributes = recording.attributes
    steps = number(str(path), attributes, "max_episode_steps")
    info = DatasetInfo(
        name=name,
        suite=suite,
        source=path.name if suite == "sample" else str(path),
        sha256=sha256(path),
        family=recording.task.family,
        env_id=recording.task.env_id,
        max_episode_steps=recording.task.horizon if steps is None else int(steps),
        score_range=_stated_range(path, attributes) or recording.task.score_range,
        behaviour=str(attributes.get("behaviour", "")),
        action_low=_bounds(path, attributes, "action_low", -1.0),
        action_high=_bounds(path, attributes, "action_high", 1.0),
        obs_layout=str(attributes.get("obs_layout", "")),
        notes=recording.notes,
    )
    return Dataset(info=info, episodes=recording.episodes)


def _stated_range(path: Path, attributes: Mapping[str, Attribute]) -> ScoreRange | None:
    """Reference returns that the file itself brings."""
    low = number(str(path), attributes, "ref_min_score")
    high = number(str(path), attributes, "ref_max_score")
    if low is None or high is None:
        return None
    if low >= high:
        raise InputError(
            f"{path}: attribute ref_min_score {low:g} is not below ref_max_score {high:g}; "
            "mend or remove them"
        )
    return ScoreRange(
        minimum=low, maximum=high, source=str(attributes.get("score_source", "custom"))
    )


def _bounds(
    path: Path, attributes: Mapping[str, Attribute], name: str, default: float
) -> tuple[float, ...]:
    """Bounds from an attribute that holds one number, or one for each number of an action."""
    value = attributes.get(name, default)
    try:
        if isinstance(value, int | float):
            return (float(value),)
        return tuple(float(bound) for bound in value)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path}: attribute {name} is {value!r}, expected one number per action number"
        ) from error
