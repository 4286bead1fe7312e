"""stable-baselines3 both ways: replay buffers, and its policies as ours.

Our own policies go the other way by `DeployedPolicy.predict`.
Dimension letters: N rows, B batch, O observation, A action, R slots of a ring, M environments.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offdiff.core.errors import InputError, MissingExtraError
from offdiff.data.episodes import Episodes
from offdiff.data.recorder import join

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.buffers import ReplayBuffer
    from stable_baselines3.common.policies import BasePolicy


class HasSpaces(Protocol):
    """An environment, a vector of them, or an SB3 algorithm."""

    @property
    def observation_space(self) -> Any:
        """A Gymnasium space."""

    @property
    def action_space(self) -> Any:
        """A Gymnasium space."""


def to_sb3_buffer(
    episodes: Episodes,
    spaces: HasSpaces,
    *,
    capacity: int | None = None,
    device: torch.device | str = "auto",
) -> "ReplayBuffer":
    """A stable-baselines3 replay buffer that holds the episodes, of one environment.

    episodes: actions in [-1, 1], which is how SB3 stores them. Truncated rows are marked as
    timeouts, so that SB3 bootstraps there; those without a known successor are left out.
    spaces: gives sizes and dtypes; observations must be a Box (wrap others in FlattenObservation).
    capacity: transitions the ring can hold; None for just these.
    Raises InputError if the spaces do not fit or the capacity is too small.
    """
    buffers = _import_buffers()
    _require_fitting(episodes, spaces)
    rows = np.flatnonzero(episodes.successor_known | episodes.terminal)
    capacity = len(rows) if capacity is None else capacity
    if not 0 < len(rows) <= capacity:
        raise InputError(f"a buffer of {capacity} cannot hold {len(rows)} transitions; enlarge it")
    buffer: ReplayBuffer = buffers.ReplayBuffer(
        capacity,
        spaces.observation_space,
        spaces.action_space,
        device=device,
        handle_timeout_termination=True,
    )
    filled = slice(0, len(rows))
    shape = (len(rows), *buffer.obs_shape)
    buffer.observations[filled, 0] = episodes.obs[rows].reshape(shape)
    buffer.next_observations[filled, 0] = episodes.next_obs[rows].reshape(shape)
    buffer.actions[filled, 0] = episodes.action[rows]
    buffer.rewards[filled, 0] = episodes.reward[rows]
    buffer.dones[filled, 0] = (episodes.terminal | episodes.truncated)[rows]
    buffer.timeouts[filled, 0] = episodes.truncated[rows]
    buffer.pos = len(rows) % capacity
    buffer.full = len(rows) == capacity
    return buffer


def from_sb3_buffer(buffer: "ReplayBuffer", *, max_episode_steps: int | None = None) -> Episodes:
    """What a stable-baselines3 replay buffer holds, oldest first, one environment after another.

    Actions are in [-1, 1], dict observations are joined in the order of their names. An episode
    still going on, or whose successor is not the next row, is truncated there. Of a ring that has
    come round, the oldest episode lacks its beginning.
    max_episode_steps: the environment's step limit; needed where the buffer does not mark timeouts
    (handle_timeout_termination=False): a done after that many steps then is one, and the episode
    without beginning is left out, for its steps cannot be counted.
    Raises InputError for an empty buffer, discrete actions, or if that limit is missing.
    """
    if buffer.size() == 0:
        raise InputError("the replay buffer is empty; train the agent first")
    if buffer.actions.dtype.kind != "f":
        raise InputError(f"the replay buffer's actions are discrete ({buffer.actions.dtype})")
    unmarked = not buffer.handle_timeout_termination
    if unmarked and max_episode_steps is None and buffer.dones.any():
        raise InputError(
            "the replay buffer does not tell timeouts from terminals "
            "(handle_timeout_termination=False); give max_episode_steps"
        )
    order = np.arange(buffer.size())
    if buffer.full:
        order = (order + buffer.pos) % buffer.buffer_size
        # Its observation was overwritten by the newest row's successor.
        order = order[1:] if buffer.optimize_memory_usage else order
    columns = [_column(buffer, order, member) for member in range(buffer.n_envs)]
    if unmarked and max_episode_steps is not None:
        columns = [_count_timeouts(c, max_episode_steps, buffer.full) for c in columns]
    return join(columns)


class SB3Policy:
    """A stable-baselines3 policy as a `Policy`: (B, O) tensor -> (B, A) in [-1, 1].

    Dict observations are expected as one vector, their parts in the order of their names.
    """

    def __init__(
        self, model: "BaseAlgorithm | BasePolicy", *, deterministic: bool = True, seed: int = 0
    ) -> None:
        """deterministic: the mode of the action's distribution instead of a sample.

        seed: of the samples. Raises InputError unless actions are a bounded Box.
        """
        from gymnasium.spaces import Box

        policy: Any = getattr(model, "policy", model)
        self.policy: BasePolicy = policy
        space = self.policy.action_space
        if not isinstance(space, Box) or not space.is_bounded():
            raise InputError(f"the SB3 policy has actions {space}; only a bounded Box is supported")
        self.deterministic = deterministic
        self.policy.set_training_mode(False)
        device = torch.device(self.policy.device)
        self._low = torch.as_tensor(space.low, device=device).reshape(-1)
        self._high = torch.as_tensor(space.high, device=device).reshape(-1)
        self._generator = torch.Generator(device)
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """Samples from here on depend on `seed` alone."""
        self._generator.manual_seed(seed)

    @torch.no_grad()
    def act(self, obs: Tensor, /) -> Tensor:
        """(B, O) observations in the environment's units -> (B, A) actions in [-1, 1]."""
        shaped = _shaped(obs.to(self._low.device), self.policy.observation_space)
        with _drawing_from(self._generator):
            action: Tensor = self.policy._predict(shaped, deterministic=self.deterministic)
        action = action.reshape(len(obs), -1)
        if not self.policy.squash_output:
            action = 2 * (action - self._low) / (self._high - self._low) - 1
        return action.clamp(-1, 1).to(obs.device)

    def reset(self, which: Tensor, /) -> None:
        """Draws new exploration noise where it is state-dependent (gSDE), for all environments."""
        actor: Any = getattr(self.policy, "actor", self.policy)
        if getattr(actor, "use_sde", False) and not self.deterministic:
            with _drawing_from(self._generator):
                actor.reset_noise(len(which))


