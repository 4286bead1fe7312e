"""Simulators as a policy sees them: flat float32 observations, actions in [-1, 1], D4RL's rules.

Dimension letters: O observation, A action.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offdiff.core.errors import InputError, MissingExtraError, unknown_name
from offdiff.core.types import Spec
from offdiff.mazes import Maze, maze_of, reset_towards

if TYPE_CHECKING:
    import gymnasium

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Adaptation:
    """What brings a family of maintained environments nearer to D4RL's, and how near that is."""

    ids: str
    """Regular expression that an environment id matches as a whole."""
    fidelity: str
    """"exact", "close" or "approximate" to D4RL's task, and why."""
    max_episode_steps: int | None = None
    """Horizon in D4RL where the environment's own differs."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Arguments of the environment."""


ADAPTATIONS = (
    Adaptation("(Hopper|HalfCheetah|Walker2d|Ant)-v4", "close: D4RL's v2 tasks on newer MuJoCo"),
    Adaptation(
        "(Hopper|HalfCheetah|Walker2d|Ant)-v5",
        "approximate: v5 changed rewards, feet friction (Walker2d) and observations (Ant)",
    ),
    Adaptation(
        "PointMaze_.*",
        "approximate: other coordinates, goal drawn at random and observed, radius 0.45 not 0.5",
        options={"continuing_task": True, "reset_target": False},
    ),
    Adaptation(
        "AntMaze_.*",
        "approximate: ends at the goal as in D4RL; goal drawn at random, radius 0.45 not 0.5",
        options={"continuing_task": False},
    ),
    Adaptation(
        "AdroitHandPen-v1",
        "approximate: 100 steps as in D4RL, but a dropped pen does not end the episode",
        max_episode_steps=100,
    ),
    Adaptation(
        "AdroitHand(Door|Hammer|Relocate)-v1",
        "approximate: gymnasium-robotics >= 1.2.1 changed the reward's reach term",
    ),
    Adaptation(
        "FrankaKitchen-v1", "approximate: all tasks are rewarded, D4RL rewards four chosen ones"
    ),
)
UNADAPTED = Adaptation(".*", "exact: the environment as it is, D4RL has none of this name")

ANT_CONTACT_FORCES = 84
"""Numbers that D4RL's Ant observation (111) holds beyond Ant-v4's (27), all zero in its data."""

ROBOTICS = r"(PointMaze_|AntMaze_|AdroitHand|FrankaKitchen|Fetch|HandManipulate|HandReach).*"


@dataclass(frozen=True)
class Step:
    """What one action brought."""

    obs: FloatArray
    """(O,)"""
    reward: float
    ended: bool
    """The task ended or time ran out."""
    success: bool | None
    """The environment's own report, None where it makes none."""


class Simulator:
    """One environment; closes it when used as a context."""

    def __init__(
        self,
        env: "gymnasium.Env[Any, Any]",
        fidelity: str,
        *,
        padding: int = 0,
        hide_goal: bool = False,
    ) -> None:
        """padding: zeros appended to every observation. hide_goal: keep "observation" alone."""
        from gymnasium.spaces import Box, flatdim

        name = env.spec.id if env.spec else str(env)
        if not isinstance(env.action_space, Box) or not np.all(np.isfinite(env.action_space.high)):
            raise InputError(
                f"{name} has actions {env.action_space}; only a bounded Box is supported"
            )
        limit = env.spec.max_episode_steps if env.spec else None
        if limit is None:
            raise InputError(f"{name} has no step limit; give max_episode_steps")
        self.env = env
        self.fidelity = fidelity
        self.max_episode_steps: int = limit
        self.maze: Maze | None = maze_of(env)
        width = _observation_width(env) if hide_goal else flatdim(env.observation_space)
        assert width is not None, "only a goal environment can hide its goal"
        self.spec = Spec(width + padding, int(np.prod(env.action_space.shape)))
        self._hide_goal = hide_goal
        self._padding = np.zeros(padding, np.float32)
        self._low = env.action_space.low
        self._high = env.action_space.high

    def reset(self, seed: int, goal: Sequence[float] = ()) -> FloatArray:
        """Begins an episode that depends on nothing but seed and goal; (O,).

        goal: where to get in a maze; () draws it. Raises InputError for one that cannot be set.
        """
        obs: Any
        if len(goal) > 0:
            obs = reset_towards(self.env, goal, seed=seed)
        else:
            obs, _ = self.env.reset(seed=seed)
        return self._flat(obs)

    def step(self, action: NDArray[np.floating[Any]]) -> Step:
        """action: (A,) in [-1, 1], clipped to it."""
        unit = np.clip(action, -1, 1)
        scaled = self._low + (unit + 1) / 2 * (self._high - self._low)
        obs, reward, terminated, truncated, info = self.env.step(
            scaled.astype(self._low.dtype).reshape(self._low.shape)
        )
        success = info.get("success", info.get("is_success"))
        return Step(
            self._flat(obs),
            float(reward),
            bool(terminated or truncated),
            None if success is None else bool(success),
        )

    def close(self) -> None:
        """Frees the simulator."""
        self.env.close()

    def __enter__(self) -> "Simulator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _flat(self, obs: Any) -> FloatArray:
        return np.concatenate(
            (flatten(obs["observation"] if self._hide_goal else obs), self._padding)
        )


