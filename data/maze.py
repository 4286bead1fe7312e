"""D4RL's Maze2D recipe on Gymnasium-Robotics' PointMaze: a waypoint controller with noise.

The ball follows a shortest path of cells with a PD controller, wherever the goal is drawn; having
reached it, it goes on from there to the next one. Gains and noise are those of D4RL's generator
(Fu et al. 2020, Apache-2.0), read there, written anew.
"""

import contextlib
import io
import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from offdiff.core.errors import InputError, MissingExtraError, unknown_name
from offdiff.core.seeding import derive_seed
from offdiff.data.episodes import Episodes, FloatArray
from offdiff.data.observations import ObsMode
from offdiff.data.recorder import State, one_episode

Maze = Literal["umaze", "medium", "large"]
ENV_NAMES: dict[str, str] = {"umaze": "UMaze", "medium": "Medium", "large": "Large"}

POSITION_GAIN = 10.0
VELOCITY_GAIN = -1.0
WAYPOINT_RADIUS = 0.1
"""A cell's centre counts as passed from this near; a cell is 1 wide."""
NOISE = 0.5
"""Standard deviation of the noise on every number of an action, before clipping to [-1, 1]."""

Cell = tuple[int, int]
"""Row and column of the maze's map."""


def env_id_of(maze: str, *, dense: bool) -> str:
    """The environment of a maze; InputError for an unknown one."""
    if maze not in ENV_NAMES:
        raise unknown_name("maze", maze, ENV_NAMES)
    return f"PointMaze_{ENV_NAMES[maze]}{'Dense' if dense else ''}-v3"


def obs_layout(obs_mode: ObsMode) -> str:
    """Order of the numbers in an observation, as a dataset's attribute says it; "" if flat."""
    if obs_mode == "observation_only":
        return ""
    return "achieved_goal(2)+desired_goal(2)+observation(4)"


def next_cells(maze_map: Sequence[Sequence[object]], goal: Cell) -> dict[Cell, Cell]:
    """For every cell from which `goal` can be reached, the next one on a shortest path.

    maze_map: 1 is a wall, anything else is free; steps go up, down, left and right.
    The goal's next cell is itself. Ties go to the neighbour found first, always the same.
    """
    following: dict[Cell, Cell] = {goal: goal}
    frontier = deque([goal])
    while frontier:
        row, column = cell = frontier.popleft()
        for near in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            inside = 0 <= near[0] < len(maze_map) and 0 <= near[1] < len(maze_map[0])
            if inside and maze_map[near[0]][near[1]] != 1 and near not in following:
                following[near] = cell
                frontier.append(near)
    return following


