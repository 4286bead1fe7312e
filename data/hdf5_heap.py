"""Finds the damage in an HDF5 file that would keep libhdf5 busy for ever.

Texts of any length (attributes, mostly) lie in "global heap collections". Where one of their
objects is a free one of size 0, libhdf5 2.0 never gets past it, and Python cannot interrupt it.
Layout: HDF5 File Format Specification 3.0, section III.E.
"""

import mmap
import struct
from pathlib import Path

SIGNATURE = b"GCOL\x01\x00\x00\x00"
HEADER = 16
"""Bytes before the first object, and before the data of every object."""


def has_endless_heap(path: Path) -> bool:
    """Whether a global heap collection of the file holds a free object of size 0."""
    if path.stat().st_size == 0:
        return False
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        start = content.find(SIGNATURE)
        while start >= 0:
            if _endless(content, start):
                return True
            start = content.find(SIGNATURE, start + 1)
    return False


def _endless(content: mmap.mmap, start: int) -> bool:
    if start + HEADER > len(content):
        return False
    (size,) = struct.unpack_from("<Q", content, start + 8)
    end = min(start + size, len(content))
    place = start + HEADER
    while place + HEADER <= end:
        index, _, _, length = struct.unpack_from("<HHIQ", content, place)
        if index == 0 and length == 0:
            return True
        # The size of a free object counts its header, that of others does not, and is padded.
        place += length if index == 0 else HEADER + -(-length // 8) * 8
    return False
