"""Ragged episodes as flat arrays, and their conversion to transitions.

Dimension letters: N rows, E episodes, O observation, A action.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from offdiff.core.errors import InputError
from offdiff.core.types import Batch, Spec

Conversion = Literal["strict", "d4rl_compat"]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """Rows of consecutive episodes. The last row of every episode is terminal or truncated.

    A terminal row ended the task; a truncated one ran out of time (or of file). Values are as
    recorded: actions may leave [-1, 1] in demonstrations, rewards are the environment's own.
    """

    obs: FloatArray
    """(N, O)"""
    action: FloatArray
    """(N, A)"""
    reward: FloatArray
    """(N,)"""
    next_obs: FloatArray
    """(N, O); rows where `successor_known` is False hold a copy of `obs`"""
    terminal: BoolArray
    """(N,)"""
    truncated: BoolArray
    """(N,), never True where `terminal` is"""
    successor_known: BoolArray
    """(N,), False at an episode's last row if the source did not record what followed"""

    def __post_init__(self) -> None:
        n = len(self.reward)
        shapes_agree = (
            self.obs.ndim == 2
            and self.action.ndim == 2
            and self.next_obs.shape == self.obs.shape
            and len(self.obs) == len(self.action) == n
            and self.terminal.shape == self.truncated.shape == self.successor_known.shape == (n,)
        )
        if not shapes_agree:
            raise ValueError(f"arrays of an Episodes disagree: {n} rewards, obs {self.obs.shape}")
        if n == 0 or not (self.terminal[-1] or self.truncated[-1]):
            raise ValueError("the last row of an Episodes must end an episode")
        if np.any(self.terminal & self.truncated):
            raise ValueError("a row cannot be both terminal and truncated")

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def spec(self) -> Spec:
        """Sizes of observation and action."""
        return Spec(self.obs.shape[1], self.action.shape[1])

    @cached_property
    def last(self) -> NDArray[np.int64]:
        """(E,) index of every episode's last row."""
        return np.flatnonzero(self.terminal | self.truncated)

    @cached_property
    def first(self) -> NDArray[np.int64]:
        """(E,) index of every episode's first row."""
        return np.concatenate(([0], self.last[:-1] + 1))

    @property
    def n_episodes(self) -> int:
        """Number of episodes E."""
        return len(self.last)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(E,) steps of every episode."""
        return self.last - self.first + 1

    @cached_property
    def returns(self) -> NDArray[np.float64]:
        """(E,) undiscounted return of every episode, summed in float64."""
        return np.add.reduceat(self.reward.astype(np.float64), self.first)

    def select(self, episodes: NDArray[np.int64]) -> "Episodes":
        """The given episodes, in the given order."""
        rows = np.concatenate([np.arange(self.first[e], self.last[e] + 1) for e in episodes])
        fields = {name: getattr(self, name)[rows] for name in self.__dataclass_fields__}
        return replace(self, **fields)

    def best(self, share: float, by: Literal["episodes", "steps"]) -> "Episodes":
        """The episodes of highest return, in file order, up to `share` of the episodes or steps.

        At least one episode is kept. By steps, the episode that crosses the share is kept too.
        """
        order = np.argsort(-self.returns, kind="stable")
        if by == "episodes":
            count = max(1, int(share * self.n_episodes + 1e-9))
        else:
            count = 1 + int(np.searchsorted(np.cumsum(self.lengths[order]), share * len(self)))
        return self.select(np.sort(order[:count]))

    def transitions(self, conversion: Conversion, *, need_next_action: bool = False) -> Batch:
        """Every usable row as a transition on the CPU, fields (M, ...); see `usable`."""
        rows = self.usable(conversion, need_next_action=need_next_action)
        return self.transitions_at(rows, conversion)

    def usable(
        self, conversion: Conversion, *, need_next_action: bool = False
    ) -> NDArray[np.int64]:
        """(M,) rows that make a transition, M <= N.

        strict: all rows but those whose successor is unknown; next_obs is the true one.
        d4rl_compat: D4RL's `qlearning_dataset`. The last row of the file and truncated rows are
        left out; the successor is the next row, which for a terminal row belongs to the next
        episode and is only masked.
        need_next_action: also leave out truncated rows, after which no action was recorded.
        """
        if conversion == "d4rl_compat":
            keep = ~self.truncated
            keep[-1] = False
        else:
            keep = self.successor_known | self.terminal
            if need_next_action:
                keep &= ~self.truncated
        if not keep.any():
            raise InputError("no transition is usable: every episode is a single truncated step")
        return np.flatnonzero(keep)

    def transitions_at(self, rows: NDArray[np.int64], conversion: Conversion) -> Batch:
        """The given usable rows as transitions on the CPU, fields (len(rows), ...)."""
        following = np.minimum(rows + 1, len(self) - 1)
        compat = conversion == "d4rl_compat"
        return Batch(
            obs=torch.from_numpy(self.obs[rows]),
            action=torch.from_numpy(self.action[rows]),
            reward=torch.from_numpy(self.reward[rows]),
            next_obs=torch.from_numpy(self.obs[following] if compat else self.next_obs[rows]),
            terminal=torch.from_numpy(self.terminal[rows].astype(np.float32)),
            next_action=torch.from_numpy(self.action[following]),
        )
