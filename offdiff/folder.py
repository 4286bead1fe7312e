"""The folder of a run: where it is, what is in it, whether it may be entered."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offdiff.checkpoint import CHECKPOINT
from offdiff.core.errors import InputError
from offdiff.core.files import write_text
from offdiff.records import FAILURE, RECORD, RunRecord, read_record, write_record

IDENTITY = "config.json"
ROWS = "transitions.npy"
POOLS = "pool-*.safetensors"
"""Synthetic experience; the star is the update before which it was made."""


class RunFolder:
    """OUT/<dataset>/<algo>/<seeds>-<hash>/ with metrics.csv and, per seed, its record and policy.

    While a run is unfinished the folder also holds its checkpoint and synthetic experience. Names
    are made for people; the programs read the files.
    """

    def __init__(
        self, out: Path, dataset: str, algo: str, seeds: Sequence[int], config_hash: str
    ) -> None:
        self.seeds = seeds
        self.hash = config_hash
        self.name = f"{'-'.join(map(str, seeds))}-{config_hash}"
        self.path = out / _slug(dataset) / _slug(algo) / self.name

    def seed(self, seed: int) -> Path:
        """Where one seed's record and policy are kept."""
        return self.path / f"seed-{seed}"

    def run_id(self, seed: int) -> str:
        """Where one seed's folder is below OUT: unique, and found again."""
        return "/".join(self.seed(seed).parts[-4:])

    def records(self) -> list[RunRecord]:
        """The records of a finished run, else nothing."""
        paths = [self.seed(seed) / RECORD for seed in self.seeds]
        return [read_record(path) for path in paths] if all(p.exists() for p in paths) else []

    def open(self, identity: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Makes the folder, or enters it to continue.

        Raises InputError if it holds an unfinished run that nobody asked to continue, or if there
        is nothing to continue.
        """
        if overwrite and self.path.exists():
            shutil.rmtree(self.path)
        exists = (self.path / IDENTITY).exists()
        if exists and not resume:
            raise InputError(
                f"{self.path} holds an unfinished run; continue it with --resume or throw it away "
                "with --overwrite"
            )
        if resume and not exists:
            raise InputError(f"there is no run to resume in {self.path}{self._nearest(identity)}")
        if not exists:
            write_text(self.path / IDENTITY, json.dumps(identity, indent=1) + "\n")

    def write(self, seed: int, record: RunRecord) -> RunRecord:
        """Seals and writes one seed's record, and gives it."""
        return write_record(self.seed(seed), record)

    def clean(self) -> None:
        """Removes what only an unfinished run needs, and files that a kill left half-written."""
        for name in (CHECKPOINT, ROWS, FAILURE):
            (self.path / name).unlink(missing_ok=True)
        for pool in self.path.glob(POOLS):
            pool.unlink()
        for part in self.path.rglob(".*.part"):  # as `replacing` names them
            part.unlink(missing_ok=True)

    def _nearest(self, identity: Mapping[str, Any]) -> str:
        """Says how an unfinished run beside this one differs, if there is one."""
        for path in sorted(self.path.parent.glob(f"*/{IDENTITY}")):
            if (path.parent / CHECKPOINT).exists():
                old, new = _flat(json.loads(path.read_text())), _flat(identity)
                changes = [
                    f"{k} {v!r} -> {new.get(k)!r}" for k, v in old.items() if new.get(k) != v
                ]
                what = ", ".join(changes) if changes else "other seeds"
                return f"; {path.parent.name} beside it differs ({what}): repeat its options"
        return "; start it without --resume"


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {**identity, **identity["hyperparameters"], "hyperparameters": None}


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
