"""`offdiff data list | info | convert`: known datasets, what one holds, and conversions."""

import json
import sys
from collections.abc import Callable
from typing import Annotated

import tyro

from offdiff.cli.options import call_with_options
from offdiff.data.catalogue import Task
from offdiff.data.observations import ObsMode

Pattern = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[TEXT]")]
Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
Source = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
Destination = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DESTINATION")]
All = Annotated[bool, tyro.conf.arg(name="all")]
AsJson = Annotated[bool, tyro.conf.arg(name="json")]


def main(command: str, args: list[str]) -> int:
    """Runs one of the commands. Raises InputError for bad input."""
    actions: dict[str, Callable[..., None]] = {
        "data list": list_datasets,
        "data info": info,
        "data convert": convert,
    }
    return call_with_options(actions[command], args, command)


def list_datasets(pattern: Pattern = "", every: All = False) -> None:
    """List the datasets that can be named.

    Shown are the bundled sample, D4RL's datasets with the returns that score 0 and 100, and local
    Minari datasets. Any HDF5 file of D4RL's schema can be given by its path as well.

    Args:
        pattern: show only names that contain this text, e.g. hopper
        every: also show versions that D4RL itself calls deprecated
    """
    from rich.table import Table

    from offdiff.data.catalogue import catalogue, recognise
    from offdiff.data.load import SAMPLE, SAMPLE_NAME
    from offdiff.data.minari_ids import datasets_root, local_ids
    from offdiff.data.places import local_path

    table = Table(title="datasets")
    for heading in ("name", "environment", "steps", "score 0", "score 100", "in Minari", "file"):
        table.add_column(heading, justify="right" if heading.startswith("s") else "left")
    if pattern in f"{SAMPLE} {SAMPLE_NAME}":
        table.add_row(SAMPLE, *_task_cells(recognise(SAMPLE_NAME, None)), "", "bundled")
    family = ""
    for entry in sorted(catalogue().values(), key=lambda entry: entry.task.family):
        if pattern not in entry.name or (entry.deprecated and not every):
            continue
        if entry.task.family != family:
            family = entry.task.family
            table.add_section()
        port = f"{entry.minari_id} ({entry.minari_relation})" if entry.minari_id else ""
        table.add_row(
            entry.name,
            *_task_cells(entry.task),
            port,
            str(local_path(entry) or "fetched when used"),
        )
    table.add_section()
    for dataset_id in local_ids():
        if pattern in dataset_id:
            table.add_row(dataset_id, "", "", "", "", "", str(datasets_root() / dataset_id))
    _print(table)


def info(
    name: Name,
    as_json: AsJson = False,
    obs_mode: ObsMode = "concat_goal",
) -> None:
    """Read a dataset, check all of it, and say what it holds.

    Args:
        name: sample, a D4RL name, a Minari id, or the path of an HDF5 file or a Minari folder
        as_json: print one JSON object instead of a table
        obs_mode: for dict observations: concat_goal joins all parts in the order of their sorted
            names, observation_only hides the goal
    """
    from offdiff.data.describe import describe
    from offdiff.data.load import read_dataset

    description = describe(read_dataset(name, obs_mode=obs_mode))
    if as_json:
        print(json.dumps(description, indent=2, ensure_ascii=False))
    else:
        _print(_as_table(description))


def convert(
    source: Source,
    destination: Destination,
    overwrite: bool = False,
    obs_mode: ObsMode = "concat_goal",
) -> None:
    """Convert between D4RL's HDF5 and Minari, exactly and in both directions.

    For example: offdiff data convert hopper.hdf5 offdiff/hopper/mixed-v0

    And back: offdiff data convert offdiff/hopper/mixed-v0 copy.hdf5

    Args:
        source: any name that `offdiff data info` understands
        destination: a new file ending in .hdf5, or a new Minari id ending in a version such as -v0
        overwrite: replace an existing HDF5 file
        obs_mode: for dict observations: concat_goal joins all parts in the order of their sorted
            names, observation_only hides the goal
    """
    from offdiff.data.convert import convert as write

    print(write(source, destination, obs_mode=obs_mode, overwrite=overwrite))


def _task_cells(task: Task) -> tuple[str, str, str, str]:
    score = task.score_range
    bounds = (f"{score.minimum:.2f}", f"{score.maximum:.2f}") if score else ("none", "none")
    return task.env_id or "", str(task.horizon or ""), *bounds


def _as_table(description: dict[str, object]) -> object:
    from rich.table import Table

    table = Table(title=str(description["name"]), show_header=False)
    for key, value in description.items():
        if isinstance(value, dict):
            text = ", ".join(f"{name} {_text(number)}" for name, number in value.items())
        elif isinstance(value, list):
            text = "\n".join(str(item) for item in value) or "none"
        else:
            text = _text(value)
        table.add_row(key.replace("_", " "), text)
    return table


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return "(" + ", ".join(_text(item) for item in value) + ")"
    return "unknown" if value in (None, "") else str(value)


def _print(renderable: object) -> None:
    from rich.console import Console

    # Off a terminal rich would cut everything to 80 columns.
    Console(width=None if sys.stdout.isatty() else 180).print(renderable)
