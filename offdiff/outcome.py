"""A record's final evaluation in the forms that loggers show: numbers by name, a table."""

from collections.abc import Mapping
from typing import Any

from offdiff.records import RunRecord

COLUMNS = {"returns": "return", "scores": "score", "lengths": "length", "success": "success"}
"""What a record keeps per episode -> name of its column."""


def final_numbers(record: RunRecord) -> dict[str, float]:
    """Final return and score, standard deviation, success, seconds; no scores without a simulator.

    Keys begin with "final_" but for "train_seconds".
    """
    found: dict[str, float] = {}
    names = {"mean": "final_return", "std": "final_return_std", "score_mean": "final_score"}
    for name, shown in names.items():
        if name in record.eval:
            found[shown] = float(record.eval[name])
    if success := record.eval.get("success"):
        found["final_success"] = sum(map(float, success)) / len(success)
    return found | {"train_seconds": float(record.cost["train_seconds"])}


def episode_table(record: RunRecord) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows, one row per episode of the final evaluation."""
    kept = {column: values for name, column in COLUMNS.items() if (values := record.eval.get(name))}
    columns = ["seed", "episode", *kept]
    episodes = zip(*kept.values(), strict=True)
    return columns, [[record.seed, number, *values] for number, values in enumerate(episodes)]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one: {"algo": {"alpha": 1}} -> {"algo.alpha": 1}."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
