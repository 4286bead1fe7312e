"""Finds the damage in an HDF5 file that would keep libhdf5 busy for ever, or fill the memory.

Texts of any length (attributes, mostly) lie as objects in "global heap collections"; an attribute
holds length, address of the collection, and number of the object. libhdf5 2.0 never gets past a
free object of size 0, and believes a length of gigabytes; Python can interrupt neither.
Layout: HDF5 File Format Specification 3.0, section III.E.
"""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

SIGNATURE = b"GCOL\x01\x00\x00\x00"
HEADER = 16
"""Bytes before the first object, and before the data of every object."""
MAX_COLLECTIONS = 64
"""References are searched to this many collections only: every search reads the whole file."""


def has_endless_heap(path: Path) -> bool:
    """Whether a free object has size 0, or a reference claims more bytes than its object has."""
    if path.stat().st_size == 0:
        return False
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        for count, start in enumerate(_places(content, SIGNATURE)):
            sizes = _object_sizes(content, start)
            if sizes is None:
                return True
            if count < MAX_COLLECTIONS and _overstated(content, start, sizes):
                return True
    return False


def _object_sizes(content: mmap.mmap, start: int) -> dict[int, int] | None:
    """Number -> size of the objects of one collection; None if a free one has size 0."""
    sizes: dict[int, int] = {}
    if start + HEADER > len(content):
        return sizes
    (size,) = struct.unpack_from("<Q", content, start + 8)
    end = min(start + size, len(content))
    place = start + HEADER
    while place + HEADER <= end:
        index, _, _, length = struct.unpack_from("<HHIQ", content, place)
        if index == 0 and length == 0:
            return None
        sizes[index] = length
        # The size of a free object counts its header, that of others does not, and is padded.
        place += length if index == 0 else HEADER + -(-length // 8) * 8
    return sizes


def _overstated(content: mmap.mmap, start: int, sizes: dict[int, int]) -> bool:
    """Whether a reference to the collection at `start` is longer than the object it names."""
    for place in _places(content, struct.pack("<Q", start)):
        if place < 4 or place + 12 > len(content):
            continue
        length, _, index = struct.unpack_from("<IQI", content, place - 4)
        if index in sizes and length > sizes[index]:
            return True
    return False


def _places(content: mmap.mmap, pattern: bytes) -> Iterator[int]:
    place = content.find(pattern)
    while place >= 0:
        yield place
        place = content.find(pattern, place + 1)
