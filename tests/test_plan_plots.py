"""Pictures of plans are whole, of the promised size, and show the numbers of the episode."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from offdiff.core.errors import InputError, MissingExtraError
from offdiff.core.types import Spec
from offdiff.mazes import Maze
from offdiff.plan_plots import plot_plans
from offdiff.planned_episode import Imagined, PlannedEpisode
from offdiff.planners.task import Goal, Task
from offdiff.waypoints import WayPoint

WALLS = np.array([[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]], bool)
"""Free for x in (-1, 1) and y in (-0.5, 0.5)."""


def task(goal: Goal | None) -> Task:
    return Task(
        spec=Spec(6, 2),
        obs_mean=(0.0,) * 6,
        obs_std=(0.5,) * 6,
        action_mean=(0.0, 0.0),
        action_std=(1.0, 1.0),
        reward_scale=1.0,
        longest=100,
        returns=(0.0, 10.0),
        top_return=10.0,
        goal=goal,
    )


GOAL_TASK = task(Goal(wanted=(2, 3), reached=((0, 1),)))
PLAIN_TASK = task(None)


def episode(
    *, maze: bool, staged: bool = True, steps: int = 40, rows: int = 5, plans: bool = True
) -> PlannedEpisode:
    """A walk along a sine; number 5 varies most, 2 and 3 stay at (0.8, 0.2)."""
    time = np.arange(steps + 1)
    obs = np.zeros((steps + 1, 6), np.float32)
    obs[:, 0] = np.linspace(-0.8, 0.8, steps + 1)
    obs[:, 1] = 0.3 * np.sin(time / 5)
    obs[:, 2:4] = 0.8, 0.2
    obs[:, 4] = 0.1 * np.sin(time)
    obs[:, 5] = 9 * np.cos(time / 3)

    def plan(step: int) -> Imagined:
        ahead = np.minimum(step + np.arange(rows), steps)
        imagined = obs[ahead] + 0.01 * np.arange(rows, dtype=np.float32)[:, None]
        return Imagined(
            step=step,
            obs=imagined,
            stride=1,
            stages={"proposal": imagined + np.float32(0.1)} if staged else {},
            candidates=np.stack([imagined, imagined + np.float32(0.05)]),
        )

    return PlannedEpisode(
        env_id="PointMaze_UMaze-v3" if maze else "Hopper-v4",
        seed=0,
        goal=(),
        max_episode_steps=steps,
        obs=obs,
        action=np.zeros((steps, 2), np.float32),
        rewards=[1.0] * steps,
        success=True,
        plans=[plan(step) for step in range(steps)] if plans else [],
        decisions=steps,
        seconds=1.0,
        calls=steps,
        maze=Maze(WALLS, 1.0) if maze else None,
    )


def drawn(path: Path) -> NDArray[np.float32]:
    from matplotlib.image import imread

    picture = imread(path)
    assert picture.shape[:2] == (900, 1400)
    return np.asarray(picture[..., :3])


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures that were saved."""
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    from matplotlib.figure import Figure

    caught: list[Any] = []
    save = Figure.savefig

    def catch(figure: Figure, *args: Any, **options: Any) -> None:
        caught.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", catch)
    return caught


