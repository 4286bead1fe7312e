"""The values that travel between modules.

Dimension letters: S seeds trained together, B batch, N rows or windows, L transitions of a window,
O observation, A action.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Metrics = Mapping[str, Tensor]
"""Name -> (S,) detached tensor on the training device; read by the host only when logged."""


class Batch(NamedTuple):
    """Transitions. Leading dimensions are (N,) in storage and (S, B) in a learner's update.

    Actions lie in [-1, 1]. `terminal` is 1.0 where the task ended, never where time ran out.
    `next_obs` of a terminal row and `next_action` where the successor is not the next stored row
    hold arbitrary finite values: both must be masked by the reader.
    """

    obs: Tensor
    """(..., O)"""
    action: Tensor
    """(..., A)"""
    reward: Tensor
    """(...,)"""
    next_obs: Tensor
    """(..., O)"""
    terminal: Tensor
    """(...,) float, 0 or 1"""
    next_action: Tensor
    """(..., A), the action stored at the next row of the same episode"""


@dataclass(frozen=True)
class Spec:
    """Sizes that networks and buffers are built for."""

    obs_dim: int
    action_dim: int

    @property
    def row_width(self) -> int:
        """Numbers in one stored transition."""
        return 2 * (self.obs_dim + self.action_dim) + 2


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """Windows of L transitions between L + 1 observations, in the environment's units.

    Every transition has its true successor, the last one too. Actions lie in [-1, 1]. Transitions
    outside the mask hold arbitrary finite values. Shapes are checked: ValueError.
    """

    obs: Tensor
    """(N, L + 1, O)"""
    action: Tensor
    """(N, L, A)"""
    reward: Tensor
    """(N, L)"""
    terminal: Tensor
    """(N, L) float, 1.0 where the transition ended the task"""
    mask: Tensor
    """(N, L) bool, False after a terminal transition and where a filter rejected one"""

    def __post_init__(self) -> None:
        n, steps = self.reward.shape
        shapes_agree = (
            self.obs.shape[:2] == (n, steps + 1)
            and self.action.shape[:2] == (n, steps)
            and self.terminal.shape == self.mask.shape == (n, steps)
            and self.mask.dtype == torch.bool
        )
        if not shapes_agree:
            shapes = {name: tuple(value.shape) for name, value in vars(self).items()}
            raise ValueError(f"parts of a Trajectories disagree: {shapes}")

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def horizon(self) -> int:
        """Transitions L of every window."""
        return self.reward.shape[1]

    @property
    def spec(self) -> Spec:
        """Sizes of observation and action."""
        return Spec(self.obs.shape[-1], self.action.shape[-1])

    def transitions(self, *, need_next_action: bool = False) -> Batch:
        """The transitions inside the mask, fields (M, ...); never across two windows.

        need_next_action: leave out those after which the window holds no action, unless terminal.
        """
        keep = self.mask
        if need_next_action:
            followed = torch.zeros_like(keep)
            followed[:, :-1] = keep[:, 1:]
            keep = keep & (followed | self.terminal.bool())
        following = self.action.roll(-1, dims=1)
        return Batch(
            obs=self.obs[:, :-1][keep],
            action=self.action[keep],
            reward=self.reward[keep],
            next_obs=self.obs[:, 1:][keep],
            terminal=self.terminal[keep],
            next_action=following[keep],
        )


def join(parts: Sequence[Trajectories]) -> Trajectories:
    """Windows of one shape, one after the other."""
    names = Trajectories.__dataclass_fields__
    return Trajectories(**{name: torch.cat([getattr(p, name) for p in parts]) for name in names})
