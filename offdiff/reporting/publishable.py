"""Text that may be published: what names the folders of a machine is taken out."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ABSOLUTE = re.compile(
    r"""(?<![\w.…/\\:-])                 # begins a word: not the end of a URL or of a relative path
    (?:file://)?(?:/|[A-Za-z]:[\\/]|\\\\|~/)
    (?:[^\s/\\'"`,;:()<>]+[/\\])+""",
    re.VERBOSE,
)
"""The folders of an absolute path of POSIX or Windows, up to its last name."""


def publishable(value: Any) -> Any:
    """Plain JSON in which "/home/me/data/hopper.hdf5" reads "…/hopper.hdf5", however deep."""
    if isinstance(value, str):
        return ABSOLUTE.sub("…/", value)
    if isinstance(value, dict):
        return {publishable(key): publishable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [publishable(item) for item in value]
    return value


def below(text: str, places: Iterable[Path]) -> str:
    """The text with files named from the folders that were asked for: "runs/a/run.json"."""
    for place in places:
        text = text.replace(str(place.resolve()), place.resolve().name)
    return str(publishable(text))
