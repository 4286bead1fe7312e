"""Where D4RL's files are, or will be, on this machine."""

import os
from pathlib import Path

import platformdirs

from offdiff.data.catalogue import BASE_URL, Entry
from offdiff.data.download import fetch


def cache_dir() -> Path:
    """$OFFDIFF_CACHE, else the user's cache folder."""
    stated = os.environ.get("OFFDIFF_CACHE")
    return Path(stated).expanduser() if stated else Path(platformdirs.user_cache_dir("offdiff"))


def cached_path(entry: Entry) -> Path:
    """Where a fetched file goes."""
    return cache_dir() / "d4rl" / entry.file_name


def local_path(entry: Entry) -> Path | None:
    """The file, if it is here: in d4rl's own folder or in our cache."""
    candidates = (_their_folder() / entry.file_name, cached_path(entry))
    return next((path for path in candidates if path.is_file()), None)


def own_file(name: str) -> Path | None:
    """A file of the user's in d4rl's folder, by its name without suffix."""
    path = _their_folder() / f"{name}.hdf5"
    return path if Path(name).name == name and path.is_file() else None


def _their_folder() -> Path:
    """$D4RL_DATASET_DIR, else where d4rl keeps its files."""
    stated = os.environ.get("D4RL_DATASET_DIR")
    return Path(stated).expanduser() if stated else Path.home() / ".d4rl" / "datasets"


def locate(entry: Entry, *, base_url: str = BASE_URL) -> Path:
    """The file, fetched from `base_url` if it is not here. InputError if it cannot be had."""
    return local_path(entry) or fetch(base_url + entry.url_path, cached_path(entry))
