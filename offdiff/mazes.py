"""Mazes of Gymnasium-Robotics as a grid: where walls are, and goals of one's own choice."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offdiff.core.errors import InputError

if TYPE_CHECKING:
    import gymnasium


@dataclass(frozen=True)
class Maze:
    """Square cells around the origin; rows go down, x goes right, y goes up."""

    walls: NDArray[np.bool_]
    """(rows, columns)"""
    size: float
    """Side of a cell."""

    @property
    def half_extent(self) -> tuple[float, float]:
        """Largest x and y, outer walls included; the smallest are their negatives."""
        rows, columns = self.walls.shape
        return columns / 2 * self.size, rows / 2 * self.size

    def cell(self, x: float, y: float) -> tuple[int, int]:
        """Row and column of a position, which may lie outside."""
        right, top = self.half_extent
        return math.floor((top - y) / self.size), math.floor((x + right) / self.size)

    def centre(self, row: int, column: int) -> tuple[float, float]:
        """Position of a cell's middle."""
        right, top = self.half_extent
        return (column + 0.5) * self.size - right, top - (row + 0.5) * self.size

    def free_cell(self, position: Sequence[float], what: str) -> tuple[int, int]:
        """The free cell of a position; `what` it is, is named in the error.

        Raises InputError, which offers the nearest free cell, for walls and places outside.
        """
        if len(position) != 2 or not all(map(math.isfinite, position)):
            raise InputError(f"{what} takes 2 finite numbers, x and y, got {_text(position)}")
        x, y = position
        right, top = self.half_extent
        inside = abs(x) < right and abs(y) < top
        if inside and not self.walls[self.cell(x, y)]:
            return self.cell(x, y)
        where = "in a wall" if inside else "outside the maze"
        free = [self.centre(row, column) for row, column in np.argwhere(~self.walls).tolist()]
        nearest = min(free, key=lambda centre: math.dist(centre, (x, y)))
        raise InputError(
            f"{what} {_text(position)} lies {where}; the maze goes from {-right:g} to {right:g} in "
            f"x and from {-top:g} to {top:g} in y, outer walls included, and the nearest free cell "
            f"is the square of side {self.size:g} around {_text(nearest)}"
        )


def maze_of(env: "gymnasium.Env[Any, Any]") -> Maze | None:
    """The maze of a PointMaze or AntMaze; None for other environments."""
    maze = getattr(env.unwrapped, "maze", None)
    if maze is None:
        return None
    walls = np.array([[cell == 1 for cell in row] for row in maze.maze_map])
    return Maze(walls, float(maze.maze_size_scaling))


def reset_towards(
    env: "gymnasium.Env[Any, Any]", goal: Sequence[float], *, seed: int
) -> dict[str, Any]:
    """Begins an episode that has exactly this goal; gives the observation.

    Start and goal lie in different cells. Raises InputError for a goal that cannot be set.
    """
    maze = maze_of(env)
    if maze is None:
        name = env.spec.id if env.spec else str(env)
        raise InputError(
            f"the goal of {name} cannot be chosen; only PointMaze and AntMaze environments take one"
        )
    cell = maze.free_cell(goal, "goal")
    obs, _ = env.reset(seed=seed, options={"goal_cell": np.array(cell)})
    # Told a cell, the environment draws a place near its centre.
    base: Any = env.unwrapped
    base.goal = np.array(goal, np.float64)
    base.update_target_site_pos()
    return {**obs, "desired_goal": base.goal.copy()}


def _text(position: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in position) + ")"
