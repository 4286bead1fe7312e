"""Published hyperparameters by learner and dataset, each with its source."""

import csv
import dataclasses
from importlib.resources import files
from typing import Any

from offdiff.core.errors import InputError
from offdiff.core.registry import resolve

Value = bool | int | float | str


def published(algo: str, dataset: str) -> tuple[dict[str, Any], str]:
    """Fields of the learner's config and where they come from.

    A row for the very dataset wins; else the one for its environment (`hopper`, `antmaze`, ...).
    Raises InputError if nothing is published for the pair.
    """
    rows = [row for row in _table() if row["algo"] == algo]
    for name in (dataset, dataset.split("-")[0]):
        chosen = [row for row in rows if row["dataset"] == name]
        if chosen:
            kinds = {f.name: f.type for f in dataclasses.fields(resolve("learners", algo))}
            fields = {row["field"]: _parse(row["value"], kinds[row["field"]]) for row in chosen}
            return fields, f"{chosen[0]['source']}, {name}"
    known = ", ".join(sorted({row["dataset"] for row in rows})) or "none"
    raise InputError(
        f"no hyperparameters are published for {algo} on {dataset!r} (known: {known}); "
        "leave out --published for the paper's defaults"
    )


def _table() -> list[dict[str, str]]:
    text = (files("offdiff.algos") / "published.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _parse(text: str, kind: object) -> Value:
    if kind is bool:
        return text == "true"
    if kind is int:
        return int(text)
    return float(text) if kind is float else text
