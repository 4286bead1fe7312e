"""Lines -> figures, as plotly's JSON. Colours are names ("var:m3") that the page resolves."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from offdiff import statistics, tables
from offdiff.lines import Line
from offdiff.reporting.styles import Style
from offdiff.tables import SEED, THRESHOLDS, Comparison

Styles = Mapping[str, Style]
Trace = dict[str, Any]
Points = Mapping[float, Sequence[float]]
"""x -> one y per seed."""

AGGREGATES = (("iqm", "IQM"), ("mean", "Mean"), ("median", "Median"),
              ("optimality_gap", "Optimality gap"))  # fmt: skip
DIAGNOSTICS = (
    ("dynamics", "Error against the simulator", "squared error (data variances)", "log"),
    ("likelihood", "Log-likelihood under the policy", "nats per transition", "linear"),
    ("broken", "Windows that are not valid", "share", "linear"),
)


@dataclass(frozen=True)
class Figure:
    """One card of the page."""

    title: str
    traces: list[Trace]
    layout: dict[str, Any]
    family: str
    dataset: str = ""
    """Empty: of several."""
    note: str = ""
    """What is to be known to read it."""
    methods: list[str] = field(default_factory=list)
    """Names; a filter by method hides a figure without it."""


def learning_curves(lines: Sequence[Line], styles: Styles) -> list[Figure]:
    """Per dataset and unit, the mean over seeds of every evaluation, the final one last."""
    figures = []
    for (dataset, unit), group in _grouped(lines, lambda line: (line.dataset, line.unit)):
        able = [line for line in group if any(run.curve for run in line.runs)]
        traces = [t for x in able for t in _mean_and_band(_curve(x), x.method.label, styles)]
        if traces:
            layout = _layout("gradient updates", unit)
            figures.append(_figure(dataset, traces, layout, able, dataset))
    return figures


def _curve(line: Line) -> Points:
    """Evaluations of all seeds by update; the last is the final one."""
    name, last = ("eval_score", "score_mean") if line.unit == "score" else ("eval_return", "mean")
    points: dict[float, list[float]] = {}
    for run in line.runs:
        own = {row.get("update"): row.get(name) for row in run.curve}
        own |= {run.updates: run.eval[last]} if run.eval else {}
        for update, value in own.items():
            if update is not None and value is not None:
                points.setdefault(update, []).append(value)
    return points


def profiles(found: Sequence[Comparison], styles: Styles, draws: int) -> list[Figure]:
    """Per comparison, the share of runs above every score, with its interval."""
    return [_profile(one, styles, draws) for one in found]


def _profile(comparison: Comparison, styles: Styles, draws: int) -> Figure:
    traces: list[Trace] = []

    def shares(scores: statistics.FloatArray) -> statistics.FloatArray:
        return statistics.performance_profile(scores, THRESHOLDS)

    for name, scores in comparison.scores.items():
        estimate = statistics.bootstrap(
            shares, scores, random=np.random.default_rng(SEED), draws=draws
        )
        ends = (estimate.low, estimate.high) if len(scores) > 1 else None
        traces += _line_and_band(list(THRESHOLDS), estimate.value, ends, name, styles[name])
        traces[-1] |= {"mode": "lines"}
    layout = _layout("score", "share of runs above it")
    layout["yaxis"] |= {"range": [-0.02, 1.02], "tickformat": ".0%"}
    return Figure(
        title=comparison.family,
        traces=traces,
        layout=layout,
        family=comparison.family,
        dataset=comparison.tasks[0] if len(comparison.tasks) == 1 else "",
        note=_of_tasks(comparison),
        methods=[name.split(",")[0].split(" ")[0] for name in comparison.scores],
    )


@dataclass(frozen=True)
class Aggregate:
    """Numbers over the tasks of one comparison, and their picture."""

    comparison: Comparison
    rows: list[tuple[str, int, list[tuple[float, float | None, float | None]]]]
    """Method, runs per task, and value, low, high of every name in `AGGREGATES`."""
    figure: Figure


def aggregates(found: Sequence[Comparison], styles: Styles, draws: int) -> list[Aggregate]:
    """Per comparison, the aggregates of every method with their intervals, best IQM first."""
    made = []
    for comparison in found:
        rows = []
        for name, scores in comparison.scores.items():
            own = statistics.aggregates(scores, random=np.random.default_rng(SEED), draws=draws)
            several = len(scores) > 1
            numbers = [
                (float(e.value), *((float(e.low), float(e.high)) if several else (None, None)))
                for e in (own[key] for key, _ in AGGREGATES)
            ]
            rows.append((name, len(scores), numbers))
        rows.sort(key=lambda row: (-row[2][0][0], row[0]))
        made.append(Aggregate(comparison, rows, _forest(comparison, rows, styles)))
    return made


def _forest(comparison: Comparison, rows: Sequence[Any], styles: Styles) -> Figure:
    traces = [
        {
            "type": "scatter", "mode": "markers", "x": [_short(value)], "y": [name], "name": name,
            "marker": {"color": styles[name].line, "symbol": styles[name].symbol, "size": 9},
            "error_x": {"type": "data", "symmetric": False, "thickness": 2, "width": 0,
                        "color": styles[name].line,
                        "array": [_short((high or value) - value)],
                        "arrayminus": [_short(value - (low if low is not None else value))]},
            "showlegend": False,
        }
        for name, _, ((value, low, high), *_) in reversed(rows)
    ]  # fmt: skip
    layout = _layout("interquartile mean of scores", "")
    layout["yaxis"] |= {"automargin": True, "type": "category"}
    layout["height"] = 110 + 30 * len(rows)
    return Figure(comparison.family, traces, layout, comparison.family)


def costs(rows: Sequence[Mapping[str, Any]], lines: Sequence[Line], styles: Styles) -> list[Figure]:
    """Score against training time, and against time per decision where that was recorded.

    rows: of `score_rows`, one per line. Scores of a family together, returns by dataset.
    """
    figures = []
    pairs = [(row, line) for row, line in zip(rows, lines, strict=True) if row["mean"] is not None]
    keys = sorted({_task(line) for _, line in pairs})
    for key in keys:
        group = [(row, line) for row, line in pairs if _task(line) == key]
        for name, title in (
            ("train_seconds", "seconds of training"),
            ("decision_ms", "milliseconds per decision"),
        ):
            shown = [(row, line) for row, line in group if row[name]]
            if shown:
                traces = [_dot(row, line, name, styles[line.method.label]) for row, line in shown]
                layout = _layout(title, key[1]) | {"hovermode": "closest"}
                layout["xaxis"] |= {"type": "log", "dtick": 1}
                one = key[2] if len({line.dataset for _, line in shown}) == 1 else ""
                heading = f"{key[2]}: {key[1]} against {title}"
                figures.append(_figure(heading, traces, layout, [x for _, x in shown], one))
    return figures


def _task(line: Line) -> tuple[str, str, str]:
    """What shares an axis: the scores of a family, the returns of a dataset."""
    return line.family, line.unit, line.family if line.unit == "score" else line.dataset


def _dot(row: Mapping[str, Any], line: Line, cost: str, style: Style) -> Trace:
    several = len(line.values) > 1 and row["std"] is not None
    return {
        "type": "scatter", "mode": "markers", "name": line.method.label, "showlegend": True,
        "legendgroup": line.method.label, "x": [_short(row[cost])], "y": [_short(row["mean"])],
        "text": [f"{_plain_text(line.dataset)}<br>{_plain_text(line.method.label)}"],
        "hovertemplate": "%{text}<br>%{y:.1f} at %{x:.3~g}<extra></extra>",
        "marker": {"color": style.line, "symbol": style.symbol, "size": 10},
        "error_y": {"type": "data", "array": [_short(row["std"])], "color": style.line,
                    "thickness": 1.2, "width": 0, "visible": several},
    }  # fmt: skip


def diagnostics(lines: Sequence[Line], styles: Styles) -> list[Figure]:
    """Per dataset, what every generation of synthetic experience was like."""
    figures = []
    for (dataset,), group in _grouped(lines, lambda line: (line.dataset,)):
        for name, title, unit, scale in DIAGNOSTICS:
            able = [line for line in group if _generations(line, name)]
            if not able:
                continue
            traces = [
                t
                for line in able
                for t in _mean_and_band(_generations(line, name), line.method.label, styles)
            ]
            layout = _layout("gradient updates", unit)
            layout["yaxis"] |= {"type": scale}
            figures.append(_figure(f"{dataset}: {title.lower()}", traces, layout, able, dataset))
    return figures


def _generations(line: Line, name: str) -> Points:
    points: dict[float, list[float]] = {}
    for run in line.runs:
        for made in run.augment.get("generations", []):
            value = {
                "dynamics": (made.get("dynamics") or {}).get("mean"),
                "likelihood": (made.get("policy") or {}).get("log_likelihood"),
                "broken": made.get("broken"),
            }[name]
            if value is not None:
                points.setdefault(made["update"], []).append(value)
    return points


def training_metrics(columns: Mapping[str, Points], line: Line, styles: Styles) -> Figure:
    """What was logged while a line was trained, one panel below another."""
    traces: list[Trace] = []
    layout = _layout("gradient updates", "") | {"showlegend": False}
    layout["grid"] = {"rows": len(columns), "columns": 1, "pattern": "coupled", "ygap": 0.25}
    layout["height"] = 60 + 130 * len(columns)
    for number, (name, points) in enumerate(columns.items(), start=1):
        axis = "" if number == 1 else str(number)
        for trace in _mean_and_band(points, line.method.label, styles):
            traces.append(trace | {"yaxis": f"y{axis}", "mode": "lines"})
        title = {"text": _plain_text(name).replace("_", " "), "standoff": 8}
        layout[f"yaxis{axis}"] = {"title": title, "automargin": True}
    return _figure("Training", traces, layout, [line], line.dataset)


def _mean_and_band(points: Points, label: str, styles: Styles) -> list[Trace]:
    xs = sorted(points)
    means = [float(np.mean(points[x])) for x in xs]
    ends = [tables.interval(points[x]) for x in xs]
    several = all(math.isfinite(low) for low, _ in ends)
    band = (np.array([e[0] for e in ends]), np.array([e[1] for e in ends])) if several else None
    return _line_and_band(xs, means, band, label, styles[label]) if xs else []


def _line_and_band(
    x: Sequence[float], y: Iterable[float], ends: Any, label: str, style: Style
) -> list[Trace]:
    """The band, if there is one, then the line."""
    shared: Trace = {"type": "scatter", "name": _plain_text(label), "legendgroup": label}
    band = [] if ends is None else [
        shared | {
            "x": [*x, *reversed(x)],
            "y": [_short(v) for v in (*ends[1], *reversed(ends[0]))],
            "mode": "lines", "fill": "toself", "fillcolor": style.band, "line": {"width": 0},
            "hoverinfo": "skip", "showlegend": False,
        }
    ]  # fmt: skip
    line = shared | {
        "x": list(x), "y": [_short(v) for v in y], "mode": "lines+markers", "showlegend": True,
        "line": {"color": style.line, "dash": style.dash, "width": 2},
        "marker": {"color": style.line, "symbol": style.symbol, "size": 6},
    }  # fmt: skip
    return [*band, line]


def _figure(
    title: str, traces: list[Trace], layout: dict[str, Any], lines: Sequence[Line], dataset: str
) -> Figure:
    named: set[str] = set()
    for trace in traces:  # one entry of the legend per method
        trace["showlegend"] = bool(trace.get("showlegend")) and trace["name"] not in named
        named |= {trace["name"]} if trace["showlegend"] else set()
    methods = sorted({line.method.name for line in lines})
    return Figure(title, traces, layout, lines[0].family, dataset, methods=methods)


def _layout(x: str, y: str) -> dict[str, Any]:
    return {
        "xaxis": {"title": {"text": x}},
        "yaxis": {"title": {"text": y}, "automargin": True},
        "height": 340,
    }


def _grouped(lines: Sequence[Line], key: Any) -> list[tuple[Any, list[Line]]]:
    return [(k, [x for x in lines if key(x) == k]) for k in sorted({key(line) for line in lines})]


def _of_tasks(comparison: Comparison) -> str:
    tasks = ", ".join(comparison.tasks)
    left = comparison.left_out
    return f"Over {tasks}." + (
        f" Left out for unequal numbers of runs: {', '.join(left)}." if left else ""
    )


def _short(value: float | None) -> float | None:
    """Six digits: more cannot be seen, and the page holds many."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _plain_text(text: str) -> str:
    """Plotly reads some tags in text."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
