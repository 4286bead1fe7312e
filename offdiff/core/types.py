"""The values that travel between modules.

Dimension letters: S seeds trained together, B batch, N rows, O observation, A action.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

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
