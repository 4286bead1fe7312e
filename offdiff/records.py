"""Run records: one JSON per run and seed, from which every number of a table can be recomputed.

A record is sealed with a digest of its own content: a number changed by hand is found out. A run
that failed leaves a note of it where its record would be, so that it is counted and not forgotten.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offdiff.core.errors import InputError
from offdiff.core.files import write_text

SCHEMA_VERSION = 2
RECORD = "run.json"
FAILURE = "failure.json"
UNSEALED = "unsealed"
"""Digest of a record of schema 1, which had none."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What one seed of one run was, did, scored and cost. Values are plain JSON."""

    run_id: str
    """The folder of this seed's files, relative to the one that all runs are written to."""
    status: str
    """"finished"; other runs leave no record."""
    code: dict[str, Any]
    """Version, commit, command."""
    config: dict[str, Any]
    """Everything that was configured, its hash, and what differs from the learner's defaults."""
    data: dict[str, Any]
    """Where the data came from, how it was converted and transformed, what its behaviour scored."""
    seeds: dict[str, Any]
    """Training and evaluation seeds."""
    algo: dict[str, Any]
    """Learner, gradient steps, batch size, provenance of the hyperparameters."""
    eval: dict[str, Any]
    """The final evaluation with every episode's return; empty if there was no simulator."""
    curve: list[dict[str, Any]]
    """Evaluations during training."""
    system: dict[str, Any]
    """Hardware and versions."""
    cost: dict[str, Any]
    """Seconds and updates per second."""
    augment: dict[str, Any] = field(default_factory=dict)
    """Augmenter, its model and the diagnostics of every generation; empty without."""
    parents: list[str] = field(default_factory=list)
    """Digests of artefacts the run was made from."""
    schema_version: int = SCHEMA_VERSION
    digest: str = ""
    """SHA-256 of all of the above; `write_record` sets it."""

    def sealed(self) -> "RunRecord":
        """The same record with the digest of its content."""
        return dataclasses.replace(self, digest=_digest(dataclasses.asdict(self)))

    @property
    def method(self) -> str:
        """Learner or planner, and its augmenter: "iql", "iql+pgd", "trajectory-diffuser"."""
        return str(self.algo["name"]) + (f"+{self.augment['name']}" if self.augment else "")

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return str(self.data["dataset_id"])

    @property
    def seed(self) -> int:
        """Training seed."""
        return int(self.seeds["train"])

    @property
    def updates(self) -> int:
        """Gradient steps."""
        return int(self.algo["n_gradient_steps"])

    @property
    def changes(self) -> dict[str, Any]:
        """Hyperparameters that are not the defaults, those of the augmenter as "augment.field"."""
        own: dict[str, Any] = self.config["diff_from_default"]
        augment = self.augment.get("diff_from_default", {})
        return own | {f"augment.{name}": value for name, value in augment.items()}


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A run that ended without its records."""

    dataset: str
    method: str
    changes: dict[str, Any]
    """As of a record."""
    updates: int
    seeds: list[int]
    command: str
    """What was called."""
    attempts: int
    exit_code: int
    """Of the last attempt; negative: the signal that ended it."""
    reason: str
    """The last words it printed, or what became of it."""
    log: str
    """Its output, relative to the folder of this note."""


@dataclass(frozen=True)
class Records:
    """What some folders hold."""

    finished: tuple[RunRecord, ...]
    """Sorted by run_id."""
    failed: tuple[Failure, ...] = ()
    refused: tuple[str, ...] = ()
    """Files that count for nothing, each with its reason: damaged, edited, of another schema."""


def write_record(folder: Path, record: RunRecord) -> RunRecord:
    """Seals a record and writes `run.json`, atomically: a folder that holds one is a finished run.

    Gives the sealed record.
    """
    sealed = record.sealed()
    text = json.dumps(dataclasses.asdict(sealed), indent=1, allow_nan=False)
    write_text(folder / RECORD, text + "\n")
    return sealed


def read_record(path: Path) -> RunRecord:
    """Reads a record, of schema 1 too: such a record has no digest.

    Raises InputError if it is damaged, was edited, or is of a schema that nothing here reads.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.get("schema_version")
        if version not in (1, SCHEMA_VERSION):
            raise InputError(
                f"{path} has schema version {version!r}, this offdiff reads 1 and "
                f"{SCHEMA_VERSION}; read it with the version that wrote it"
            )
        record = RunRecord(**(values | ({"digest": UNSEALED} if version == 1 else {})))
        found = _digest(values)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no run record ({error}); run the experiment again") from error
    if version != 1 and record.digest != found:
        raise InputError(
            f"{path} was edited after it was written: its digest is {record.digest[:12]}, its "
            f"content has {found[:12]}; restore the file or run the experiment again"
        )
    return record


def read_records(places: Iterable[Path]) -> Records:
    """All records and notes of failure in and below some folders, or files; each file once.

    Files that cannot be used are listed, not raised. Raises InputError for a place that is absent.
    """
    finished: dict[str, RunRecord] = {}
    failed: list[Failure] = []
    refused: list[str] = []
    for path in _files(places, RECORD):
        try:
            record = read_record(path)
        except InputError as error:
            refused.append(str(error))
            continue
        if record.run_id in finished and finished[record.run_id] != record:
            refused.append(f"{path} is another record of {record.run_id}; remove one of them")
            continue
        finished[record.run_id] = record
    for path in _files(places, FAILURE):
        try:
            failed.append(Failure(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError) as error:
            refused.append(f"{path} is no note of a failed run ({error}); remove it")
    return Records(
        finished=tuple(finished[name] for name in sorted(finished)),
        failed=tuple(sorted(failed, key=lambda f: (f.dataset, f.method, f.seeds))),
        refused=tuple(refused),
    )


def _files(places: Iterable[Path], name: str) -> Sequence[Path]:
    found: list[Path] = []
    for place in places:
        if not place.exists():
            raise InputError(f"{place} does not exist; name a folder of runs, or make some first")
        inside = sorted(place.rglob(name)) if place.is_dir() else [place]
        found += [path for path in inside if path.name == name]
    return list(dict.fromkeys(path.resolve() for path in found))


def _digest(values: dict[str, Any]) -> str:
    content = {name: value for name, value in values.items() if name != "digest"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
