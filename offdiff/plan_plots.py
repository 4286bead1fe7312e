"""One picture of an episode with a planner: what was imagined, and what came of it."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offdiff.core.errors import InputError, MissingExtraError
from offdiff.core.files import replacing
from offdiff.mazes import Maze
from offdiff.plan_panels import EXECUTED, bare, off, refined_rows, refinement, title, when
from offdiff.planned_episode import Imagined, PlannedEpisode
from offdiff.planners.task import Task
from offdiff.waypoints import WayPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import SubFigure

WALL, GOAL = "#d5d0c8", "#c22f3d"
PLANS_SHOWN = 10
APART = 0.3
"""Cells of a maze between the places at which shown plans were made."""
MARGIN = 0.4
"""Cells of wall that are shown around the free ones."""
NUMBERS_SHOWN = 4
STRETCH = 8
"""Of an episode, as many plans one after the other are shown: more would be too small to see."""
GOAL_RADIUS = 0.45
"""Within which PointMaze and AntMaze count the goal as reached."""


def require_picture(path: Path) -> None:
    """Raises InputError unless the file's name ends in .png; MissingExtraError for matplotlib."""
    if path.suffix != ".png":
        raise InputError(f"{path} names no known picture format; end it in .png")
    if find_spec("matplotlib") is None:
        raise MissingExtraError("plots", "plot")


def plot_plans(
    episode: PlannedEpisode, task: Task, path: Path, *, points: Sequence[WayPoint] = ()
) -> None:
    """Writes a PNG of 1400x900 pixels, whole or not at all.

    Left: in a maze the paths, elsewhere the observation numbers that vary most. Right: how far off
    plans were, and how they came about if they have stages. points: way-points to mark.
    Raises InputError if the planner imagined nothing, and as `require_picture` does.
    """
    require_picture(path)
    if not episode.plans:
        raise InputError(
            "this planner imagines no observations, so there is no plan to draw; film its episode "
            "with --video instead"
        )
    # Not pyplot, which keeps figures and picks a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 9), dpi=100)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    FigureCanvasAgg(figure)
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=(1.6, 1))).tolist()
    columns = None
    if episode.maze is not None and task.goal is not None:
        columns = list(task.goal.reached[0])
        goal = episode.obs[0, list(task.goal.wanted)]
        _maze(left, episode, episode.maze, columns, goal, points)
    else:
        _numbers(left, episode, np.array(task.obs_std))
    staged = bool(episode.plans[0].stages)
    panels = np.asarray(right.subplots(3 if staged else 2, 1))
    if staged:
        refinement(panels[0], episode, task, columns)
        refined_rows(panels[1], episode, task)
    else:
        when(panels[0], episode, task)
    off(panels[-1], episode, task)
    with replacing(path) as temporary:
        # The temporary name does not end in .png.
        figure.savefig(temporary, format="png")


def _maze(
    figure: "SubFigure",
    episode: PlannedEpisode,
    maze: Maze,
    columns: list[int],
    goal: NDArray[np.float32],
    points: Sequence[WayPoint],
) -> None:
    """Walls, the executed path, and plans coloured by the step at which they were made."""
    panel = figure.subplots()
    path = episode.obs[:, columns]
    outcome = {True: ", goal reached", False: ", goal not reached", None: ""}[episode.success]
    title(panel, f"Plans and path: {len(episode.rewards)} steps{outcome}")
    _walls(panel, maze)
    plans = _spread(_apart(episode.plans, path, APART * maze.size))
    colours = _ages(plans)
    for plan in plans:
        colour = colours.to_rgba(np.asarray(float(plan.step)))
        for candidate in plan.candidates if plan.candidates is not None else ():
            panel.plot(*candidate[:, columns].T, lw=0.5, alpha=0.25, color=colour, zorder=2)
    panel.plot(*path.T, color=EXECUTED, lw=1.4, label="executed", zorder=4.5)
    for i, plan in enumerate(plans):
        colour = colours.to_rgba(np.asarray(float(plan.step)))
        label = "plan, from the dot on" if i == 0 else None
        way_ahead = plan.obs[:, columns].T
        panel.plot(*way_ahead, lw=2.6, color=colour, label=label, zorder=4)
        panel.plot(*path[plan.step], "o", ms=5, color=colour, mec="white", mew=0.7, zorder=5)
    panel.plot(*path[0], "s", ms=11, mfc="none", mec=EXECUTED, mew=2, label="start", zorder=6)
    _marks(panel, goal, points)
    figure.colorbar(colours, ax=panel, label="plan made at step", shrink=0.75, pad=0.02)
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=4, frameon=False)


