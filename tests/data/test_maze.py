"""Maze2D: shortest paths, episodes that end at the goal, exact continuation."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from offdiff.cli import main
from offdiff.core.errors import InputError
from offdiff.data.episodes import Episodes
from offdiff.data.generate import MazeConfig, generate
from offdiff.data.load import load_dataset
from offdiff.data.maze import MazeSource, next_cells
from offdiff.data.recorder import join
from offdiff.data.recording import record

pytest.importorskip("gymnasium_robotics", reason="needs the robotics extra")

GOAL_RADIUS = 0.45
MAP = [
    [1, 1, 1, 1, 1],
    [1, 0, 0, 0, 1],
    [1, 0, 1, 0, 1],
    [1, 0, 1, 1, 1],
    [1, 1, 1, 0, 1],
]


def path_length(following: dict[tuple[int, int], tuple[int, int]], start: tuple[int, int]) -> int:
    steps, cell = 0, start
    while following[cell] != cell:
        step = abs(following[cell][0] - cell[0]) + abs(following[cell][1] - cell[1])
        assert step == 1
        assert MAP[following[cell][0]][following[cell][1]] == 0
        cell, steps = following[cell], steps + 1
    return steps


def test_paths_are_shortest_and_inside_the_maze() -> None:
    following = next_cells(MAP, (3, 1))
    assert path_length(following, (3, 1)) == 0
    assert path_length(following, (1, 1)) == 2
    assert path_length(following, (2, 3)) == 5
    assert (4, 3) not in following, "an island is not reached"
    assert (2, 2) not in following, "a wall is no cell of a path"


def test_of_two_ways_round_a_block_the_shorter_is_taken() -> None:
    ring = [[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    following = next_cells(ring, (1, 0))
    assert following[(0, 2)] == (0, 1)
    assert following[(2, 2)] == (2, 1)


@pytest.fixture(scope="module")
def source() -> Iterator[MazeSource]:
    with MazeSource("umaze", dense=False, seed=0, obs_mode="concat_goal") as source:
        yield source


@pytest.fixture(scope="module")
def episodes(source: MazeSource) -> Episodes:
    return join([source.play(k, 1000) for k in range(12)])


def test_an_episode_ends_where_its_goal_is_first_reached(episodes: Episodes) -> None:
    distance = np.linalg.norm(episodes.next_obs[:, :2] - episodes.next_obs[:, 2:4], axis=1)
    np.testing.assert_array_equal(distance <= GOAL_RADIUS, episodes.truncated)
    np.testing.assert_array_equal(episodes.reward, episodes.truncated.astype(np.float32))
    assert not episodes.terminal.any()
    assert episodes.n_episodes == 12


def test_the_goal_stays_for_an_episode_and_the_ball_goes_on_from_it(episodes: Episodes) -> None:
    inside = ~episodes.truncated
    np.testing.assert_array_equal(episodes.next_obs[inside], episodes.obs[1:][inside[:-1]])
    np.testing.assert_array_equal(episodes.next_obs[:, 2:4], episodes.obs[:, 2:4])
    starts, ends = episodes.first[1:], episodes.last[:-1]
    np.testing.assert_array_equal(episodes.obs[starts, 4:], episodes.next_obs[ends, 4:])
    assert (episodes.obs[starts, 2:4] != episodes.obs[ends, 2:4]).any(axis=1).all()
    np.testing.assert_array_equal(episodes.obs[:, :2], episodes.obs[:, 4:6])


def test_goals_and_positions_are_free_cells(source: MazeSource, episodes: Episodes) -> None:
    maze = source._env.maze
    for place in np.concatenate((episodes.obs[:, :2], episodes.obs[episodes.first, 2:4])):
        row, column = maze.cell_xy_to_rowcol(place)
        assert maze.maze_map[row][column] != 1


def test_a_killed_generation_continues_to_the_identical_rows(tmp_path: Path) -> None:
    def play(steps: int, folder: str) -> Episodes:
        (tmp_path / folder).mkdir(exist_ok=True)
        with MazeSource("medium", dense=True, seed=4, obs_mode="observation_only") as source:
            return record(
                source, steps=steps, folder=tmp_path / folder, show=False, shard_seconds=0
            )

    whole = play(900, "whole")
    assert whole.n_episodes > 3
    assert whole.spec.obs_dim == 4
    play(900, "killed")
    for shard in sorted((tmp_path / "killed").glob("*.npz"))[2:]:
        shard.unlink()
    again = play(900, "killed")
    for column in fields(Episodes):
        np.testing.assert_array_equal(getattr(again, column.name), getattr(whole, column.name))


def test_dense_rewards_fall_off_with_the_distance() -> None:
    with MazeSource("umaze", dense=True, seed=1, obs_mode="concat_goal") as source:
        episode = source.play(0, 50)
    distance = np.linalg.norm(episode.next_obs[:, :2] - episode.next_obs[:, 2:4], axis=1)
    np.testing.assert_allclose(episode.reward, np.exp(-distance), rtol=1e-5)


def test_a_generated_file_is_a_dataset(tmp_path: Path) -> None:
    path = tmp_path / "umaze.hdf5"
    assert main(["data", "generate", "--maze", "umaze", "--steps", "400", "--to", str(path)]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["umaze.hdf5"]
    found = load_dataset(str(path))
    assert len(found.episodes) == 400
    assert found.info.env_id == "PointMaze_UMaze-v3"
    assert found.info.family == "maze2d"
    assert found.info.obs_layout == "achieved_goal(2)+desired_goal(2)+observation(4)"
    again = MazeConfig(maze="umaze", steps=400, to=str(path), overwrite=True)
    generate(again, show=False)
    np.testing.assert_array_equal(load_dataset(str(path)).episodes.obs, found.episodes.obs)


def test_the_observation_is_laid_out_as_in_evaluation(source: MazeSource) -> None:
    from offdiff.environments import make_simulator

    with make_simulator("PointMaze_UMaze-v3") as simulator:
        obs = simulator.reset(0)
        flat = simulator.env.unwrapped
        row = source._row(
            {"observation": np.append(obs[:2], [0, 0]), "desired_goal": flat.goal}  # type: ignore[attr-defined]
        )
    np.testing.assert_allclose(row, obs, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 0}, "--steps must lie"),
        ({"seed": -1}, "--seed"),
        ({"to": "out.txt"}, "neither a file ending in .hdf5 nor a Minari id"),
        ({"maze": "umze"}, "did you mean 'umaze'"),
    ],
)
def test_bad_options_are_told_and_nothing_is_written(
    tmp_path: Path, options: dict[str, object], says: str
) -> None:
    given: dict[str, object] = {"maze": "umaze", "to": str(tmp_path / "new" / "x.hdf5"), **options}
    with pytest.raises(InputError, match=says):
        generate(MazeConfig(**given), show=False)  # type: ignore[arg-type]  # wrong on purpose
    assert list(tmp_path.iterdir()) == []
