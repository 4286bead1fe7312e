"""The autoregressive model that proposes plans: observations and returns to go, token by token.

Dimension letters: B windows, T rows, C remembered rows, O observation.
"""

import torch
from torch import Tensor, nn

from offdiff.core.numerics import products_of
from offdiff.planners.base import masked_mean
from offdiff.planners.transformer import CausalTransformer

HEADS = 4


class Generator(nn.Module):
    """(s_t, g_t) -> (s_t+1 - s_t, g_t+1 - g_t) with a causal mask.

    Observations are standardised; predictions are divided by `unit` (O,), the size of a change.

    A window of T rows trains every context length from 1 to T - 1: position t sees t + 1 rows.
    """

    def __init__(self, obs_dim: int, *, width: int, depth: int) -> None:
        super().__init__()
        self.tokens = nn.Linear(obs_dim + 1, width)
        self.transformer = CausalTransformer(width, depth, HEADS)
        self.head = nn.Linear(width, obs_dim + 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def loss(
        self, obs: Tensor, to_go: Tensor, counts: Tensor, *, unit: Tensor, noise: Tensor
    ) -> Tensor:
        """Mean squared error of the next row at every position, in units of `unit`; 0-d.

        obs, noise: (B, T, O), to_go: (B, T), counts: (B, T) bool. The noise is put on the inputs:
        the target leads from the noisy row to the true next one.
        """
        inputs = torch.cat((obs + noise * unit, to_go[..., None]), dim=-1)[:, :-1]
        target = torch.cat((obs, to_go[..., None]), dim=-1)[:, 1:]
        units = torch.nn.functional.pad(unit, (0, 1), value=1.0)
        error = self(inputs, counts[:, :-1]) - (target - inputs) / units
        return masked_mean(error.square(), counts[:, 1:, None])

    def forward(self, rows: Tensor, real: Tensor) -> Tensor:
        """(B, T, O + 1), (B, T) bool -> (B, T, O + 1) expected changes, in units."""
        change: Tensor = self.head(self.transformer(self.tokens(rows), real))
        return change

    def rollout(
        self, obs: Tensor, to_go: Tensor, real: Tensor, steps: int, *, unit: Tensor
    ) -> Tensor:
        """(B, steps, O) what follows the rows (B, C, O), of which `real` (B, C) are remembered.

        One pass over the past, then one token at a time beside its cached keys and values.
        """
        rows = torch.cat((obs, to_go[..., None]), dim=-1)
        units = torch.nn.functional.pad(unit, (0, 1), value=1.0)
        row, ahead = rows[:, -1:], []
        with products_of(len(rows)):
            hidden, cache = self.transformer.prefill(self.tokens(rows), real)
            for step in range(steps):
                if step:
                    hidden, cache = self.transformer.step(self.tokens(row), cache)
                row = row + self.head(hidden[:, -1:]) * units
                ahead.append(row[..., :-1])
        return torch.cat(ahead, dim=1)
