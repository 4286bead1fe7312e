"""Lines -> figures of the report, as Plotly's traces and layouts; the page colours them."""

import math
import statistics as stdlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from offdiff import tables
from offdiff.comparisons import Comparison, comparisons
from offdiff.lines import Line
from offdiff.records import RunRecord

Figure = dict[str, Any]
"""id, title, note, data, layout. Traces name their method in `meta`; the page gives it a colour."""
DIAGNOSTICS = {
    "dynamics error (median)": ("dynamics", "median"),
    "log-likelihood under the policy": ("policy", "log_likelihood"),
    "residual std (the policy's own: 1)": ("policy", "residual_std"),
}
"""What the report shows of a generation: title -> path in its diagnostics."""


def figures(lines: Sequence[Line], draws: int) -> list[Figure]:
    """All figures that the lines give reason for."""
    compared = [one for one in comparisons(lines) if one.scores]
    found = [
        *_curves(lines),
        *_aggregates(compared, draws),
        *_profiles(compared),
        *_costs(lines),
        *_diagnostics(lines),
    ]
    return [figure | {"id": f"figure-{number}"} for number, figure in enumerate(found)]


def method_names(lines: Sequence[Line]) -> list[str]:
    """Names of methods in the order of their colours."""
    return sorted({line.method.name for line in lines})


def _curves(lines: Sequence[Line]) -> Iterator[Figure]:
    """Learning curves per dataset: mean over seeds and its 95 % interval by Student's t."""
    for dataset in sorted({line.dataset for line in lines}):
        chosen = [line for line in lines if line.dataset == dataset and _curve(line)]
        if not chosen:
            continue
        data: list[dict[str, Any]] = []
        for line in chosen:
            points = _curve(line)
            updates = sorted(points)
            label = _short(line)
            mean = [stdlib.mean(points[u]) for u in updates]
            spread = [u for u in updates if len(points[u]) > 1]
            if spread:
                low, high = map(
                    list, zip(*(tables.interval(points[u]) for u in spread), strict=True)
                )
                data.append(
                    _trace(line, spread + spread[::-1], high + low[::-1], mode="lines",
                           fill="toself", line={"width": 0}, opacity=0.18, showlegend=False,
                           hoverinfo="skip", legendgroup=label)
                )  # fmt: skip
            data.append(_trace(line, updates, mean, name=label, mode="lines+markers",
                               legendgroup=label))  # fmt: skip
        note = "Mean and 95 % interval over seeds; few episodes per point, unlike in the table."
        yield _figure(f"Learning curves: {dataset}", note, data, "updates", chosen[0].unit)


def _curve(line: Line) -> dict[int, list[float]]:
    """Update -> values of all seeds."""
    name = "eval_score" if line.unit == "score" else "eval_return"
    points: dict[int, list[float]] = {}
    for run in line.runs:
        for row in run.curve:
            if name in row:
                points.setdefault(row["update"], []).append(row[name])
    return points


def _aggregates(compared: Sequence[Comparison], draws: int) -> Iterator[Figure]:
    frame = tables.aggregates(compared, draws)
    for comparison in compared:
        rows = frame[frame["tasks"] == " ".join(comparison.tasks)].to_dict("records")
        rows = [row for row in rows if row["family"] == comparison.family]
        data = [
            {
                "type": "scatter",
                "mode": "markers",
                "meta": row["method"].split(",")[0].split(" (")[0],
                "name": row["method"],
                "x": [row["iqm"]],
                "y": [row["method"]],
                "error_x": {"type": "data", "symmetric": False, "thickness": 2,
                            "array": [_or_zero(row["iqm_high"] - row["iqm"])],
                            "arrayminus": [_or_zero(row["iqm"] - row["iqm_low"])]},
                "marker": {"size": 11},
                "showlegend": False,
            }
            for row in rows
        ]  # fmt: skip
        note = f"Interquartile mean, 95 % stratified bootstrap interval; over {_tasks(comparison)}."
        figure = _figure(f"Aggregate score: {comparison.family}", note, data, "IQM score", "")
        figure["layout"] |= {"height": 150 + 34 * len(rows)}
        yield figure


