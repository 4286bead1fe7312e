"""Pictures and films that lie beside records: put into the page, or linked where they are large."""

import base64
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from offdiff.records import RECORD, RunRecord

KINDS = {
    ".png": ("image/png", b"\x89PNG\r\n\x1a\n", 0),
    ".gif": ("image/gif", b"GIF8", 0),
    ".mp4": ("video/mp4", b"ftyp", 4),
}
"""Ending -> media type, first bytes and where they stand."""


@dataclass(frozen=True)
class Medium:
    """One picture or film."""

    dataset: str
    method: str
    title: str
    """Its place in the folder of runs."""
    kind: str
    """Media type; "image/..." or "video/..."."""
    address: str
    """A data URI, a link from the page, or empty: the page only names the file."""
    bytes: int

    @property
    def embedded(self) -> bool:
        """True where the page holds it."""
        return self.address.startswith("data:")


def record_folders(places: Iterable[Path], records: Sequence[RunRecord]) -> dict[str, Path]:
    """Where each record lies, by run_id. Records read from elsewhere are left out."""
    wanted = {record.run_id for record in records}
    folders: dict[str, Path] = {}
    for place in places:
        files = sorted(place.rglob(RECORD)) if place.is_dir() else [place]
        for folder in (file.resolve().parent for file in files):
            ends = ("/".join(folder.parts[-n:]) for n in range(1, len(folder.parts)))
            found = next((end for end in ends if end in wanted), None)
            if found:
                folders.setdefault(found, folder)
    return folders


def media_of(
    records: Sequence[RunRecord], folders: dict[str, Path], page: Path, megabytes: float
) -> list[Medium]:
    """Pictures and films in the records' folders and those above, which hold several seeds'.

    Pictures first, then films; embedded until `megabytes` are used up. What does not fit is linked
    if it lies below the page's folder, else only named: a page must not tell of the machine.
    """
    files: dict[Path, tuple[RunRecord, str]] = {}
    for record in records:
        if record.run_id not in folders:
            continue
        own, name = folders[record.run_id], record.run_id
        group = name.rpartition("/")[0]
        for folder, title in ((own.parent, group), (own, name)) if group else ((own, name),):
            for path in sorted(folder.iterdir()):
                if _is_medium(path):
                    files.setdefault(path, (record, f"{title}/{path.name}"))
    left = megabytes * 1e6
    found: list[Medium] = []
    for path, (record, title) in sorted(
        files.items(), key=lambda item: (item[0].suffix.lower() == ".mp4", item[1][1])
    ):
        size = path.stat().st_size
        kind = KINDS[path.suffix.lower()][0]
        if size <= left:
            left -= size
            address = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
        else:
            address = _link(path, page)
        found.append(Medium(record.dataset, record.method, title, kind, address, size))
    return found


def _is_medium(path: Path) -> bool:
    """By content too: a browser is given nothing that only calls itself a picture."""
    known = KINDS.get(path.suffix.lower())
    if known is None or path.is_symlink() or not path.is_file():
        return False
    _, magic, offset = known
    with path.open("rb") as file:
        return file.read(offset + len(magic))[offset:] == magic


def _link(path: Path, page: Path) -> str:
    folder = page.resolve().parent
    inside = path.resolve().is_relative_to(folder)
    return quote(Path(os.path.relpath(path, folder)).as_posix()) if inside else ""
