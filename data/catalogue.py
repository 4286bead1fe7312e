"""D4RL's datasets: names, files, environments and the returns that map to scores 0 and 100.

The table `d4rl_scores.csv` follows `d4rl/infos.py` (Farama-Foundation/D4RL, Apache-2.0) and, for
datasets absent from it, D4RL's environment registrations.
"""

import csv
import importlib.util
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType

from offdiff.core.errors import InputError, unknown_name
from offdiff.data.dataset import ScoreRange

BASE_URL = "http://rail.eecs.berkeley.edu/datasets/offline_rl/"
"""Where D4RL keeps its files."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What data were recorded for: how a policy learnt from them is evaluated."""

    family: str = "other"
    """"locomotion", "antmaze", "maze2d", "adroit", "kitchen" or "other"."""
    env_id: str | None = None
    """Gymnasium environment."""
    horizon: int | None = None
    """Steps per episode."""
    score_range: ScoreRange | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One dataset of D4RL."""

    name: str
    task: Task
    url_path: str
    """Address below BASE_URL."""
    minari_id: str | None
    """Nearest Minari dataset."""
    minari_relation: str
    """"port", "rebuilt", "regenerated", "analogue" or "": scores of none share a column."""
    deprecated: bool

    @property
    def file_name(self) -> str:
        """Name under which D4RL itself caches the file: the last part of its address."""
        return self.url_path.rsplit("/", 1)[-1]


@cache
def catalogue() -> Mapping[str, Entry]:
    """Name -> entry, for every dataset of the table."""
    with Path(__file__).with_name("d4rl_scores.csv").open(encoding="utf-8", newline="") as file:
        entries = [_entry(row) for row in csv.DictReader(file)]
    return MappingProxyType({entry.name: entry for entry in entries})


def lookup(name: str) -> Entry:
    """The entry of a D4RL name; InputError with the nearest names if there is none."""
    if name not in catalogue():
        raise unknown_name("D4RL dataset", name, catalogue(), "(see offdiff data list)")
    return catalogue()[name]


def score_range(name: str) -> ScoreRange:
    """Reference returns of a D4RL name; InputError if the name is unknown or has none."""
    found = lookup(name).task.score_range
    if found is None:
        raise InputError(f"{name} has no reference returns in D4RL; report its returns as they are")
    return found


def recognise(file_name: str, env_id: str | None) -> Task:
    """The task of a file: by D4RL's name of it, else by environment, else by its first word.

    file_name: with or without suffix, e.g. "hopper-medium-v2", "door-human-dapg.hdf5".
    env_id: as the file's own attribute says; it decides the environment where given.
    """
    stem = Path(file_name).stem if file_name.endswith((".hdf5", ".h5")) else file_name
    named = catalogue().get(stem) or _by_file_name().get(f"{stem}.hdf5")
    if named is not None and env_id in (None, named.task.env_id):
        return named.task
    if env_id is not None:
        known = _by_environment().get(_unversioned(env_id))
        if known is None:
            return Task(env_id=env_id)
        task = replace(known.task, env_id=env_id)
        # D4RL's maze constants count the steps at one fixed goal; other recordings change goals.
        return replace(task, score_range=None) if task.family == "maze2d" else task
    word = _by_first_word().get(re.split("[-_]", stem)[0])
    return word.task if word else Task()


def family_of_name(name: str) -> str:
    """Family of a dataset by its name alone, "other" if that says nothing."""
    family = recognise(name, None).family
    return "maze2d" if family == "other" and name.startswith("pointmaze") else family


def family_of(env_id: str | None) -> str:
    """Family of a Gymnasium environment, "other" if D4RL has none like it."""
    known = _by_environment().get(_unversioned(env_id or ""))
    if known:
        return known.task.family
    prefixes = {"PointMaze": "maze2d", "AntMaze": "antmaze", "FrankaKitchen": "kitchen"}
    return prefixes.get(re.split("[_-]", env_id or "")[0], "other")


def installed_d4rl_disagrees(name: str) -> str | None:
    """Compares our constants with those of an installed `d4rl`, which is never imported.

    Importing it needs the abandoned MuJoCo 2.1, so its table is executed from its own file.
    Gives a sentence on a difference, None on agreement or where there is nothing to compare.
    """
    spec = importlib.util.find_spec("d4rl")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "infos.py"
    table_spec = importlib.util.spec_from_file_location("_d4rl_infos", path)
    if not path.is_file() or table_spec is None or table_spec.loader is None:
        return None
    table = importlib.util.module_from_spec(table_spec)
    table_spec.loader.exec_module(table)
    theirs = (table.REF_MIN_SCORE.get(name), table.REF_MAX_SCORE.get(name))
    ours = catalogue()[name].task.score_range if name in catalogue() else None
    if ours is None or None in theirs or theirs == (ours.minimum, ours.maximum):
        return None
    return (
        f"reference returns {ours.minimum}, {ours.maximum} differ from {theirs[0]}, {theirs[1]} "
        f"of the installed d4rl ({path})"
    )


def _entry(row: Mapping[str, str]) -> Entry:
    minimum, maximum = float(row["ref_min"] or "nan"), float(row["ref_max"] or "nan")
    source = "d4rl_infos" if row["in_d4rl_infos"] == "1" else "d4rl_registration"
    known = math.isfinite(minimum) and math.isfinite(maximum)
    return Entry(
        name=row["dataset"],
        task=Task(
            family=row["family"],
            env_id=row["gymnasium_env"] or None,
            horizon=int(row["max_episode_steps"]) if row["max_episode_steps"] else None,
            score_range=ScoreRange(minimum=minimum, maximum=maximum, source=source)
            if known
            else None,
        ),
        url_path=row["url_path"],
        minari_id=row["minari_id"] or None,
        minari_relation=row["minari_relation"],
        deprecated=row["deprecated"] == "1",
    )


@cache
def _current() -> tuple[Entry, ...]:
    """The entries of D4RL's main suite: no evaluation sets, no lengthened horizons."""
    return tuple(
        entry
        for entry in sorted(catalogue().values(), key=lambda entry: entry.name, reverse=True)
        if not entry.deprecated and not re.search("-eval-|-longhorizon", entry.name)
    )


@cache
def _by_file_name() -> Mapping[str, Entry]:
    """File name -> entry; where two versions share a file, the newest."""
    return {entry.file_name: entry for entry in (*catalogue().values(), *reversed(_current()))}


@cache
def _by_environment() -> Mapping[str, Entry]:
    """Environment without version -> its newest entry; all entries of one agree in constants."""
    return {_unversioned(e.task.env_id or ""): e for e in reversed(_current())}


@cache
def _by_first_word() -> Mapping[str, Entry]:
    """First words of names that tell the environment: "hopper", "door", ..."""
    words: dict[str, Entry] = {}
    for entry in _current():
        if entry.task.family in ("locomotion", "adroit"):
            words[entry.name.split("-")[0]] = entry
    return words


def _unversioned(env_id: str) -> str:
    return re.sub(r"-v\d+$", "", env_id)
