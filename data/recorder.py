"""Plays episodes in one environment and keeps every transition.

Dimension letters: T steps of one episode, N rows, O observation, A action.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from offdiff.core.errors import InputError
from offdiff.core.protocols import Policy
from offdiff.core.seeding import derive_seed
from offdiff.core.types import Spec
from offdiff.data.episodes import Episodes, FloatArray

if TYPE_CHECKING:
    import gymnasium

State = dict[str, list[float]]
"""What the next episode depends on besides its number; survives JSON exactly."""


class Actor(Protocol):
    """Who acts while episodes are recorded."""

    def begin(self, seed: int, /) -> None:
        """A new episode; all its randomness comes from `seed`."""
        ...

    def act(self, obs: FloatArray, /) -> NDArray[np.floating[Any]]:
        """(O,) in the environment's units -> (A,) in [-1, 1]."""
        ...


class EpisodeSource(Protocol):
    """Episodes 0, 1, 2, ..., each the same whenever it is played after the one before."""

    def play(self, index: int, limit: int, /) -> Episodes:
        """Episode number `index`, truncated after `limit` steps if it is still going on."""
        ...

    def state(self) -> State:
        """What episode `index + 1` needs to know after episode `index`."""
        ...

    def restore(self, state: State, /) -> None:
        """Makes ready to play on after `state`."""
        ...


class UniformActor:
    """D4RL's random policy: every number of an action uniform in [-1, 1]."""

    def __init__(self, action_dim: int) -> None:
        self._action_dim = action_dim

    def begin(self, seed: int, /) -> None:
        """Starts the episode's own stream of random numbers."""
        self._random = np.random.default_rng(seed)

    def act(self, obs: FloatArray, /) -> NDArray[np.floating[Any]]:
        """(O,) -> (A,), whatever is observed."""
        return self._random.uniform(-1, 1, self._action_dim)


class PolicyActor:
    """A `Policy` as an actor: a batch of one, on the CPU."""

    def __init__(self, policy: Policy, reseed: Callable[[int], None] | None = None) -> None:
        """reseed: called with every episode's seed; needed if the policy draws random numbers."""
        self._policy = policy
        self._reseed = reseed

    def begin(self, seed: int, /) -> None:
        """Tells the policy of the new episode."""
        if self._reseed is not None:
            self._reseed(seed)
        self._policy.reset(torch.ones(1, dtype=torch.bool))

    def act(self, obs: FloatArray, /) -> NDArray[np.floating[Any]]:
        """(O,) -> (A,)."""
        action: FloatArray = self._policy.act(torch.from_numpy(obs[None])).numpy()[0]
        return action


class ActorSource:
    """Episodes of an actor in a Gymnasium environment, each from a reset of its own.

    Episode k depends on the seed and k alone: its reset and its actor are seeded from both.
    """

    def __init__(self, env: "gymnasium.Env[Any, Any]", actor: Actor, seed: int) -> None:
        """env: actions in a bounded Box. Raises InputError for other actions."""
        self._env = env
        self._actor = actor
        self._seed = seed
        self._box = unit_box(env)

    def play(self, index: int, limit: int, /) -> Episodes:
        """Resets, then acts until the task ends, time runs out, or `limit` steps are done."""
        # Some simulators refuse seeds of more than 31 bits.
        obs, _ = self._env.reset(seed=derive_seed(self._seed, f"reset {index}") % 2**31)
        self._actor.begin(derive_seed(self._seed, f"actor {index}"))
        low, half = self._box
        flat = [flatten(obs)]
        actions: list[FloatArray] = []
        rewards: list[float] = []
        ended = terminated = False
        while not ended and len(rewards) < limit:
            action = np.clip(self._actor.act(flat[-1]), -1, 1).astype(np.float32)
            scaled = (low + (action + 1) * half).reshape(self._env.action_space.shape or ())
            obs, reward, terminated, truncated, _ = self._env.step(scaled)
            ended = terminated or truncated
            flat.append(flatten(obs))
            actions.append(action)
            rewards.append(float(reward))
        return one_episode(flat, actions, rewards, terminal=terminated)

    def state(self) -> State:
        """Nothing: every episode begins with a seeded reset."""
        return {}

    def restore(self, state: State, /) -> None:
        """Nothing to restore."""


def one_episode(
    obs: Sequence[FloatArray],
    action: Sequence[FloatArray],
    reward: Sequence[float],
    *,
    terminal: bool,
) -> Episodes:
    """T+1 observations and T actions and rewards as an episode that ends at step T.

    terminal: the task ended; otherwise the episode is truncated. Its last successor is known.
    """
    rows = np.stack(obs)
    last = np.zeros(len(reward), np.bool_)
    last[-1] = True
    return Episodes(
        obs=rows[:-1],
        action=np.stack(action),
        reward=np.array(reward, np.float32),
        next_obs=rows[1:],
        terminal=last & terminal,
        truncated=last & (not terminal),
        successor_known=np.ones(len(reward), np.bool_),
    )


def join(parts: Sequence[Episodes]) -> Episodes:
    """The episodes of all parts, in their order."""
    columns = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(Episodes)
    }
    return Episodes(**columns)


def flatten(obs: Any) -> FloatArray:
    """An observation as one vector; a dict's parts in the order of their sorted names."""
    if isinstance(obs, Mapping):
        return np.concatenate([flatten(obs[name]) for name in sorted(obs)])
    return np.asarray(obs, np.float32).reshape(-1)


def env_spec(env: "gymnasium.Env[Any, Any]") -> Spec:
    """Sizes of flattened observations and actions."""
    from gymnasium.spaces import flatdim

    return Spec(flatdim(env.observation_space), flatdim(env.action_space))


def unit_box(env: "gymnasium.Env[Any, Any]") -> tuple[FloatArray, FloatArray]:
    """Lower bounds and half widths of the actions, (A,) each; InputError unless a bounded Box."""
    from gymnasium.spaces import Box

    space = env.action_space
    if not isinstance(space, Box) or not space.is_bounded():
        name = env.spec.id if env.spec else str(env)
        raise InputError(f"{name} has actions {space}; only a bounded Box can be recorded")
    low, high = (np.asarray(b, np.float32).reshape(-1) for b in (space.low, space.high))
    half: FloatArray = (high - low) / np.float32(2)
    return low, half
