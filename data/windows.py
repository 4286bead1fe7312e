"""Windows of consecutive transitions cut from episodes.

Dimension letters: N rows, W windows, B batch, L transitions of a window, O observation, A action.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offdiff.core.errors import InputError
from offdiff.core.types import Trajectories
from offdiff.data.episodes import Episodes


def episodes_hash(episodes: Episodes) -> str:
    """Hexadecimal digest of everything in the episodes: equal data, equal digest."""
    digest = hashlib.sha256()
    for name in sorted(episodes.__dataclass_fields__):
        array = np.ascontiguousarray(getattr(episodes, name))
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def hold_out(episodes: Episodes, share: float, seed: int) -> tuple[Episodes, Episodes]:
    """Splits whole episodes into those to train on and those to validate on.

    share: of the episodes, in (0, 1); at least one is held out.
    Raises InputError if fewer than two episodes are there to be split.
    """
    if episodes.n_episodes < 2:
        raise InputError(
            "the data hold a single episode, and validation needs another one; collect more"
        )
    held = max(1, round(share * episodes.n_episodes))
    order = np.random.default_rng(seed).permutation(episodes.n_episodes)
    return episodes.select(np.sort(order[held:])), episodes.select(np.sort(order[:held]))


def window_starts(episodes: Episodes, length: int, *, terminals: bool = True) -> NDArray[np.int64]:
    """(W,) rows from which a window of `length` transitions can be cut without leaving an episode.

    A window that reaches a terminal may be shorter: what follows is the absorbing terminal state.
    Where time ran out nothing is known of what would have followed, so windows end there at the
    latest. terminals: False leaves out every window that holds a terminal transition.
    A terminal whose successor was not recorded (`successor_known`) is padded with a copy of its
    own observation.
    Raises InputError if there is none.
    """
    last = np.repeat(episodes.last, episodes.lengths)  # of every row's episode
    usable = last - (~episodes.successor_known[last] & ~episodes.terminal[last])
    rows = np.arange(len(episodes))
    fits = rows + length - 1 <= usable
    ends = episodes.terminal[last]
    keep = (fits | ends) if terminals else fits & ~(ends & (rows + length - 1 == last))
    if not keep.any():
        raise InputError(
            f"no window of {length} transitions fits the data, whose longest episode has "
            f"{episodes.lengths.max()}; shorten the horizon"
        )
    return np.flatnonzero(keep)


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Cuts windows out of episodes held on one device."""

    obs: Tensor
    """(N, O)"""
    action: Tensor
    """(N, A)"""
    reward: Tensor
    """(N,)"""
    next_obs: Tensor
    """(N, O)"""
    terminal: Tensor
    """(N,) bool"""
    last: Tensor
    """(N,) the last row of every row's episode"""
    starts: Tensor
    """(W,) first row of every window"""
    length: int

    @classmethod
    def of(
        cls, episodes: Episodes, length: int, device: torch.device, *, terminals: bool = True
    ) -> "Windows":
        """All windows of the episodes; see `window_starts`."""
        last = np.repeat(episodes.last, episodes.lengths)
        return cls(
            obs=torch.from_numpy(episodes.obs).to(device),
            action=torch.from_numpy(episodes.action).to(device),
            reward=torch.from_numpy(episodes.reward).to(device),
            next_obs=torch.from_numpy(episodes.next_obs).to(device),
            terminal=torch.from_numpy(episodes.terminal).to(device),
            last=torch.from_numpy(last).to(device),
            starts=torch.from_numpy(window_starts(episodes, length, terminals=terminals)).to(
                device
            ),
            length=length,
        )

    def __len__(self) -> int:
        return len(self.starts)

    def cut(self, index: Tensor) -> Trajectories:
        """(B,) numbers of windows -> B windows, padded after a terminal.

        Padding is the absorbing state: the terminal observation, no action, no reward, terminal.
        """
        start = self.starts[index, None]
        steps = torch.arange(self.length, device=start.device)
        end = self.last[start]
        rows = torch.minimum(start + steps, end)  # (B, L)
        real = start + steps <= end
        obs = torch.where(real[..., None], self.obs[rows], self.next_obs[rows])
        return Trajectories(
            obs=torch.cat((obs, self.next_obs[rows[:, -1:]]), dim=1),
            action=self.action[rows] * real[..., None],
            reward=self.reward[rows] * real,
            # The row repeated by the padding is terminal, or there would be none.
            terminal=self.terminal[rows].float(),
            mask=real,
        )

    def sample(self, n: int, *, generator: torch.Generator) -> Trajectories:
        """n windows, uniformly with replacement."""
        index = torch.randint(len(self), (n,), generator=generator, device=self.starts.device)
        return self.cut(index)