class MazeSource:
    """Episodes of the controller: each from where the last one ended to a newly drawn goal.

    Rows hold position (2), velocity (2) and, with obs_mode "concat_goal", before them the position
    once more and the goal: the layout of a flattened PointMaze observation. An episode ends within
    0.45 of the goal, as a truncation: the task goes on. Closes its environment when used as a
    context.
    """

    def __init__(self, maze: str, *, dense: bool, seed: int, obs_mode: ObsMode) -> None:
        """dense: reward exp(-distance) instead of 1 at the goal and 0 elsewhere."""
        self._env: Any = _make(env_id_of(maze, dense=dense))
        self._maze = self._env.maze
        self._physics = self._env.point_env
        self._seed = seed
        self._with_goal = obs_mode == "concat_goal"
        self._paths: dict[Cell, dict[Cell, Cell]] = {}
        self._state: State | None = None

    def play(self, index: int, limit: int, /) -> Episodes:
        """On from the current state until the goal is reached or `limit` steps are done."""
        if self._state is None:
            self._env.reset(seed=derive_seed(self._seed, "start") % 2**31)
            self._keep_state()
        obs = self._begin(index)
        random = np.random.default_rng(derive_seed(self._seed, f"noise {index}"))
        controller = _Controller(self._maze, self._path(self._env.goal), self._env.goal)
        rows = [self._row(obs)]
        actions: list[FloatArray] = []
        rewards: list[float] = []
        reached = False
        while not reached and len(rewards) < limit:
            push = controller.push(*obs["observation"].tolist())
            action = np.clip(push + NOISE * random.standard_normal(2), -1, 1).astype(np.float32)
            obs, reward, _, _, info = self._env.step(action)
            reached = info["success"]
            rows.append(self._row(obs))
            actions.append(action)
            rewards.append(float(reward))
        self._keep_state()
        return one_episode(rows, actions, rewards, terminal=False)

    def state(self) -> State:
        """Position, velocity and goal, in double precision."""
        assert self._state is not None, "asked for before the first episode"
        return self._state

    def restore(self, state: State, /) -> None:
        """The next episode goes on from `state`."""
        self._env.reset(seed=0)
        self._state = state

    def close(self) -> None:
        """Frees the simulator."""
        self._env.close()

    def __enter__(self) -> "MazeSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keep_state(self) -> None:
        data = self._env.data
        self._state = {
            "position": data.qpos.tolist(),
            "velocity": data.qvel.tolist(),
            "goal": self._env.goal.tolist(),
        }

    def _begin(self, index: int) -> dict[str, Any]:
        """Puts the simulator into the kept state and nothing else; gives the observation."""
        import mujoco

        assert self._state is not None, "play() keeps one first"
        position, velocity = (np.array(self._state[key]) for key in ("position", "velocity"))
        # The solver's warm start is a memory, too: a continued recording could not know it.
        mujoco.mj_resetData(self._env.model, self._env.data)
        self._physics.set_state(position, velocity)
        self._env.goal = np.array(self._state["goal"])
        # Draws the goal that follows this episode.
        self._env.np_random = np.random.default_rng(derive_seed(self._seed, f"goal {index}"))
        return {
            "observation": np.concatenate((position, velocity)),
            "desired_goal": self._env.goal,
        }

    def _row(self, obs: dict[str, Any]) -> FloatArray:
        own = obs["observation"]
        parts = (own[:2], obs["desired_goal"], own) if self._with_goal else (own,)
        return np.concatenate(parts, dtype=np.float32, casting="same_kind")

    def _path(self, goal: Any) -> dict[Cell, Cell]:
        cell = _cell(self._maze, goal)
        if cell not in self._paths:
            self._paths[cell] = next_cells(self._maze.maze_map, cell)
        return self._paths[cell]


class _Controller:
    """Pulls towards the next cell's centre, in the goal's cell towards the goal itself."""

    def __init__(self, maze: Any, path: dict[Cell, Cell], goal: Any) -> None:
        self._maze = maze
        self._path = path
        self._goal = (float(goal[0]), float(goal[1]))
        self._target: tuple[float, float] | None = None

    def push(self, x: float, y: float, speed_x: float, speed_y: float) -> tuple[float, float]:
        """Force before noise and clipping."""
        target = self._target
        if target is None:
            target = self._aim(self._path[_cell(self._maze, (x, y))])
        elif target != self._goal and math.dist(target, (x, y)) <= WAYPOINT_RADIUS:
            target = self._aim(self._path[self._cell])
        return (
            POSITION_GAIN * (target[0] - x) + VELOCITY_GAIN * speed_x,
            POSITION_GAIN * (target[1] - y) + VELOCITY_GAIN * speed_y,
        )

    def _aim(self, cell: Cell) -> tuple[float, float]:
        x, y = self._maze.cell_rowcol_to_xy(np.array(cell)).tolist()
        self._cell = cell
        self._target = self._goal if self._path[cell] == cell else (x, y)
        return self._target


def _cell(maze: Any, position: Any) -> Cell:
    row, column = maze.cell_xy_to_rowcol(position).tolist()
    return row, column


def _make(env_id: str) -> Any:
    """The environment without wrappers: it never ends by itself."""
    import gymnasium

    try:
        # On import it prints a notice about environments that are not used here.
        with contextlib.redirect_stderr(io.StringIO()):
            import gymnasium_robotics
    except ImportError as error:
        raise MissingExtraError(f"environment {env_id}", "robotics") from error
    gymnasium.register_envs(gymnasium_robotics)
    try:
        env = gymnasium.make(
            env_id, continuing_task=True, reset_target=True, disable_env_checker=True
        )
    except ImportError as problem:
        raise InputError(f"{env_id} needs a package that is absent: {problem}") from problem
    return env.unwrapped
