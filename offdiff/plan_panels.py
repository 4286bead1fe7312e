"""Panels about an episode with a planner: how plans came about, and how far off they were."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offdiff.planned_episode import PlannedEpisode, imagination, refinements, rms
from offdiff.planners.task import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EXECUTED, PROPOSED, PLANNED, OTHERS = "#222222", "#d9722e", "#1f5fa8", "#9a9a9a"


def refinement(
    panel: "Axes", episode: PlannedEpisode, task: Task, columns: list[int] | None
) -> None:
    """The plan whose refinement was the median one: stages, candidates, outcome."""
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
    title(panel, f"A typical refinement: step {plan.step}")
    if columns is not None:
        panel.set_aspect("equal", adjustable="datalim")
    panel.set_xlabel("x" if columns is not None else "step of the episode")
    panel.set_ylabel("y" if columns is not None else f"observation {column}")
    bare(panel)
    panel.legend(frameon=False, fontsize=9)


def refined_rows(panel: "Axes", episode: PlannedEpisode, task: Task) -> None:
    """How far the refinement moved every row."""
    stride = episode.plans[0].stride
    for i, (name, distances) in enumerate(refinements(episode, task.obs_std).items()):
        low, middle, high = np.quantile(distances, (0.25, 0.5, 0.75), axis=0)
        steps = stride * np.arange(len(middle))
        colour = (PROPOSED, PLANNED, OTHERS)[i % 3]
        panel.plot(steps, middle, color=colour, lw=2, label=f"{name} to plan, median")
        panel.fill_between(steps, low, high, color=colour, alpha=0.2, lw=0, label="half of plans")
    title(panel, "What the refinement changed")
    panel.set_xlabel("steps ahead")
    panel.set_ylabel("distance (data's std)")
    panel.set_ylim(bottom=0)
    bare(panel)
    panel.legend(frameon=False, fontsize=9)


def when(panel: "Axes", episode: PlannedEpisode, task: Task) -> None:
    """How far off every single plan was, as far as the episode shows."""
    steps, distances = [], []
    for plan in episode.plans:
        at = plan.steps[1:]
        at = at[at < len(episode.obs)]
        if len(at):
            off = (plan.obs[1 : len(at) + 1] - episode.obs[at]) / np.array(task.obs_std)
            steps.append(plan.step)
            distances.append(rms(off).mean())
    panel.plot(steps, distances, color=PLANNED, lw=1.6)
    title(panel, "How far off each plan was")
    panel.set_xlabel("plan made at step")
    panel.set_ylabel("distance (data's std)")
    panel.set_ylim(bottom=0)
    bare(panel)


def off(panel: "Axes", episode: PlannedEpisode, task: Task) -> None:
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
    title(panel, "How far off plans were")
    panel.set_xlabel("steps ahead")
    panel.set_ylabel("distance (data's std)")
    panel.set_xticks(steps)
    panel.set_ylim(bottom=0)
    bare(panel)
    panel.legend(frameon=False, fontsize=9)


def title(panel: "Axes", text: str) -> None:
    """Says what a panel shows."""
    panel.set_title(text, loc="left", fontsize=12, fontweight="bold")


def bare(panel: "Axes") -> None:
    """Takes away what is not read."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25)
