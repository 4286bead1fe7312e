"""Text that may be published: what names the folders of a machine is taken out."""

import re
from typing import Any

ABSOLUTE = re.compile(
    r"""(?<![\w.…/\\:-])                 # begins a word: no end of an address or a relative path
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
