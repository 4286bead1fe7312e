"""Diagnostics of a run's synthetic experience as one picture."""

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offdiff.core.errors import InputError, MissingExtraError
from offdiff.core.files import replacing
from offdiff.diagnostics import Diagnostics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

History = Sequence[tuple[int, Diagnostics]]

SYNTHETIC, SECOND, DATA = "#1f5fa8", "#c8553d", "#6b6b6b"
"""Colours. Dashes mean recorded data in every panel."""
SMALLEST = 1e-16
"""Errors below are rounding, and a logarithm cannot show 0."""
DECADES = 2
"""A floor that lies further below the errors is told in the legend: it would flatten them."""
ERROR, UPDATES = "squared error (variances of the data)", "gradient updates"
NO_SIMULATOR = "no error to show: this environment's state\ncannot be restored from observations"


def can_plot() -> bool:
    """True if matplotlib is installed."""
    return find_spec("matplotlib") is not None


def plot_diagnostics(
    history: Sequence[tuple[int, Diagnostics] | Mapping[str, Any]], path: Path
) -> None:
    """Writes four panels as a PNG of 1200x800 pixels, whole or not at all.

    history: (update, diagnostics) of the generations, or {"update": ..., **diagnostics as JSON}.
    Several of one update, as those of several seeds, are drawn as their median. Raises InputError
    for an empty history, MissingExtraError without matplotlib.
    """
    if not history:
        raise InputError("there is no generation to plot: the run made no synthetic experience")
    if not can_plot():
        raise MissingExtraError("plots", "plot")
    # Not pyplot, which keeps figures and picks a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    generations = [
        (row["update"], Diagnostics.from_json(row)) if isinstance(row, Mapping) else row
        for row in history
    ]
    figure = Figure(figsize=(12, 8), dpi=100)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2)
    _by_row(panels[0, 0], generations)
    _dynamics(panels[0, 1], generations)
    _policy(panels[1, 0], generations)
    _shares(panels[1, 1], generations)
    with replacing(path) as temporary:
        # The temporary name does not end in .png.
        figure.savefig(temporary, format="png")


def _by_row(panel: "Axes", history: History) -> None:
    _dress(panel, "Dynamics error along the window", "transition of the window", ERROR)
    update = max(update for update, _ in history)
    last = [found for at, found in history if at == update]
    rows = np.array([found.dynamics.by_row for found in last if found.dynamics], float)
    if not len(rows):
        return _nothing(panel, NO_SIMULATOR)
    at = np.flatnonzero(np.isfinite(rows).any(0))  # None became NaN
    middle = np.maximum(np.nanmedian(rows[:, at], axis=0), SMALLEST)
    panel.plot(at + 1, middle, "o-", ms=4, color=SYNTHETIC, label=f"synthetic, update {update:,}")
    floors = [found.floor.mean for found in last if found.floor]
    _floor(panel, middle, float(np.median(floors)) if floors else None)


def _dynamics(panel: "Axes", history: History) -> None:
    _dress(panel, "Dynamics error", UPDATES, ERROR)
    if not _line(panel, history, "dynamics_mean", SYNTHETIC, "mean", least=SMALLEST):
        return _nothing(panel, NO_SIMULATOR)
    _line(panel, history, "dynamics_median", SECOND, "median", least=SMALLEST)
    shown = np.concatenate([line.get_ydata() for line in panel.get_lines()])
    floors = [found.floor.mean for _, found in history if found.floor]
    _floor(panel, shown, float(np.median(floors)) if floors else None)


def _floor(panel: "Axes", shown: NDArray[np.float64], floor: float | None) -> None:
    """Adds what recorded data bring, and sets the scale."""
    panel.set_yscale("log")
    low, high = panel.get_ylim()
    if floor is not None:
        beneath = floor < float(shown.min()) / 10**DECADES
        label = f"recorded data, {'below the axis: ' if beneath else ''}{floor:.1g}"
        panel.axhline(max(floor, SMALLEST), ls="--", color=DATA, label=label)
        if beneath:
            panel.set_ylim(low / 3, high * 3)  # a decade at least, so that ticks have labels
    _legend(panel)


def _policy(panel: "Axes", history: History) -> None:
    _dress(panel, "Actions under the policy", UPDATES, "log-likelihood (nats per action)")
    if not _line(panel, history, "policy_log_likelihood", SYNTHETIC, "log-likelihood"):
        return _nothing(panel, "there was no policy yet")
    label = "log-likelihood of recorded data"
    _line(panel, history, "behaviour_log_likelihood", SYNTHETIC, label, recorded=True)
    right = _right(panel, "residual std (1: on-policy)")
    _line(right, history, "policy_residual_std", SECOND, "residual std")
    label = "residual std of recorded data"
    _line(right, history, "behaviour_residual_std", SECOND, label, recorded=True)
    right.set_ylim(bottom=0)
    _legend(panel, right)


def _shares(panel: "Axes", history: History) -> None:
    _dress(panel, "Ends and validity", UPDATES, "transitions (%)")
    _line(panel, history, "terminal_rate", SYNTHETIC, "terminal", scale=100)
    label = "terminal in recorded data"
    _line(panel, history, "data_terminal_rate", SYNTHETIC, label, recorded=True, scale=100)
    label = "terminal or not, unlike in the simulator"
    _line(panel, history, "dynamics_wrong_ends", DATA, label, scale=100)
    panel.set_ylim(bottom=0)
    right = _right(panel, "windows (%)")
    _line(right, history, "broken", SECOND, "not finite or out of range", scale=100)
    right.set_ylim(0, max(1, right.get_ylim()[1]))
    _legend(panel, right)


def _line(
    panel: "Axes",
    history: History,
    name: str,
    colour: str,
    label: str,
    *,
    recorded: bool = False,
    scale: float = 1,
    least: float = -math.inf,
) -> bool:
    """Draws a number of `Diagnostics.summary` where it is known; False if it never is."""
    known: dict[int, list[float]] = {}
    for update, found in history:
        summary = found.summary()
        if name in summary:
            known.setdefault(update, []).append(scale * summary[name])
    at = sorted(known)
    middle = [max(float(np.median(known[update])), least) for update in at]
    style = "--" if recorded else "o-"
    if recorded and len(at) == 1:  # a single point would show no dashes
        panel.axhline(middle[0], ls=style, color=colour, label=label)
    elif at:
        panel.plot(at, middle, style, ms=4, color=colour, label=label)
    if len(at) == 1:
        panel.set_xticks(at)
    return bool(at)


def _dress(panel: "Axes", title: str, x: str, y: str) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    panel.set_title(title, loc="left", fontsize=12, fontweight="bold")
    panel.set_xlabel(x)
    panel.set_ylabel(y)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25)


def _right(panel: "Axes", label: str) -> "Axes":
    """A second scale, coloured like what it measures."""
    right = panel.twinx()
    right.spines[["top", "left"]].set_visible(False)
    right.set_ylabel(label, color=SECOND)
    panel.yaxis.label.set_color(SYNTHETIC)
    return right


def _legend(*panels: "Axes") -> None:
    """One legend below the first panel: inside, it would hide lines."""
    handles = [line for panel in panels for line in panel.get_lines()]
    panels[0].legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
        ncols=2,
        frameon=False,
        fontsize=9,
    )


def _nothing(panel: "Axes", why: str) -> None:
    panel.text(0.5, 0.5, why, transform=panel.transAxes, ha="center", va="center", color=DATA)
    panel.set_xticks([])
    panel.set_yticks([])