def import_sb3(what: str) -> Any:
    """The package; MissingExtraError, naming what needs it, if it is not installed."""
    try:
        import stable_baselines3
    except ImportError as error:
        raise MissingExtraError(what, "sb3") from error
    return stable_baselines3


def _import_buffers() -> Any:
    import_sb3("a stable-baselines3 replay buffer")
    from stable_baselines3.common import buffers

    return buffers


def _require_fitting(episodes: Episodes, spaces: HasSpaces) -> None:
    from gymnasium.spaces import Box

    wanted = (
        ("observations", spaces.observation_space, episodes.spec.obs_dim),
        (
            "actions",
            spaces.action_space,
            episodes.spec.action_dim,
        ),
    )
    for what, space, size in wanted:
        if not isinstance(space, Box) or int(np.prod(space.shape)) != size:
            raise InputError(
                f"the episodes have {what} of {size} numbers, the space is {space}; give the "
                "spaces of the environment they were recorded in, flattened"
            )


def _column(buffer: "ReplayBuffer", order: NDArray[np.int64], member: int) -> Episodes:
    """The rows of one environment in their order of time."""
    obs = _rows(buffer.observations, order, member)
    done = buffer.dones[order, member].astype(bool)
    truncated = done & buffer.timeouts[order, member].astype(bool)
    terminal = done & ~truncated
    known = np.ones(len(order), np.bool_)
    if buffer.optimize_memory_usage:
        next_obs = _rows(buffer.observations, (order + 1) % buffer.buffer_size, member)
        # There the next episode's first observation has taken the successor's place.
        known = ~done
        known[-1] = True
        next_obs = np.where(known[:, None], next_obs, obs)
    else:
        next_obs = _rows(buffer.next_observations, order, member)
        seam = np.append((next_obs[:-1] != obs[1:]).any(axis=1), False)
        truncated |= seam & ~done
    truncated[-1] |= not done[-1]
    return Episodes(
        obs=obs.astype(np.float32),
        action=buffer.actions[order, member].astype(np.float32),
        reward=buffer.rewards[order, member].astype(np.float32),
        next_obs=next_obs.astype(np.float32),
        terminal=terminal,
        truncated=truncated,
        successor_known=known,
    )


def _rows(stored: Any, order: NDArray[np.int64], member: int) -> NDArray[Any]:
    """(R, M, ...) or a dict of such -> (N, O)."""
    if isinstance(stored, dict):
        return np.concatenate([_rows(stored[k], order, member) for k in sorted(stored)], axis=1)
    chosen: NDArray[Any] = stored[order, member].reshape(len(order), -1)
    return chosen


def _count_timeouts(episodes: Episodes, limit: int, lacks_beginning: bool) -> Episodes:
    """Terminals that fall on the step limit become truncations."""
    if lacks_beginning:
        if episodes.n_episodes == 1:
            raise InputError("the replay buffer holds no whole episode; use a larger one")
        episodes = episodes.select(np.arange(1, episodes.n_episodes))
    timed_out = np.zeros(len(episodes), np.bool_)
    timed_out[episodes.last[episodes.lengths >= limit]] = True
    return replace(
        episodes,
        terminal=episodes.terminal & ~timed_out,
        truncated=episodes.truncated | timed_out,
    )


def _shaped(obs: Tensor, space: Any) -> Any:
    """(B, O) -> what an SB3 policy takes: the space's shape, or a dict of such."""
    from gymnasium.spaces import Dict, flatdim

    if not isinstance(space, Dict):
        return obs.reshape(len(obs), *space.shape)
    names = sorted(space.spaces)
    parts = obs.split([flatdim(space[name]) for name in names], dim=1)
    return {name: _shaped(part, space[name]) for name, part in zip(names, parts, strict=True)}


@contextmanager
def _drawing_from(generator: torch.Generator) -> Iterator[None]:
    """torch's global generator stands in for `generator`: SB3 takes none as an argument."""
    device = generator.device
    if device.type == "cpu":
        shared = torch.default_generator
    else:
        shared = torch.cuda.default_generators[device.index or 0]
    before = shared.get_state()
    shared.set_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(shared.get_state())
        shared.set_state(before)
