"""What planners are put together from: inverse dynamics, values that rank plans, the choice.

Dimension letters: B windows, T rows, N candidates, O observation, A action. Values
are divided by `Task.value_scale`.
"""

import torch
from torch import Tensor, nn

from offdiff.data.plan_windows import PlanBatch
from offdiff.planners.base import masked_mean, perceptron
from offdiff.planners.frame import PlanFrame
from offdiff.planners.task import Task

LEARNED_ROWS = 4
"""Rows of a window that small parts learn from: neighbours tell little that is new."""


class InverseDynamics(nn.Module):
    """The action that leads from one observation to the next: a = tanh f(s, s' - s)."""

    def __init__(self, task: Task, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.net = perceptron(2 * task.spec.obs_dim, task.spec.action_dim, hidden)

    def forward(self, frame: PlanFrame, now: Tensor, ahead: Tensor) -> Tensor:
        """(..., O), (..., O) in the environment's units -> (..., A) in [-1, 1]."""
        inputs = torch.cat((frame.standardise(now), frame.step(now, ahead)), dim=-1)
        return torch.tanh(self.net(inputs))

    def loss(self, frame: PlanFrame, batch: PlanBatch) -> Tensor:
        """Mean squared error over the first pairs of neighbouring rows, 0-d."""
        batch = batch.first(LEARNED_ROWS)
        action = self(frame, batch.obs[:, :-1], batch.obs[:, 1:])
        return masked_mean((action - batch.action[:, :-1]).square(), batch.pairs[..., None])

    def steer(self, frame: PlanFrame, obs: Tensor, steps: int) -> Tensor:
        """(B, K, A) actions along the rows of plans (B, H, O), for up to `steps` steps."""
        steps = min(steps, obs.shape[1] - 1)
        actions: Tensor = self(frame, obs[:, :steps], obs[:, 1 : steps + 1])
        return actions


class StateValue(nn.Module):
    """V(s): an upper expectile of the discounted returns that the data show from states like s.

    Regression on whole returns, without bootstrapping: it converges in few steps, and ranks what
    was seen to end well; it does not stitch episodes together.
    """

    def __init__(self, obs_dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.net = perceptron(obs_dim, 1, hidden)

    def forward(self, obs: Tensor) -> Tensor:
        """(..., O) standardised -> (...)."""
        value: Tensor = self.net(obs).squeeze(-1)
        return value

    def loss(self, obs: Tensor, batch: PlanBatch, *, scale: float, expectile: float) -> Tensor:
        """Over the first rows; obs (B, T, O) standardised. 0-d."""
        batch = batch.first(LEARNED_ROWS)
        error = batch.value / scale - self(obs[:, :LEARNED_ROWS])
        weight = (expectile - (error < 0).to(error.dtype)).abs()
        return masked_mean(weight * error.square(), batch.counts)


class WindowCritic(nn.Module):
    """Discounted return from the first row on, of a whole window (Diffusion Veteran)."""

    def __init__(self, obs_dim: int, rows: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.net = perceptron(obs_dim * rows, 1, hidden)

    def forward(self, obs: Tensor) -> Tensor:
        """(..., T, O) standardised -> (...)."""
        value: Tensor = self.net(obs.flatten(-2)).squeeze(-1)
        return value

    def loss(self, obs: Tensor, batch: PlanBatch, scale: float) -> Tensor:
        """Mean squared error; obs (B, T, O) standardised. 0-d."""
        error: Tensor = self(obs) - batch.value[:, 0] / scale
        return error.square().mean()


def choose(values: Tensor, *, temperature: float, generator: torch.Generator) -> Tensor:
    """(B, N) values -> (B,) index of the chosen candidate.

    temperature: 0 takes the best; otherwise values, standardised over the candidates of one
    decision, are divided by it and a candidate is drawn by softmax.
    """
    if temperature == 0 or values.shape[1] == 1:
        return values.argmax(dim=1)
    spread = values.std(dim=1, keepdim=True, correction=0).clamp(min=1e-8)
    share = torch.softmax((values - values.mean(1, keepdim=True)) / spread / temperature, dim=1)
    return torch.multinomial(share, 1, generator=generator).squeeze(1)


def pick(candidates: Tensor, index: Tensor) -> Tensor:
    """(B, N, ...) and (B,) -> (B, ...)."""
    return candidates[torch.arange(len(index), device=index.device), index]
