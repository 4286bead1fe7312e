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
from offdiff.planned_episode import Imagined, PlannedEpisode, imagination, refinements
from offdiff.planners.task import Task
from offdiff.waypoints import WayPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import SubFigure

EXECUTED, PROPOSED, PLANNED, OTHERS = "#222222", "#d9722e", "#1f5fa8", "#9a9a9a"
WALL, GOAL = "#d5d0c8", "#c22f3d"
PLANS_SHOWN = 10
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
    panels = np.atleast_1d(np.asarray(right.subplots(3 if staged else 1, 1)))
    if staged:
        _refinement(panels[0], episode, task, columns)
        _refined_rows(panels[1], episode, task)
    else:
        panels[0].set_box_aspect(0.8)
        panels[0].set_anchor("N")
    _off(panels[-1], episode, task)
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
    _title(panel, f"Plans and path: {len(episode.rewards)} steps{outcome}")
    _walls(panel, maze)
    # Evenly along the way: most of an episode may pass standing at the goal.
    way = np.concatenate(([0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))))
    plans = _spread(episode.plans, way)
    colours = _ages(plans)
    for plan in plans:
        colour = colours.to_rgba(np.asarray(float(plan.step)))
        for candidate in plan.candidates if plan.candidates is not None else ():
            panel.plot(*candidate[:, columns].T, lw=0.5, alpha=0.25, color=colour, zorder=2)
    panel.plot(*path.T, color=EXECUTED, lw=2.4, label="executed", zorder=3)
    for i, plan in enumerate(plans):
        colour = colours.to_rgba(np.asarray(float(plan.step)))
        label = "plan, from the dot on" if i == 0 else None
        way_ahead = plan.obs[:, columns].T
        panel.plot(*way_ahead, lw=2, color=colour, label=label, zorder=4)
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
    plans = _spread(within, np.arange(length + 1, dtype=float))
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
        _bare(panel)
    figure.align_ylabels(panels.tolist())
    panels[0].set_xlim(first, last + (reach if last == length else 0))
    part = "" if (first, last) == (0, length) else f", {first} to {last} shown"
    _title(panels[0], f"Imagined and executed: {length} steps{part}")
    panels[-1].set_xlabel("step of the episode")
    panels[-1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=2, frameon=False)


def _refinement(
    panel: "Axes", episode: PlannedEpisode, task: Task, columns: list[int] | None
) -> None:
    """The plan whose refinement was of middle size: stages, candidates, outcome."""
    distances = next(iter(refinements(episode, task.obs_std).values())).mean(1)
    plan = episode.plans[int(np.argsort(distances)[len(distances) // 2])]
    after = episode.obs[plan.steps[plan.steps < len(episode.obs)]]
    first = next(iter(plan.stages.values()))
    column = int(np.argmax(np.abs((first - plan.obs) / np.array(task.obs_std)).mean(0)))

    def line(rows: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        if columns is not None:
            return rows[:, columns[0]], rows[:, columns[1]]
        return plan.steps[: len(rows)], rows[:, column]

    for candidate in plan.candidates if plan.candidates is not None else ():
        panel.plot(*line(candidate), lw=0.6, alpha=0.5, color=OTHERS)
    for name, rows in plan.stages.items():
        panel.plot(*line(rows), "--", color=PROPOSED, lw=1.8, label=name)
    panel.plot(*line(plan.obs), color=PLANNED, lw=2, label="plan")
    panel.plot(*line(after), color=EXECUTED, lw=1.6, label="executed")
    panel.plot(*(value[:1] for value in line(plan.obs)), "o", ms=5, color=PLANNED)
    _title(panel, f"A refinement of middle size: the plan of step {plan.step}")
    if columns is not None:
        panel.set_aspect("equal", adjustable="datalim")
    panel.set_xlabel("x" if columns is not None else "step of the episode")
    panel.set_ylabel("y" if columns is not None else f"observation {column}")
    _bare(panel)
    panel.legend(frameon=False, fontsize=9)


def _refined_rows(panel: "Axes", episode: PlannedEpisode, task: Task) -> None:
    """How far the refinement moved every row."""
    stride = episode.plans[0].stride
    for i, (name, distances) in enumerate(refinements(episode, task.obs_std).items()):
        low, middle, high = np.quantile(distances, (0.25, 0.5, 0.75), axis=0)
        steps = stride * np.arange(len(middle))
        colour = (PROPOSED, PLANNED, OTHERS)[i % 3]
        panel.plot(steps, middle, color=colour, lw=2, label=f"{name} to plan, median")
        panel.fill_between(steps, low, high, color=colour, alpha=0.2, lw=0, label="half of plans")
    _title(panel, "What the refinement changed")
    panel.set_xlabel("steps ahead")
    panel.set_ylabel("distance (data's std)")
    panel.set_ylim(bottom=0)
    _bare(panel)
    panel.legend(frameon=False, fontsize=9)


def _off(panel: "Axes", episode: PlannedEpisode, task: Task) -> None:
    """How far off plans were, beside what standing still would have been."""
    found = imagination(episode, task.obs_std)
    steps = [ahead.steps for ahead in found]
    panel.plot(
        steps, [ahead.moved for ahead in found], "o--", ms=4, color=OTHERS,
        label="the present to what followed",
    )  # fmt: skip
    panel.plot(
        steps, [ahead.distance for ahead in found], "o-", ms=4, color=PLANNED,
        label="imagined to executed",
    )  # fmt: skip
    _title(panel, "How far off plans were")
    panel.set_xlabel("steps ahead")
    panel.set_ylabel("distance (data's std)")
    panel.set_xticks(steps)
    panel.set_ylim(bottom=0)
    _bare(panel)
    panel.legend(frameon=False, fontsize=9)


def _spread(plans: Sequence[Imagined], along: NDArray[np.floating]) -> list[Imagined]:
    """At most PLANS_SHOWN plans, evenly by `along` (T + 1,), which grows with the step."""
    at = np.array([along[plan.step] for plan in plans])
    wanted = np.linspace(at[0], at[-1], PLANS_SHOWN)
    chosen = sorted({int(np.abs(at - place).argmin()) for place in wanted})
    return [plans[i] for i in chosen]


def _ages(plans: Sequence[Imagined]) -> "ScalarMappable":
    """The colour of a plan by its step."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    # Without the lightest part, which is hard to see on white.
    shades = colormaps["viridis"](np.linspace(0, 0.88, 256))
    scale = Normalize(plans[0].step, max(plans[-1].step, plans[0].step + 1))
    return ScalarMappable(scale, LinearSegmentedColormap.from_list("age", shades))


def _title(panel: "Axes", text: str) -> None:
    panel.set_title(text, loc="left", fontsize=12, fontweight="bold")


def _bare(panel: "Axes") -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25)
