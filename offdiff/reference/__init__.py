"""Numbers that others have published, each with its source: copied, never re-run."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

LAST = {"d4rl_score_last", "d4rl_normalised_score_last", "normalized_score"}
"""Metrics that are D4RL's score of a last checkpoint, or that their source does not call a best."""
NAMES = {
    "bc": "BC",
    "cql": "CQL",
    "dql": "Diffusion-QL",
    "dt": "DT",
    "decision-diffuser": "DD",
    "diffuser": "Diffuser",
    "idql": "IDQL",
    "iql": "IQL",
    "rebrac": "ReBRAC",
    "td3bc": "TD3+BC",
    "trajectory-diffuser": "Trajectory Diffuser",
    "trajectory-diffuser-released": "Trajectory Diffuser",
    "veteran": "Diffusion Veteran",
}
"""Our names -> those of the sources."""


@dataclass(frozen=True)
class Published:
    """One number of one source."""

    source: str
    method: str
    """As the source calls it."""
    dataset: str
    mean: float
    std: str
    """As printed; what it is the spread of differs between sources. Empty if not stated."""
    notes: str

    def __str__(self) -> str:
        spread = f" ± {self.std}" if self.std else ""
        return f"{self.mean:g}{spread} [{self.source}]"


def published(method: str, dataset: str) -> list[Published]:
    """What is published for a method of ours, by its name, on exactly this dataset.

    Scores of the last checkpoint, on D4RL's own simulators and by other code.
    """
    name = NAMES.get(method)
    return [row for row in _scores() if (row.method, row.dataset) == (name, dataset)]


@cache
def _scores() -> tuple[Published, ...]:
    # In the two other files a method is what is added to a learner.
    tables = ("learner_results.csv", "planner_results.csv")
    return tuple(row for table in tables for row in _rows(table))


def _rows(table: str) -> Iterator[Published]:
    text = (files("offdiff.reference") / table).read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        # What was read off a plot by eye, nobody has printed.
        if row["metric"] in LAST and "read by eye" not in row["notes"]:
            yield Published(
                source=row["source"],
                method=row["method"],
                dataset=row["dataset"],
                mean=float(row["mean"]),
                std=row["std"],
                notes=row["notes"],
            )
