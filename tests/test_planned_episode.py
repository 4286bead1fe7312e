"""What is kept of an episode with a planner, and the distances read off it, have known answers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from straight_planner import CALLS, PUSH, SPEED, StraightConfig

from offdiff.checkpoint import SavedPlanner
from offdiff.core.errors import InputError
from offdiff.core.types import Spec
from offdiff.environments import Simulator, make_simulator
from offdiff.planned_episode import (
    CANDIDATES_KEPT,
    Imagined,
    PlannedEpisode,
    imagination,
    play_planned,
    refinements,
)
from offdiff.planners.task import Goal, Task
from offdiff.waypoints import Route

MAZE = "PointMaze_UMaze-v3"


def task(width: int = 2, goal: Goal | None = None) -> Task:
    return Task(
        spec=Spec(width, 2),
        obs_mean=(0.0,) * width,
        obs_std=(0.5,) * width,
        action_mean=(0.0, 0.0),
        action_std=(1.0, 1.0),
        reward_scale=1.0,
        longest=1000,
        returns=(0.0, 10.0),
        top_return=10.0,
        goal=goal,
    )


MAZE_TASK = task(8, Goal(wanted=(2, 3), reached=((0, 1), (4, 5))))


def saved(about: Task, **settings: Any) -> SavedPlanner:
    config = StraightConfig(**settings)
    return SavedPlanner(
        name="straight",
        config=config,
        task=about,
        planner=config.build(about),
        device=torch.device("cpu"),
    )


def drifted(**settings: Any) -> PlannedEpisode:
    with make_simulator("Drift-v0") as simulator:
        return play_planned(saved(task(), **settings).policy(0), simulator, seed=0)


@pytest.fixture
def maze() -> Simulator:
    pytest.importorskip("gymnasium_robotics")
    return make_simulator(MAZE, max_episode_steps=40)


def test_everything_of_an_episode_is_kept() -> None:
    episode = drifted(horizon=5)
    steps = np.arange(21, dtype=np.float32)
    np.testing.assert_array_equal(episode.obs, steps[:, None] * SPEED * np.array(PUSH))
    np.testing.assert_array_equal(episode.action, np.tile(np.float32(PUSH), (20, 1)))
    assert episode.total == 20 * PUSH[0]
    assert episode.success
    assert episode.env_id == "Drift-v0"
    assert episode.max_episode_steps == 20
    assert episode.maze is None
    assert (episode.decisions, episode.calls) == (20, 20 * CALLS)
    assert [plan.step for plan in episode.plans] == list(range(20))
    np.testing.assert_array_equal(episode.plans[7].steps, [7, 8, 9, 10, 11])
    np.testing.assert_array_equal(episode.plans[7].obs, episode.obs[7:12])


def test_plans_are_counted_where_they_are_made() -> None:
    episode = drifted(horizon=5, replan_every=1, stride=2)
    assert episode.plans[3].steps.tolist() == [3, 5, 7, 9, 11]
    one_action = drifted(horizon=5, replan_every=4, open_loop=True)
    # The planner gives a single action, so every step needs a plan of its own.
    assert one_action.decisions == 20


def test_a_long_list_of_candidates_is_cut() -> None:
    kept = drifted(horizon=3, candidates=CANDIDATES_KEPT + 5).plans[0].candidates
    assert kept is not None
    assert len(kept) == CANDIDATES_KEPT
    assert kept.base is None, "a view would keep all of them in memory"


def test_a_planner_that_imagines_what_happens_is_never_off() -> None:
    found = imagination(drifted(horizon=11), task().obs_std)
    assert [ahead.steps for ahead in found] == [1, 2, 4, 8, 10]
    assert [ahead.plans for ahead in found] == [20, 19, 17, 13, 11]
    per_step = SPEED * np.linalg.norm(PUSH) / np.sqrt(2) / 0.5
    for ahead in found:
        assert ahead.distance == pytest.approx(0, abs=1e-6)
        assert ahead.moved == pytest.approx(ahead.steps * per_step, rel=1e-5)


def test_steps_ahead_count_the_stride() -> None:
    found = imagination(drifted(horizon=4, stride=3), task().obs_std)
    assert [ahead.steps for ahead in found] == [3, 6, 9]
    assert max(ahead.distance for ahead in found) < 1e-6


def test_distances_are_root_mean_squares_of_standardised_numbers() -> None:
    episode = drifted(horizon=3)
    shift = np.array([[0, 0], [0.3, -0.4], [6, 8]], np.float32)
    off = replace(
        episode,
        plans=[
            Imagined(step=p.step, obs=p.obs + shift, stride=1, stages={}, candidates=None)
            for p in episode.plans
        ],
    )
    by_steps = {ahead.steps: ahead.distance for ahead in imagination(off, (0.5, 0.5))}
    root_of_two = 2**0.5
    assert by_steps == pytest.approx({1: 1 / root_of_two, 2: 20 / root_of_two}, rel=1e-5)


def test_nothing_ahead_nothing_to_tell() -> None:
    assert imagination(drifted(horizon=1), task().obs_std) == []
    plain = drifted(imagines=False)
    assert plain.plans == []
    assert imagination(plain, task().obs_std) == []
    assert plain.decisions == 20


def test_refinement_is_the_distance_from_proposal_to_plan() -> None:
    found = refinements(drifted(horizon=4), task().obs_std)
    assert list(found) == ["proposal"]
    # 0.5 beside the plan in both numbers, and a standard deviation of 0.5
    np.testing.assert_allclose(found["proposal"], np.tile([0.0, 1, 1, 1], (20, 1)), rtol=1e-6)


def test_a_goal_of_ones_own_is_what_is_observed_and_reached(maze: Simulator) -> None:
    with maze:
        episode = play_planned(
            saved(MAZE_TASK, horizon=4).policy(0), maze, seed=1, goal=(-0.75, 1.125)
        )
    np.testing.assert_array_equal(episode.obs[:, 2:4], np.tile([-0.75, 1.125], (41, 1)))
    assert episode.goal == (-0.75, 1.125)
    assert episode.maze is not None
    assert not episode.maze.walls[episode.maze.cell(*episode.obs[0, :2].tolist())]
    assert episode.obs[0, 0] > -0.5, "the start is in another cell"


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        ((0.0, 0.0), r"goal \(0, 0\) lies in a wall; .* nearest free cell .* around \(0, 1\)"),
        ((0.0, 7.0), r"goal \(0, 7\) lies outside the maze; .* from -2.5 to 2.5"),
        ((1.0,), r"goal takes 2 finite numbers, x and y, got \(1\)"),
        ((1.0, float("nan")), "2 finite numbers"),
    ],
)
def test_goals_nobody_can_get_to(maze: Simulator, goal: tuple[float, ...], words: str) -> None:
    with maze, pytest.raises(InputError, match=words):
        maze.reset(0, goal)


def test_an_environment_without_goals_names_those_that_have() -> None:
    with (
        make_simulator("Drift-v0") as simulator,
        pytest.raises(InputError, match=r"goal of Drift-v0 .* only PointMaze and AntMaze"),
    ):
        simulator.reset(0, (1.0, 1.0))


def test_a_way_point_counts_down_and_disappears(maze: Simulator) -> None:
    planner = saved(MAZE_TASK, horizon=5, stride=2)
    route = Route.of((6, 1.0, 0.5), MAZE_TASK, 5, 2)
    assert [route.ahead(time) for time in (0, 1, 2, 4, 5, 6, 7)] == [
        {3: (1.0, 0.5)},
        {2: (1.0, 0.5)},  # 2.5 rows: halves go to the even one
        {2: (1.0, 0.5)},
        {1: (1.0, 0.5)},
        {},
        {},
        {},
    ]
    assert route.pinning(6) is None
    with maze:
        episode = play_planned(planner.policy(0), maze, seed=1, route=route)
    for step, row in ((0, 3), (2, 2), (4, 1)):
        for columns in ([0, 1], [4, 5]):
            np.testing.assert_array_equal(episode.plans[step].obs[row, columns], [1.0, 0.5])
    free = episode.plans[6].obs[1:, [0, 1]]
    assert not (free == [1.0, 0.5]).all(1).any()


def test_a_planner_that_ignores_way_points_is_found_out(maze: Simulator) -> None:
    route = Route.of((3, 1.0, 0.5), MAZE_TASK, 5, 1)
    with maze:
        for settings in ({"keeps_pins": False}, {"imagines": False}):
            policy = saved(MAZE_TASK, horizon=5, **settings).policy(0)
            with pytest.raises(InputError, match="way-point"):
                play_planned(policy, maze, seed=1, route=route)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((3, 1.0), "3 numbers, its step and 2 coordinates; got 2"),
        ((9, 1.0, 1.0), "from 1 to 8, .* horizon 5 and stride 2 .* got 9"),
        ((0, 1.0, 1.0), "got 0"),
        ((1.5, 1.0, 1.0), r"whole number .* got 1\.5"),
    ],
)
def test_way_points_that_make_no_sense(numbers: tuple[float, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Route.of(numbers, MAZE_TASK, 5, 2)


def test_way_points_need_a_position() -> None:
    with pytest.raises(InputError, match="observations that hold a position"):
        Route.of((1, 0.0, 0.0), task(), 5, 1)


def test_several_way_points() -> None:
    route = Route.of((2, 1.0, 0.5, 4, 0.0, 1.0), MAZE_TASK, 5, 1)
    assert route.ahead(1) == {1: (1.0, 0.5), 3: (0.0, 1.0)}
    pinning = route.pinning(1)
    assert pinning is not None
    pins = pinning(torch.zeros(2, 8))
    assert pins.which.sum() == 2 * 2 * 4, "environments, way-points, columns of the position"
    assert pins.which[:, 3, [0, 1, 4, 5]].all()
    assert pins.values[0, 3, [0, 1, 4, 5]].tolist() == [0.0, 1.0, 0.0, 1.0]


def test_how_far_the_episode_was_from_way_points() -> None:
    route = Route.of((1, 3.0, 4.0, 2, 0.0, 0.0, 4, 0.0, 0.0), MAZE_TASK, 5, 1)
    obs = np.zeros((3, 8), np.float32)
    obs[2, 1] = 0.5
    assert route.distances(obs) == [5.0, 0.5, None]
