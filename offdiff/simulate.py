"""The real simulator, put into the state of an observation: the judge of synthetic transitions.

Dimension letters: N transitions, O observation, A action.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offdiff.core.errors import InputError
from offdiff.core.types import Batch
from offdiff.environments import make_simulator

Float64Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

RESTORABLE = r"(Hopper|HalfCheetah|Walker2d)-v[45]|PointMaze_\w+-v3"
CLIPPED_VELOCITY = 9.99
"""Hopper's and Walker2d's observations clip velocities at 10: beyond, the state is not known."""


class Successors(NamedTuple):
    """What the simulator makes of some transitions. Rows that are not valid hold zeros."""

    next_obs: Float64Array
    """(N, O)"""
    reward: Float64Array
    """(N,)"""
    terminated: BoolArray
    """(N,)"""
    valid: BoolArray
    """(N,), False where the observation does not tell the state, or tells an impossible one"""


@dataclass(frozen=True, kw_only=True)
class DynamicsError:
    """One-step squared error against the simulator, in variances of the data."""

    mean: float
    """Of the successor: mean over the observation's numbers, then over transitions."""
    median: float
    p95: float
    by_row: list[float | None]
    """(L,) mean at every position in the window; None where no transition could be judged"""
    reward: float
    """Of the reward; the mean."""
    reward_median: float
    reward_p95: float
    reward_by_row: list[float | None]
    wrong_ends: float
    """Share of transitions that the simulator ends and the window does not, or the reverse."""
    judged: float
    """Share of transitions whose state the observation tells: the others are left out above."""


def can_restore(env_id: str | None) -> bool:
    """True if an observation tells the simulator's state, but for the distance travelled."""
    return env_id is not None and re.fullmatch(RESTORABLE, env_id) is not None


class Restorer:
    """Steps a simulator from given observations; a context.

    Some 3,000 transitions per second on one slow core, half of the time inside MuJoCo.
    """

    def __init__(self, env_id: str) -> None:
        """Raises InputError for an environment whose state is not restored from observations."""
        if not can_restore(env_id):
            raise InputError(
                f"the state of {env_id} cannot be restored from its observations; "
                "Hopper, HalfCheetah and Walker2d can (-v4, -v5), and PointMaze (-v3)"
            )
        self._simulator = make_simulator(env_id)
        # Without the wrappers, which count steps and refuse some.
        self._env: Any = self._simulator.env.unwrapped
        self._simulator.reset(0)
        self._clips = env_id.startswith(("Hopper", "Walker2d"))
        self._layout = _in_maze if env_id.startswith("PointMaze") else _as_body
        self._physics: Any = getattr(self._env, "point_env", self._env)

    def successors(
        self, obs: NDArray[np.floating[Any]], action: NDArray[np.floating[Any]]
    ) -> Successors:
        """Steps once from every observation (N, O) with its action (N, A), clipped to [-1, 1].

        A row's outcome depends on that row alone. Raises InputError for widths that are not the
        environment's.
        """
        spec = self._simulator.spec
        if obs.shape[1:] != (spec.obs_dim,) or action.shape != (len(obs), spec.action_dim):
            raise InputError(
                f"{self._env.spec.id} has {spec.obs_dim} observation numbers and "
                f"{spec.action_dim} action numbers, the transitions have shapes {obs.shape} and "
                f"{action.shape}"
            )
        valid = np.isfinite(obs).all(1) & np.isfinite(action).all(1)
        if self._clips:
            valid &= (np.abs(obs[:, self._physics.model.nq - 1 :]) < CLIPPED_VELOCITY).all(1)
        next_obs, reward = np.zeros(obs.shape), np.zeros(len(obs))
        terminated = np.zeros(len(obs), np.bool_)
        box = self._env.action_space
        scaled = box.low + (np.clip(action, -1, 1) + 1) / 2 * (box.high - box.low)
        with _silent():
            for i in np.flatnonzero(valid):
                outcome = self._step(obs[i], scaled[i])
                valid[i] = outcome is not None
                if outcome is not None:
                    next_obs[i], reward[i], terminated[i] = outcome
        return Successors(next_obs, reward, terminated, valid)

    def _step(
        self, obs: NDArray[np.floating[Any]], action: NDArray[np.floating[Any]]
    ) -> tuple[Float64Array, float, bool] | None:
        """Next observation, reward, task ended; None where the simulation blows up."""
        import mujoco

        data = self._physics.data
        # Also forgets the contact forces of the row before, from which MuJoCo's solver would start,
        # and its warnings. Not `set_state`, which computes forces that the step computes again.
        mujoco.mj_resetData(self._physics.model, data)
        data.qpos[:], data.qvel[:], goal = self._layout(obs, self._physics.model.nq)
        if goal is not None:
            self._env.goal = goal
        next_obs, reward, terminated, _, _ = self._env.step(action)
        # MuJoCo warns, and goes on from its initial pose, after numbers that are too large.
        unstable = data.warning.number.any()
        if isinstance(next_obs, dict):
            next_obs = np.concatenate([next_obs[name] for name in sorted(next_obs)])
        return None if unstable else (next_obs, float(reward), bool(terminated))

    def __enter__(self) -> "Restorer":
        return self

    def __exit__(self, *_: object) -> None:
        self._simulator.close()


def _as_body(
    obs: NDArray[np.floating[Any]], positions: int
) -> tuple[Float64Array, Float64Array, None]:
    """qpos, qvel: observations leave out the first coordinate, on which nothing depends."""
    state = np.concatenate(([0.0], obs))
    return state[:positions], state[positions:], None


def _in_maze(
    obs: NDArray[np.floating[Any]], positions: int
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """qpos, qvel, goal of (achieved goal, desired goal, qpos, qvel) as four parts."""
    _, goal, position, velocity = obs.astype(np.float64).reshape(4, positions)
    return position, velocity, goal


def dynamics_error(
    env_id: str,
    batch: Batch,
    row: NDArray[np.int64],
    rows: int,
    *,
    obs_std: Float64Array,
    reward_std: float,
) -> DynamicsError | None:
    """Judges finite transitions, fields (N, ...) on the CPU; None where none can be judged.

    row: (N,) position of every transition in its window, below `rows`. obs_std: (O,) of the data.
    """
    with Restorer(env_id) as restorer:
        found = restorer.successors(batch.obs.numpy(), batch.action.numpy())
    valid, row = found.valid, row[found.valid]
    if not valid.any():
        return None
    state = (((batch.next_obs.numpy() - found.next_obs)[valid] / obs_std) ** 2).mean(1)
    reward = ((batch.reward.numpy() - found.reward)[valid] / reward_std) ** 2
    wrong_ends = batch.terminal.numpy().astype(np.bool_) != found.terminated
    return DynamicsError(
        mean=float(state.mean()),
        median=float(np.median(state)),
        p95=float(np.quantile(state, 0.95)),
        by_row=_by_row(state, row, rows),
        reward=float(reward.mean()),
        reward_median=float(np.median(reward)),
        reward_p95=float(np.quantile(reward, 0.95)),
        reward_by_row=_by_row(reward, row, rows),
        wrong_ends=float(wrong_ends[valid].mean()),
        judged=float(valid.mean()),
    )


def _by_row(error: Float64Array, row: NDArray[np.int64], rows: int) -> list[float | None]:
    return [float(error[row == t].mean()) if (row == t).any() else None for t in range(rows)]


@contextmanager
def _silent() -> Iterator[None]:
    """Keeps MuJoCo from printing, and from writing MUJOCO_LOG.TXT into the working directory."""
    import mujoco

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda _: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