def _marks(panel: "Axes", goal: NDArray[np.float32], points: Sequence[WayPoint]) -> None:
    """Goal, and way-points."""
    from matplotlib.patches import Circle

    panel.plot(*goal, "*", ms=20, color=GOAL, mec="white", label="goal", zorder=6, ls="none")
    ring = Circle(goal.tolist(), GOAL_RADIUS, fill=False, ls=":", color=GOAL, lw=1.2, zorder=3)
    panel.add_patch(ring)
    for point in points:
        x, y = point.position[:2]
        panel.plot(x, y, "D", ms=9, mfc="white", mec=GOAL, mew=2, zorder=6)
        panel.annotate(
            f"step {point.step}", (x, y), (9, 7), textcoords="offset points", color=GOAL, zorder=6
        )


def _walls(panel: "Axes", maze: Maze) -> None:
    right, top = maze.half_extent
    panel.imshow(
        np.where(maze.walls, 1.0, np.nan),
        extent=(-right, right, -top, top),
        cmap=_single(WALL),
        interpolation="nearest",
        zorder=1,
    )
    rows, columns = np.nonzero(~maze.walls)
    left, upper = maze.centre(rows.min(), columns.min())
    right, lower = maze.centre(rows.max(), columns.max())
    around = (0.5 + MARGIN) * maze.size
    panel.set_xlim(left - around, right + around)
    panel.set_ylim(lower - around, upper + around)
    panel.set_aspect("equal")
    panel.set_xlabel("x")
    panel.set_ylabel("y")
    panel.spines[:].set_visible(False)


def _single(colour: str) -> Any:
    from matplotlib.colors import ListedColormap

    return ListedColormap([colour])


def _numbers(figure: "SubFigure", episode: PlannedEpisode, std: NDArray[np.float64]) -> None:
    """A stretch of the observation numbers that vary most; plans branch off the executed line."""
    reach = int(episode.plans[0].steps[-1] - episode.plans[0].step)
    length = len(episode.rewards)
    # The middle: beginnings are all alike.
    first = max(0, (length - STRETCH * reach) // 2)
    last = min(length, first + STRETCH * max(1, reach))
    shown = np.arange(first, last + 1)
    varied = np.argsort(-(episode.obs[shown] / std).std(0), kind="stable")[:NUMBERS_SHOWN]
    within = [plan for plan in episode.plans if first <= plan.step < last]
    plans = _spread(within)
    colours = _ages(plans)
    panels = np.atleast_1d(np.asarray(figure.subplots(len(varied), 1, sharex=True)))
    for panel, column in zip(panels, sorted(varied.tolist()), strict=True):
        for i, plan in enumerate(plans):
            colour = colours.to_rgba(np.asarray(float(plan.step)))
            for candidate in plan.candidates if plan.candidates is not None else ():
                panel.plot(plan.steps, candidate[:, column], lw=0.5, alpha=0.3, color=colour)
            label = "plan, from the dot on" if i == 0 else None
            panel.plot(plan.steps, plan.obs[:, column], lw=2, color=colour, label=label, zorder=4)
            panel.plot(plan.step, episode.obs[plan.step, column], "o", ms=5, color=colour, zorder=5)
        panel.plot(
            shown, episode.obs[shown, column], color=EXECUTED, lw=1.6, label="executed", zorder=3
        )
        panel.set_ylabel(f"observation {column}")
        bare(panel)
    figure.align_ylabels(panels.tolist())
    panels[0].set_xlim(first, last + (reach if last == length else 0))
    part = "" if (first, last) == (0, length) else f", {first} to {last} shown"
    title(panels[0], f"Imagined and executed: {length} steps{part}")
    panels[-1].set_xlabel("step of the episode")
    panels[-1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=2, frameon=False)


def _apart(plans: Sequence[Imagined], path: NDArray[np.float32], distance: float) -> list[Imagined]:
    """Those made where the one before is left behind: much of an episode may pass at the goal."""
    chosen = [plans[0]]
    for plan in plans:
        if np.linalg.norm(path[plan.step] - path[chosen[-1].step]) >= distance:
            chosen.append(plan)
    return chosen


def _spread(plans: Sequence[Imagined]) -> list[Imagined]:
    """At most PLANS_SHOWN of the plans, evenly."""
    count = min(PLANS_SHOWN, len(plans))
    return [plans[round(i)] for i in np.linspace(0, len(plans) - 1, count).tolist()]


def _ages(plans: Sequence[Imagined]) -> "ScalarMappable":
    """The colour of a plan by its step."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    # Without the lightest part, which is hard to see on white.
    shades = colormaps["viridis"](np.linspace(0, 0.88, 256))
    scale = Normalize(plans[0].step, max(plans[-1].step, plans[0].step + 1))
    return ScalarMappable(scale, LinearSegmentedColormap.from_list("age", shades))