def flatten(obs: Any) -> FloatArray:
    """A dict observation as one vector, in the order of `offdiff.data.observations`."""
    if isinstance(obs, Mapping):
        return np.concatenate([flatten(obs[key]) for key in sorted(obs)])
    return np.asarray(obs, dtype=np.float32).reshape(-1)


def make_simulator(
    env_id: str,
    *,
    max_episode_steps: int | None = None,
    spec: Spec | None = None,
    render: Mapping[str, object] | None = None,
) -> Simulator:
    """An environment under D4RL's rules as far as they can be restored (see ADAPTATIONS).

    max_episode_steps: horizon; None takes D4RL's, else the environment's own.
    spec: sizes that a policy was trained for. An Ant policy of 111 numbers gets its zeros, one
    that knows the "observation" of a goal environment alone does not see the goals.
    render: further arguments for an environment that will be filmed.
    Raises InputError for an unknown or unusable environment and for sizes that differ from `spec`.
    """
    adaptation = next((a for a in ADAPTATIONS if re.fullmatch(a.ids, env_id)), UNADAPTED)
    options: dict[str, Any] = {**adaptation.options, **(render or {})}
    horizon = max_episode_steps or adaptation.max_episode_steps
    if horizon is not None:
        options["max_episode_steps"] = horizon
    env = _make(env_id, options)
    plain = Simulator(env, adaptation.fidelity)
    if spec is None or spec == plain.spec:
        return plain
    if env_id.startswith("Ant-v") and plain.spec.obs_dim + ANT_CONTACT_FORCES == spec.obs_dim:
        return Simulator(env, adaptation.fidelity, padding=ANT_CONTACT_FORCES)
    if _observation_width(env) == spec.obs_dim and plain.spec.action_dim == spec.action_dim:
        return Simulator(env, f"{adaptation.fidelity}; goal hidden", hide_goal=True)
    plain.close()
    raise InputError(
        f"the policy takes {spec.obs_dim} observation numbers and gives {spec.action_dim} action "
        f"numbers, {env_id} has {plain.spec.obs_dim} and {plain.spec.action_dim}; "
        "evaluate it in the environment of its data"
    )


def _observation_width(env: "gymnasium.Env[Any, Any]") -> int | None:
    """Numbers of a goal environment's "observation" without its goals."""
    from gymnasium.spaces import Dict, flatdim

    space = env.observation_space
    if isinstance(space, Dict) and "observation" in space.spaces:
        return flatdim(space["observation"])
    return None


def _make(env_id: str, options: Mapping[str, Any]) -> "gymnasium.Env[Any, Any]":
    """gymnasium.make with its many refusals told in one sentence each."""
    import gymnasium
    from gymnasium import error

    old = re.fullmatch(r"(Hopper|HalfCheetah|Walker2d|Ant|Swimmer|Humanoid)-v[0-3]", env_id)
    if old:
        raise InputError(f"{env_id} needs the abandoned mujoco-py; use {old[1]}-v4, its successor")
    if re.fullmatch(ROBOTICS, env_id):
        _register_robotics(env_id)
    try:
        # -v4 environments warn that v5 exists; here v4 is chosen on purpose.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return gymnasium.make(env_id, disable_env_checker=True, **options)
    except error.UnregisteredEnv as problem:
        raise unknown_name("environment", env_id, gymnasium.registry) from problem
    except (ImportError, error.DependencyNotInstalled) as problem:
        raise InputError(f"{env_id} needs a package that is absent: {problem}") from problem
    except AssertionError as problem:
        if not env_id.startswith("FrankaKitchen"):
            raise
        import mujoco

        raise InputError(
            f"{env_id} needs mujoco<3.12, found {mujoco.__version__}; pip install 'mujoco<3.12'"
        ) from problem


def _register_robotics(env_id: str) -> None:
    import gymnasium

    try:
        # Its notice on import, about changed rewards, is part of `Adaptation.fidelity`.
        with contextlib.redirect_stderr(io.StringIO()):
            import gymnasium_robotics
    except ImportError as error:
        raise MissingExtraError(f"environment {env_id}", "robotics") from error
    gymnasium.register_envs(gymnasium_robotics)