def _or_zero(width: float) -> float:
    return 0.0 if math.isnan(width) else width


def _profiles(compared: Sequence[Comparison]) -> Iterator[Figure]:
    frame = tables.profiles(compared)
    for comparison in compared:
        chosen = frame[
            (frame["tasks"] == " ".join(comparison.tasks)) & (frame["family"] == comparison.family)
        ]
        data = [
            {
                "type": "scatter",
                "mode": "lines",
                "line": {"shape": "hv"},
                "meta": method.split(",")[0].split(" (")[0],
                "name": method,
                "x": rows["threshold"].tolist(),
                "y": rows["share"].tolist(),
            }
            for method, rows in chosen.groupby("method", sort=True)
        ]
        note = f"Share of runs and tasks with a score above the threshold; {_tasks(comparison)}."
        yield _figure(
            f"Performance profile: {comparison.family}", note, data, "score", "share of runs"
        )


def _costs(lines: Sequence[Line]) -> Iterator[Figure]:
    for dataset in sorted({line.dataset for line in lines}):
        chosen = [line for line in lines if line.dataset == dataset and line.values]
        data = [
            _trace(line, [_seconds(line.runs)], [stdlib.mean(line.values)], mode="markers",
                   name=_short(line), marker={"size": 11})
            for line in chosen
        ]  # fmt: skip
        if len(data) > 1:
            note = "Mean over seeds against the time of training; seeds trained together share it."
            figure = _figure(f"Cost: {dataset}", note, data, "seconds of training", chosen[0].unit)
            figure["layout"]["xaxis"]["type"] = "log"
            yield figure


def _seconds(runs: Iterable[RunRecord]) -> float:
    return stdlib.mean(float(run.cost["train_seconds"]) for run in runs)


def _diagnostics(lines: Sequence[Line]) -> Iterator[Figure]:
    """Synthetic experience: one figure per diagnostic and dataset, one trace per seed."""
    for dataset in sorted({line.dataset for line in lines}):
        for title, path in DIAGNOSTICS.items():
            data = []
            for line in lines:
                for run in line.runs if line.dataset == dataset else ():
                    generations = run.augment.get("generations", [])
                    points = [(g["update"], _at(g, path)) for g in generations]
                    known = [(update, value) for update, value in points if value is not None]
                    if known:
                        name = f"{line.method.name}, seed {run.seed}"
                        data.append(_trace(line, *map(list, zip(*known, strict=True)), name=name,
                                           mode="lines+markers"))  # fmt: skip
            if data:
                note = "Every generation of synthetic experience, judged when it was made."
                yield _figure(f"Synthetic data, {title}: {dataset}", note, data, "update", title)


def _at(values: Mapping[str, Any], path: Sequence[str]) -> float | None:
    found: Any = values
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, int | float) else None


def _trace(of: Line, x: Sequence[Any], y: Sequence[Any], **options: Any) -> dict[str, Any]:
    return {"type": "scatter", "meta": of.method.name, "x": list(x), "y": list(y)} | options


def _figure(title: str, note: str, data: list[dict[str, Any]], x: str, y: str) -> Figure:
    layout = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}, "automargin": True}}
    return {"title": title, "note": note, "data": data, "layout": layout}


def _short(line: Line) -> str:
    """The label, for a legend; hyperparameters that would fill it are in the table."""
    method = line.method
    changes = f" ({method.changes})" if len(method.changes) < 30 else " (...)"
    return f"{method.name}{changes if method.changes else ''}, {method.updates:,} updates"


def _tasks(comparison: Comparison) -> str:
    return ", ".join(comparison.tasks)
