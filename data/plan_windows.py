"""Windows of observations for planners: every so many steps, beyond an episode's end its last one.

Dimension letters: E episodes, N table rows (every observation of every episode), B batch, H rows of
a window, O observation, A action.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offdiff.core.errors import InputError
from offdiff.data.episodes import Episodes


class PlanBatch(NamedTuple):
    """Windows of H observations that lie `stride` steps apart, in the environment's units."""

    obs: Tensor
    """(B, H, O); beyond the episode's end its last observation"""
    action: Tensor
    """(B, H, A) taken at each of them; 0 at an episode's last observation"""
    reward: Tensor
    """(B, H) discounted sum of the rewards on the way to the next row"""
    to_go: Tensor
    """(B, H) undiscounted return from here to the episode's end"""
    value: Tensor
    """(B, H) discounted return from here to the episode's end"""
    acted: Tensor
    """(B, H) bool: an action was taken here; not at an episode's last observation"""
    ended: Tensor
    """(B, H) bool: the task has ended here; it stays so"""
    real: Tensor
    """(B, H) bool: not beyond the episode's end"""
    counts: Tensor
    """(B, H) bool: real, or beyond an end that is known to last: what a model may learn"""
    time: Tensor
    """(B,) int64, steps from the episode's beginning to row 0"""

    def first(self, rows: int) -> "PlanBatch":
        """The windows cut to their first rows, or as they are if they have no more."""
        fields = self._asdict().items()
        return self._replace(**{name: f[:, :rows] for name, f in fields if name != "time"})

    @property
    def pairs(self) -> Tensor:
        """(B, H - 1) bool: rows from which an action was taken whose consequence is the next row"""
        acted = self.real[:, :-1] & self.acted[:, :-1]
        return acted & (self.real[:, 1:] | self.ended[:, 1:])


@dataclass(frozen=True, kw_only=True)
class PlanWindows:
    """Cuts windows out of episodes held on one device."""

    table: PlanBatch
    """Every field without the batch's H: (N, ...) rows of all episodes, their ends included"""
    end: Tensor
    """(N,) row of each row's episode's last observation"""
    starts: Tensor
    """(W,) rows from which an action was taken"""
    rows: int
    stride: int
    discount: float

    @classmethod
    def of(
        cls,
        episodes: Episodes,
        rows: int,
        device: torch.device,
        *,
        stride: int = 1,
        discount: float = 0.99,
        lasting: bool = False,
    ) -> "PlanWindows":
        """All windows of the episodes. discount: per environment step.

        lasting: where an episode was cut off counts as a state to stay in, as where a task ended:
        for data whose episodes are cut off because a goal was reached.
        """
        source = _rows_with_ends(episodes)
        final = source.final
        value, to_go = (_to_go(episodes, source, gamma) for gamma in (discount, 1.0))
        ahead = np.minimum(np.arange(len(value)) + stride, source.end)
        steps = ahead - np.arange(len(value))
        reward = value - discount**steps * value[ahead]
        ended = np.zeros(len(value), np.bool_)
        ended[final] = episodes.terminal[episodes.last]
        last_row = episodes.last[source.episode]
        action = np.where(source.is_final[:, None], 0, episodes.action[source.row])
        obs = np.where(
            source.is_final[:, None], episodes.next_obs[last_row], episodes.obs[source.row]
        )
        lasts = ended[source.end] if not lasting else np.ones(len(value), np.bool_)
        table = PlanBatch(
            obs=torch.from_numpy(obs),
            action=torch.from_numpy(action),
            reward=torch.from_numpy(reward.astype(np.float32)),
            to_go=torch.from_numpy(to_go.astype(np.float32)),
            value=torch.from_numpy(value.astype(np.float32)),
            acted=torch.from_numpy(np.arange(len(value)) < source.end),
            ended=torch.from_numpy(ended),
            real=torch.ones(len(value), dtype=torch.bool),
            counts=torch.from_numpy(lasts),
            time=torch.from_numpy(source.time),
        )
        return cls(
            table=PlanBatch(*(field.to(device) for field in table)),
            end=torch.from_numpy(source.end).to(device),
            starts=table.acted.nonzero().squeeze(1).to(device),
            rows=rows,
            stride=stride,
            discount=discount,
        )

    def __len__(self) -> int:
        return len(self.starts)

    def cut(self, index: Tensor) -> PlanBatch:
        """(B,) numbers of windows -> B windows."""
        start = self.starts[index, None]
        at = start + self.stride * torch.arange(self.rows, device=start.device)
        end = self.end[start]
        rows, real = torch.minimum(at, end), at <= end
        t = self.table
        return PlanBatch(
            obs=t.obs[rows],
            action=t.action[rows],
            reward=t.reward[rows],
            to_go=t.to_go[rows],
            value=t.value[rows],
            acted=t.acted[rows],
            ended=t.ended[rows],
            real=real,
            counts=real | t.counts[rows],
            time=t.time[start[:, 0]],
        )

    def sample(self, n: int, *, generator: torch.Generator) -> PlanBatch:
        """n windows, uniformly with replacement."""
        index = torch.randint(len(self), (n,), generator=generator, device=self.starts.device)
        return self.cut(index)


def require_reach(episodes: Episodes, rows: int, stride: int) -> None:
    """Raises InputError if windows are longer than every episode."""
    longest = int(episodes.lengths.max())
    if (rows - 1) * stride > longest:
        raise InputError(
            f"a plan of {rows} observations {stride} steps apart reaches {(rows - 1) * stride} "
            f"steps ahead, and the longest episode has {longest}; shorten the horizon or the stride"
        )


class _Rows(NamedTuple):
    """Where each row of the table comes from; fields (N,) but for `final`."""

    episode: NDArray[np.int64]
    row: NDArray[np.int64]
    """In the episodes; that of the last action for an episode's last observation"""
    time: NDArray[np.int64]
    is_final: NDArray[np.bool_]
    """An observation after the last action"""
    end: NDArray[np.int64]
    final: NDArray[np.int64]
    """(E,) table row of every episode's end"""


def _rows_with_ends(episodes: Episodes) -> _Rows:
    """Every observation of every episode; the one after the last action only if recorded."""
    known = episodes.successor_known[episodes.last].astype(np.int64)
    sizes = episodes.lengths + known
    final = np.cumsum(sizes) - 1
    episode = np.repeat(np.arange(episodes.n_episodes), sizes)
    time = np.arange(sizes.sum()) - (final - sizes + 1)[episode]
    row = episodes.first[episode] + np.minimum(time, episodes.lengths[episode] - 1)
    return _Rows(episode, row, time, time == episodes.lengths[episode], final[episode], final)


def _to_go(episodes: Episodes, rows: _Rows, discount: float) -> NDArray[np.float64]:
    """(N,) return from each row to its episode's end; 0 after the last action."""
    reward = np.where(rows.is_final, 0.0, episodes.reward[rows.row].astype(np.float64))
    total = np.zeros(len(reward))
    running = 0.0
    starts = rows.time == 0
    for i in range(len(reward) - 1, -1, -1):
        running = reward[i] + discount * running
        total[i] = running
        if starts[i]:
            running = 0.0
    return total
