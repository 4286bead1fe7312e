"""The records of few_steps.py as one page of Markdown."""

import statistics
from typing import Any

import numpy as np

from offdiff.markdown import markdown_table

REFERENCE = ("edm", "heun", 31)
BEST = (("edm", "unipc"), ("edm-low", "unipc"), ("reflow", "euler"))
CAPTION = """All models get the same noise. RMSE: to the exact ODE of the same noise (a
student's: its teacher's), in standard deviations of the data. Energy distance: to windows of
held-out episodes. Dynamics error: of successors, against the simulator, in variances of the data.
Seconds per 100,000 transitions, one CPU core that had other work. Levels: karras from 80; student,
from 80 and then low; low, from the data's Gaussian; searched, likewise; partial, from windows of
the data with so much noise."""


def page(records: list[dict[str, Any]]) -> str:
    """All records as Markdown."""
    lines = ["# World models at few network calls", "", CAPTION, ""]
    for record in records:
        found = record["plain"]
        floor = found["dynamics_floor"]
        head = ["model", "solver", "levels", "calls", "RMSE", "energy distance",
                "dynamics error", "median", "terminals", "s per 100k"]  # fmt: skip
        rows = [
            [p["model"], p["solver"], p["levels"], str(p["calls"]),
             *map(_number, (p["paired"], p["energy"], p["dynamics"], p["dynamics_median"])),
             f"{p['terminal_rate']:.2%}", f"{p['seconds_per_100k']:.3g}"]
            for p in found["points"]
        ]  # fmt: skip
        lines += [
            f"## {record['dataset']}",
            "",
            f"{record['windows']} windows. The data: energy distance "
            f"{found['energy_floor']:.2g} between two samples, terminals "
            f"{found['terminal_rate']:.2%}" + (f", dynamics error {floor:.1g}." if floor else "."),
            "",
            markdown_table([head, *rows]),
            "",
        ]
        if record["seeds"]:
            lines += [f"Of {1 + len(record['seeds'])} training seeds, mean (lowest to highest):",
                      "", markdown_table(_over_seeds(record)), ""]  # fmt: skip
        if record["guided"]:
            names = ", ".join(dict.fromkeys(row["policy"] for row in record["guided"]))
            lines += [
                f"Guided, calibrated, {record['guided_windows']} windows, mean over the policies "
                f"{names}. Against 31 calls: dynamics error and its median over the reference's at "
                "the same likelihood, between its strengths. Novelty: distance to the nearest "
                "recorded window, that of other recorded windows being 1.",
                "",
                markdown_table(_guided(record["guided"])),
                "",
            ]
    return "\n".join(lines)


def _over_seeds(record: dict[str, Any]) -> list[list[str]]:
    """Lines of the best that every seed has: UniPC, low starts, reflow."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for found in (record["plain"], *record["seeds"].values()):
        for point in found["points"]:
            if (point["model"], point["solver"]) not in BEST:
                continue
            key = tuple(point[name] for name in ("model", "solver", "levels", "calls"))
            groups.setdefault(key, []).append(point)
    rows = [["model", "solver", "levels", "calls", "energy distance", "dynamics error"]]
    for key, group in groups.items():
        if len(group) == 1 + len(record["seeds"]):
            rows.append([*map(str, key), *(_spread(group, n) for n in ("energy", "dynamics"))])
    return rows


def _spread(points: list[dict[str, Any]], name: str) -> str:
    values = [point[name] for point in points if point[name] is not None]
    if len(values) < len(points):
        return "-"
    return f"{statistics.mean(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def _guided(rows: list[dict[str, Any]]) -> list[list[str]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        levels = f"{row['levels']} {row['noised']:g}" if row["noised"] else row["levels"]
        key = (row["model"], row["solver"], levels, row["calls"], row["strength"])
        groups.setdefault(key, []).append(row)

    def mean(group: list[dict[str, Any]], name: str) -> float | None:
        known = [row[name] for row in group if row[name] is not None]
        return statistics.mean(known) if known else None

    def against(group: list[dict[str, Any]], name: str) -> str:
        at, error = mean(group, "log_likelihood"), mean(group, name)
        reference = sorted(
            (mean(other, "log_likelihood") or 0.0, mean(other, name) or 0.0)
            for (kind, solver, _, calls, _), other in groups.items()
            if (kind, solver, calls) == REFERENCE
        )
        if at is None or error is None or not reference[0][0] <= at <= reference[-1][0]:
            return "-"
        return f"{error / np.interp(at, *zip(*reference, strict=True)) - 1:+.1%}"

    head = ["model", "solver", "levels", "calls", "strength", "dynamics error", "median",
            "log-likelihood", "residual std", "s per 100k", "against 31 calls",
            "its median", "energy distance", "novelty"]  # fmt: skip
    names = ("dynamics", "dynamics_median", "log_likelihood", "residual_std", "seconds_per_100k")
    return [head] + [
        [
            *map(str, key),
            *(_number(mean(group, name)) for name in names),
            against(group, "dynamics"),
            against(group, "dynamics_median"),
            _number(mean(group, "energy")),
            _number(mean(group, "novelty")),
        ]
        for key, group in groups.items()
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
