"""Minari's names and places, and the package itself, asked for in one sentence if absent."""

import os
import re
from pathlib import Path
from typing import Any

from offdiff.core.errors import MissingExtraError

ID = re.compile(r"(?:[\w-][\w/-]*[\w-]/)?[\w-]+-v\d+", re.ASCII)
"""A Minari id: an optional namespace of two characters or more, a name, a version."""


def is_id(name: str) -> bool:
    """Whether `name` has the form of a Minari id."""
    return ID.fullmatch(name) is not None and "//" not in name


def datasets_root() -> Path:
    """Where minari keeps its datasets: $MINARI_DATASETS_PATH, else ~/.minari/datasets."""
    stated = os.environ.get("MINARI_DATASETS_PATH")
    return Path(stated) if stated else Path.home() / ".minari" / "datasets"


def local_ids() -> list[str]:
    """Ids of the datasets on this machine; needs no minari."""
    root = datasets_root()
    found = (path.parent.parent for path in root.rglob("data/metadata.json"))
    return sorted(str(folder.relative_to(root).as_posix()) for folder in found)


def import_minari(what: str) -> Any:
    """The package; MissingExtraError, naming what needs it, if it is not installed."""
    try:
        import minari
        import minari.namespace
    except ImportError as error:
        raise MissingExtraError(what, "minari") from error
    return minari
