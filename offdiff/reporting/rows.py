"""Lines -> rows of the score table and what is told of each on a click; plain JSON, publishable."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from offdiff import tables
from offdiff.lines import Line
from offdiff.records import Failure, RunRecord
from offdiff.reporting.publishable import publishable
from offdiff.reporting.styles import Style

COSTS = ("updates_per_second", "generation_seconds", "eval_seconds")
MEMORY = {"peak_memory_mb": 1.0, "memory_mb": 1.0, "peak_memory_bytes": 2.0**-20}
"""Names under which a record may hold its memory, and what makes them MiB."""


def score_rows(lines: Sequence[Line], styles: Mapping[str, Style]) -> list[dict[str, Any]]:
    """One row per line: `offdiff.tables.scores`, further costs, and places on the row's strip.

    Numbers that are unknown are None.
    """
    frame = tables.scores(lines)
    rows = []
    for number, (line, scored) in enumerate(zip(lines, frame.to_dict("records"), strict=True)):
        known = {str(key): _plain(value) for key, value in scored.items()}
        known["published"] = str(known["published"]).split("; ") if known["published"] else []
        costs = {name: _mean_of(line, name) for name in COSTS}
        rows.append(
            publishable(known)
            | costs
            | {
                "id": number,
                "values": line.values,
                "seeds": [run.seed for run in line.runs if run.eval],
                "failed_seeds": list(line.failed),
                "missing_seeds": list(line.missing),
                "memory_mb": _memory(line),
                "colour": styles[line.method.label].colour,
            }
        )
    _place(rows)
    return rows


def provenance(line: Line, failures: Sequence[Failure]) -> dict[str, Any]:
    """All that the records of one line tell of where its numbers come from."""
    mine = [
        failure
        for failure in failures
        if (failure.dataset, failure.method) == (line.dataset, line.method.name)
        and failure.updates == line.method.updates
        and set(failure.seeds) & set(line.failed)
    ]
    told: dict[str, Any] = publishable(
        {
            "dataset": line.dataset,
            "method": line.method.label,
            "unit": line.unit,
            "missing": list(line.missing),
            "runs": [_run(run, line.unit) for run in line.runs],
            "failures": [
                {"seeds": one.seeds, "reason": one.reason, "exit code": one.exit_code,
                 "attempts": one.attempts, "command": one.command}
                for one in mine
            ],
        }
    )  # fmt: skip
    return told


def _run(run: RunRecord, unit: str) -> dict[str, Any]:
    outcome = run.eval
    data, code = run.data, run.code
    commit = code.get("git_commit") or "unknown"
    return {
        "seed": run.seed,
        "score": outcome.get("score_mean" if unit == "score" else "mean"),
        "episodes": outcome.get("scores" if unit == "score" else "returns", []),
        "command": code.get("command", ""),
        "facts": {
            "run": run.run_id,
            "digest of the record": run.digest,
            "commit": f"{commit}{', with changes not committed' if code.get('dirty') else ''}",
            "offdiff": code.get("offdiff_version", "unknown"),
            "data": data.get("source", data.get("dataset_id")),
            "digest of the data": data.get("file_sha256", "unknown"),
            "simulator": " ".join(
                str(outcome[name])
                for name in ("env_id", "simulator_version", "fidelity")
                if outcome.get(name)
            )
            or "none",
            "evaluation": _evaluation(outcome),
            "hyperparameters": run.algo.get("hyperparameter_provenance", "unknown"),
            "configuration": run.config.get("config_hash", "unknown"),
        },
        "system": run.system,
        "cost": run.cost,
        "config": run.config.get("resolved", {}),
        "changes": run.changes,
    }


def _evaluation(outcome: Mapping[str, Any]) -> str:
    if not outcome:
        return "none: there was no simulator"
    return (
        f"{outcome['n_episodes']} episodes, seed {outcome.get('seed', 'unknown')}, "
        f"{outcome.get('action_mode', 'unknown')} actions, {outcome.get('checkpoint', 'last')} "
        "checkpoint"
    )


def _place(rows: Sequence[dict[str, Any]]) -> None:
    """Adds "strip": where values, interval and behaviour lie, in percent of the row's axis.

    Scores of a page share one axis, returns those of their dataset.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        key = (row["unit"], "" if row["unit"] == "score" else row["dataset"])
        groups.setdefault(key, []).append(row)
    for (unit, _), group in groups.items():
        known = [v for row in group for v in (*row["values"], row["behaviour"]) if v is not None]
        low = min([0.0, *known])
        high = max([100.0 if unit == "score" else 1e-9, *known])

        def share(value: float, low: float = low, high: float = high) -> float:
            return round(100 * (min(max(value, low), high) - low) / (high - low), 2)

        for row in group:
            ends = (row["low"], row["high"])
            row["strip"] = {
                "values": [share(value) for value in row["values"]],
                "interval": None if None in ends else [share(end) for end in ends],
                "behaviour": None if row["behaviour"] is None else share(row["behaviour"]),
            }


def _plain(value: Any) -> Any:
    """Plain JSON of what pandas gives; NaN becomes None."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mean_of(line: Line, name: str) -> float | None:
    found = [float(run.cost[name]) for run in line.runs if run.cost.get(name) is not None]
    return sum(found) / len(found) if found else None


def _memory(line: Line) -> float | None:
    """MiB, the most of any run."""
    found = [
        float(run.cost[name]) * scale
        for run in line.runs
        for name, scale in MEMORY.items()
        if run.cost.get(name) is not None
    ]
    return max(found, default=None)
