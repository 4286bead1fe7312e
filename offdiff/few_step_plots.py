"""Quality against network calls as one picture."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from offdiff.core.errors import MissingExtraError
from offdiff.core.files import replacing
from offdiff.few_steps import Comparison, Point
from offdiff.plots import can_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (
    "#1f5fa8", "#c8553d", "#2a8a57", "#8a3f8f", "#9a7400", "#55606e", "#3fa3b8", "#d0789f",
)  # fmt: skip
"""One per model, in order of appearance; again from the front beyond eight."""
MARKERS = {"heun": "o", "euler": "s", "dpmpp": "^", "unipc": "D", "midpoint": "v"}
LARGEST = 2.0
"""Where panels end: beyond are steps that explode."""
SMALLEST = 1e-4
"""What is shown of a distance that came out lower, or at 0 or below: equal samples, by chance."""


def plot_few_steps(comparison: Comparison, path: Path) -> None:
    """Writes three panels as a PNG of 1500x500 pixels, whole or not at all.

    Raises MissingExtraError without matplotlib.
    """
    if not can_plot():
        raise MissingExtraError("plots", "plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5), dpi=100)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    _lines(left, comparison, lambda p: p.paired, "RMSE to the exact ODE (data std)", None)
    _lines(middle, comparison, lambda p: p.energy, "energy distance to held-out data",
           comparison.energy_floor)  # fmt: skip
    _lines(right, comparison, lambda p: p.dynamics_median, "dynamics error, median", None)
    handles, labels = left.get_legend_handles_labels()
    if not handles:
        handles, labels = middle.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _lines(
    panel: "Axes",
    comparison: Comparison,
    value: Callable[[Point], float | None],
    title: str,
    floor: float | None,
) -> None:
    models = list(dict.fromkeys(point.model for point in comparison.points))
    for model, solver in dict.fromkeys((p.model, p.solver) for p in comparison.points):
        known = [
            (point.calls, max(number, SMALLEST))
            for point in comparison.points
            if (point.model, point.solver) == (model, solver)
            and (number := value(point)) is not None
        ]
        if known:
            colour = COLOURS[models.index(model) % len(COLOURS)]
            panel.plot(*zip(*sorted(known), strict=True), color=colour, marker=MARKERS[solver],
                       linewidth=1.2, label=f"{model}, {solver}")  # fmt: skip
    if not panel.lines:
        panel.text(0.5, 0.5, "nothing to show", ha="center", transform=panel.transAxes)
    if floor is not None and floor > 0:
        panel.axhline(floor, color="#6b6b6b", linestyle="--", linewidth=1)
        panel.annotate("two samples of the data", (0.98, floor), xycoords=("axes fraction", "data"),
                       ha="right", va="bottom", fontsize=8, color="#6b6b6b")  # fmt: skip
    panel.set(xscale="log", yscale="log", xlabel="network calls", title=title)
    panel.set_ylim(top=min(panel.get_ylim()[1], LARGEST))
    most = max(point.calls for point in comparison.points)
    calls = [2**power for power in range(most.bit_length())]  # Heun's odd numbers lie beside them
    panel.set_xticks(calls, [str(number) for number in calls])
    panel.minorticks_off()
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
