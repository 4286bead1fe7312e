"""What a run logged while it was trained, from the `metrics.csv` beside its record."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from offdiff.lines import Line

FILE = "metrics.csv"
POINTS = 120
"""Updates that are shown of a run."""
COLUMNS = 12
"""Metrics that are shown."""


def metrics_of(line: Line, folders: dict[str, Path]) -> dict[str, dict[float, list[float]]]:
    """Metric -> update -> one value per seed of the line; empty where there is no readable file."""
    found: dict[str, dict[float, list[float]]] = {}
    for run in line.runs:
        folder = folders.get(run.run_id)
        if folder is None:
            continue
        path = next((f / FILE for f in (folder, folder.parent) if (f / FILE).is_file()), None)
        rows = _rows(path, run.seed) if path else []
        for row in rows[:: max(1, math.ceil(len(rows) / POINTS))]:
            for name, value in row.items():
                if name not in ("update", "eval_return", "eval_score"):
                    found.setdefault(name, {}).setdefault(row["update"], []).append(value)
    return dict(list(found.items())[:COLUMNS])


def _rows(path: Path, seed: int) -> Sequence[dict[str, float]]:
    """Finite numbers of one seed; a file that is none of ours has no such rows."""
    rows = []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            if _number(row.get("seed")) != seed or _number(row.get("update")) is None:
                continue
            numbers = {str(name): _number(text) for name, text in row.items() if name != "seed"}
            rows.append({name: value for name, value in numbers.items() if value is not None})
    return rows


def _number(text: object) -> float | None:
    if not isinstance(text, str):
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
