"""The autoregressive transformer of Trajectory Diffuser, as its authors released it.

Dimension letters: B windows, C rows of context, H rows of a window, O observation. Observations are
standardised, returns still to be collected (wanted) are divided by `returns_scale`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offdiff.core.attention import attention
from offdiff.planners.base import masked_mean

WAVELENGTHS = 10_000.0


class ReleasedGenerator(nn.Module):
    """Every row (s, g) of a context -> the next row, absolute; trained on contexts of full length.

    Post-norm encoder over one token per row. Without a mask, as released, every position of the
    training window sees its answer but the last one: so only 1 / C of the loss trains the predictor
    that is used, and shorter contexts, which begin every episode, were never seen.
    """

    def __init__(
        self,
        obs_dim: int,
        *,
        context: int,
        width: int,
        depth: int,
        heads: int,
        dropout: float,
        causal: bool,
    ) -> None:
        """context: rows that are looked back on at most. width: of half a token."""
        super().__init__()
        token = 2 * width
        self.context, self.causal = context, causal
        self.embed_obs = nn.Linear(obs_dim, width)
        self.embed_wanted = nn.Linear(1, width)
        self.dropout = nn.Dropout(dropout)
        self.first_norm = nn.LayerNorm(token)
        self.blocks = nn.ModuleList(EncoderBlock(token, heads, dropout) for _ in range(depth))
        self.last_norm = nn.LayerNorm(token)
        self.obs_head = _head(token, width, obs_dim)
        self.wanted_head = _head(token, width, 1)
        self.register_buffer("positions", position_table(context, token), persistent=False)
        self.positions: Tensor

    def forward(
        self, obs: Tensor, wanted: Tensor, real: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """obs (B, C, O), wanted (B, C) -> the same one row later, at every position.

        real: (B, C) bool, False for rows before a context begins, which has the effect of a shorter
        context: nobody attends to them, positions are counted after them. None: all are real.
        """
        tokens = torch.cat((self.embed_obs(obs), self.embed_wanted(wanted[..., None])), dim=-1)
        x: Tensor = self.first_norm(self.dropout(tokens + self._positions(real, obs.shape[1])))
        mask = self._mask(real, obs.shape[1])
        for block in self.blocks:
            x = block(x, mask)
        x = self.last_norm(x)
        return self.obs_head(x), self.wanted_head(x).squeeze(-1)

    def loss(self, obs: Tensor, wanted: Tensor, counts: Tensor) -> Tensor:
        """Teacher forcing at all positions: obs (B, H, O), wanted (B, H), counts (B,) bool. 0-d."""
        ahead, wanted_ahead = self(obs[:, :-1], wanted[:, :-1])
        obs_error = (ahead - obs[:, 1:]).square()
        wanted_error = (wanted_ahead - wanted[:, 1:]).square()
        return masked_mean(obs_error, counts[:, None, None]) + masked_mean(
            wanted_error, counts[:, None]
        )

    def rollout(self, obs: Tensor, wanted: Tensor, real: Tensor, steps: int) -> Tensor:
        """The present and what follows it: (B, 1 + steps, O).

        obs (B, C, O), wanted (B, C), real (B, C) bool: the past, its last row the present. One pass
        over the last `context` rows for every row that is appended.
        """
        begun = real.any(dim=0)
        obs, wanted, real = obs[:, begun], wanted[:, begun], real[:, begun]
        same_age = bool(real.all())
        for _ in range(steps):
            past = slice(-self.context, None)
            mask = None if same_age else real[:, past]
            ahead, wanted_ahead = self(obs[:, past], wanted[:, past], mask)
            obs = torch.cat((obs, ahead[:, -1:]), dim=1)
            wanted = torch.cat((wanted, wanted_ahead[:, -1:]), dim=1)
            real = F.pad(real, (0, 1), value=True)
        return obs[:, -steps - 1 :]

    def _positions(self, real: Tensor | None, rows: int) -> Tensor:
        if real is None:
            return self.positions[:rows]
        return self.positions[(real.long().cumsum(dim=1) - 1).clamp(min=0)]

    def _mask(self, real: Tensor | None, rows: int) -> Tensor | None:
        """(B or 1, 1, C, C) bool: which row attends to which."""
        if real is None and not self.causal:
            return None
        whole = torch.ones(1, 1, rows, rows, dtype=torch.bool, device=self.positions.device)
        mask = whole.tril() if self.causal else whole
        if real is not None:
            # Rows that are not real see themselves, for a softmax over nothing is no number.
            itself = torch.eye(rows, dtype=torch.bool, device=mask.device)
            mask = mask & real[:, None, None] | itself
        return mask


class EncoderBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + perceptron(x))."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.perceptron_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, C, width), mask (B or 1, 1, C, C) bool or None -> (B, C, width)."""
        x = self.attention_norm(x + self.dropout(self._attention(x, mask)))
        out: Tensor = self.perceptron_norm(x + self.dropout(self.perceptron(x)))
        return out

    def _attention(self, x: Tensor, mask: Tensor | None) -> Tensor:
        joint = self.queries_keys_values(x).unflatten(-1, (3, self.heads, -1))
        query, key, value = joint.permute(2, 0, 3, 1, 4)  # each (B, heads, C, width / heads)
        mixed = attention(query, key, value, mask=mask)
        out: Tensor = self.projection(mixed.transpose(1, 2).flatten(-2))
        return out


def position_table(rows: int, width: int) -> Tensor:
    """(rows, width) sines and cosines by turns (Vaswani et al. 2017, section 3.5); width even."""
    frequencies = torch.exp(torch.arange(0, width, 2) * (-math.log(WAVELENGTHS) / width))
    angle = torch.arange(rows)[:, None] * frequencies
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)


def _head(token: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(token, width), nn.ReLU(), nn.Linear(width, outputs))