CASES = {
    "maze": (episode(maze=True), GOAL_TASK),
    "maze without stages": (episode(maze=True, staged=False), GOAL_TASK),
    "numbers": (episode(maze=False), PLAIN_TASK),
    "one step": (episode(maze=False, steps=1), PLAIN_TASK),
    "one row, and a goal that is not seen": (episode(maze=True, rows=1), PLAIN_TASK),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", CASES)
def test_a_picture_of_1400_by_900(tmp_path: Path, figures: list[Any], name: str) -> None:
    about, of = CASES[name]
    path = tmp_path / "new" / "plans.png"
    plot_plans(about, of, path)
    picture = drawn(path)
    assert 0.01 < (picture < 0.9).any(-1).mean() < 0.5, "a drawing, not a blank"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def lines(panel: Any) -> dict[str, NDArray[np.float64]]:
    return {line.get_label(): np.asarray(line.get_xydata()) for line in panel.get_lines()}


def test_a_maze_shows_path_start_goal_walls_and_way_points(
    tmp_path: Path, figures: list[Any]
) -> None:
    about = episode(maze=True)
    points = [WayPoint(20, (0.0, 0.25))]
    plot_plans(about, GOAL_TASK, tmp_path / "plans.png", points=points)
    panel = figures[0].axes[0]
    found = lines(panel)
    np.testing.assert_allclose(found["executed"], about.obs[:, :2])
    np.testing.assert_allclose(found["start"], about.obs[:1, :2])
    np.testing.assert_allclose(found["goal"], [[0.8, 0.2]], rtol=1e-6)
    np.testing.assert_allclose(found["plan, from the dot on"], about.plans[0].obs[:, :2])
    assert [text.get_text() for text in panel.texts] == ["step 20"]
    (walls,) = panel.get_images()
    np.testing.assert_array_equal(~np.isnan(walls.get_array().filled(np.nan)), WALLS)
    assert tuple(walls.get_extent()) == (-2, 2, -1.5, 1.5)
    # Only so much of the outer walls as to see them.
    assert panel.get_xlim() == pytest.approx((-1.4, 1.4))


def test_plans_shown_in_a_maze_lie_apart(tmp_path: Path, figures: list[Any]) -> None:
    plot_plans(episode(maze=True, steps=30), GOAL_TASK, tmp_path / "plans.png")
    dots = [
        line.get_xydata()[0]
        for line in figures[0].axes[0].get_lines()
        if line.get_marker() == "o" and len(line.get_xydata()) == 1
    ]
    assert 3 <= len(dots) <= 10
    gaps = np.linalg.norm(np.diff(dots, axis=0), axis=1)
    assert gaps.min() >= 0.3


def test_numbers_that_vary_most_are_shown_and_named(tmp_path: Path, figures: list[Any]) -> None:
    about = episode(maze=False)
    plot_plans(about, PLAIN_TASK, tmp_path / "plans.png")
    left = [p for p in figures[0].axes if p.get_ylabel().startswith("observation")][:4]
    assert [panel.get_ylabel() for panel in left] == [f"observation {c}" for c in (0, 1, 4, 5)]
    executed = lines(left[3])["executed"]
    first, last = int(executed[0, 0]), int(executed[-1, 0])
    assert last - first == 32, "as many steps as eight plans after one another reach"
    np.testing.assert_allclose(executed[:, 1], about.obs[first : last + 1, 5])
    branch = lines(left[3])["plan, from the dot on"]
    np.testing.assert_allclose(branch[0], [first, about.obs[first, 5]])
    assert len(branch) == 5


def test_right_panels_tell_refinement_and_distance(tmp_path: Path, figures: list[Any]) -> None:
    plot_plans(episode(maze=False), PLAIN_TASK, tmp_path / "plans.png")
    by_title = {panel.get_title(loc="left"): panel for panel in figures[0].axes}
    changed = lines(by_title["What the refinement changed"])["proposal to plan, median"]
    np.testing.assert_allclose(changed, [[k, 0.1 / 0.5] for k in range(5)], rtol=1e-5)
    off = lines(by_title["How far off plans were"])["imagined to executed"]
    np.testing.assert_allclose(off[:, 0], [1, 2, 4])
    np.testing.assert_allclose(off[:, 1], np.array([1, 2, 4]) * 0.01 / 0.5, rtol=1e-3)
    (typical,) = (panel for title, panel in by_title.items() if title.startswith("A typical"))
    assert {"proposal", "plan", "executed"} <= lines(typical).keys()


def test_without_stages_every_plan_is_judged(tmp_path: Path, figures: list[Any]) -> None:
    plot_plans(episode(maze=False, staged=False), PLAIN_TASK, tmp_path / "plans.png")
    by_title = {panel.get_title(loc="left"): panel for panel in figures[0].axes}
    (line,) = by_title["How far off each plan was"].get_lines()
    assert line.get_xdata()[0] == 0
    assert line.get_ydata()[0] == pytest.approx(np.mean([1, 2, 3, 4]) * 0.01 / 0.5, rel=1e-4)


def test_nothing_to_draw_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    with pytest.raises(InputError, match="imagines no observations"):
        plot_plans(episode(maze=True, plans=False), GOAL_TASK, tmp_path / "plans.png")
    with pytest.raises(InputError, match=r"end it in \.png"):
        plot_plans(episode(maze=True), GOAL_TASK, tmp_path / "plans.jpg")
    assert not any(tmp_path.iterdir())


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offdiff.plan_plots.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"offdiff\[plot\]"):
        plot_plans(episode(maze=True), GOAL_TASK, tmp_path / "plans.png")
