"""Plans as a denoiser sees them: where one is, and from there how far things have moved.

Dimension letters: B windows, H rows of a plan, O observation.
"""

import torch
from torch import Tensor, nn

from offdiff.data.plan_windows import PlanBatch
from offdiff.planners.task import Task

LEAST_SPREAD = 1e-3
"""Of a displacement, in standard deviations of the observation: columns that never change."""


class PlanFrame(nn.Module):
    """Observations in the environment's units <-> rows of about unit variance.

    Row 0 is the standardised present; row h > 0 the displacement from it, divided by its own
    spread. What moves a hundredth of its range in a step is then seen as well as what moves all of
    it, and an error in a row is an error relative to what can happen by then.
    """

    mean: Tensor
    std: Tensor
    spread: Tensor

    def __init__(self, task: Task, rows: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(task.obs_mean))
        self.register_buffer("std", torch.tensor(task.obs_std))
        self.register_buffer("spread", self.std.repeat(rows, 1))

    def begin(self, batch: PlanBatch) -> None:
        """Measures the spreads on windows of data."""
        rows = len(self.spread)
        counts = batch.counts[:, 1:rows, None].double()
        moved = (batch.obs[:, 1:rows] - batch.obs[:, :1]).double()
        square = (moved.square() * counts).sum(0) / counts.sum(0).clamp(min=1)
        self.spread[1:] = torch.maximum(square.sqrt().float(), LEAST_SPREAD * self.std)

    def encode(self, obs: Tensor) -> Tensor:
        """(..., H, O) in the environment's units -> (..., H, O) rows; H may be shorter."""
        now = obs[..., :1, :]
        moved = (obs[..., 1:, :] - now) / self.spread[1 : obs.shape[-2]]
        return torch.cat((self.standardise(now), moved), dim=-2)

    def decode(self, rows: Tensor) -> Tensor:
        """(..., H, O) rows -> (..., H, O) in the environment's units."""
        now = rows[..., :1, :] * self.std + self.mean
        return torch.cat((now, now + rows[..., 1:, :] * self.spread[1 : rows.shape[-2]]), dim=-2)

    def decode_given(self, rows: Tensor, decided: Tensor, known: Tensor) -> Tensor:
        """The same, with the known entries exactly as they were decided, in (..., H, O)."""
        return torch.where(known, decided, self.decode(rows))

    def standardise(self, obs: Tensor) -> Tensor:
        """(..., O) in the environment's units -> zero mean and unit variance."""
        return (obs - self.mean) / self.std

    def step(self, now: Tensor, ahead: Tensor) -> Tensor:
        """(..., O) from one row to the next, in units of what one row usually brings."""
        return (ahead - now) / self.spread[1]
