"""A causal transformer whose keys and values can be kept: one token more costs one token.

Tensors are (B batch, T tokens, W width); inside, (B, heads, T, W / heads).
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offdiff.core.attention import attention

ROTARY_BASE = 10_000.0


class Cache(NamedTuple):
    """What attention remembers. A value: keeping an older one takes back the tokens since."""

    keys: tuple[Tensor, ...]
    """(B, heads, T, W / heads) per block"""
    values: tuple[Tensor, ...]
    mask: Tensor
    """(B, 1, 1, T): added to a later token's scores, 0 for real tokens and -inf for padding"""


class CausalTransformer(nn.Module):
    """Pre-norm blocks; a token attends to itself and to earlier tokens that are real.

    Rotary positions depend on distances alone: neither a window that slides nor padding on its left
    changes what follows. Without them, positions are the caller's business.
    """

    def __init__(
        self, width: int, depth: int, heads: int, *, dropout: float = 0.0, rotary: bool = True
    ) -> None:
        """width: a multiple of 2 * heads."""
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"width must be a multiple of {2 * heads}, got {width}")
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head_width, self.rotary = width // heads, rotary

    def forward(self, tokens: Tensor, real: Tensor | None = None) -> Tensor:
        """tokens (B, T, W), real (B, T) bool, padding on either side -> (B, T, W).

        Padding may hold anything, NaN too; what comes out at its rows is finite and means nothing.
        """
        return self.prefill(tokens, real)[0]

    def prefill(self, tokens: Tensor, real: Tensor | None = None) -> tuple[Tensor, Cache]:
        """The same, and what later tokens need of these."""
        if real is None:
            real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        n = tokens.shape[1]
        causal = torch.ones(n, n, dtype=torch.bool, device=tokens.device).tril()
        # A token sees itself even if it is padding: a row without any key would be 0 / 0.
        itself = torch.eye(n, dtype=torch.bool, device=tokens.device)
        mask = (causal & real[:, None, :] | itself)[:, None]
        # Masked keys have weight 0, and 0 times NaN or infinity would still be NaN.
        tokens = tokens.masked_fill(~real[..., None], 0.0)
        turn = self._turn(tokens, 0)
        keys, values = [], []
        for block in self.blocks:
            tokens, key, value = block(tokens, mask, turn, None)
            keys.append(key)
            values.append(value)
        padding = tokens.new_zeros(real.shape).masked_fill(~real, -torch.inf)
        return self.norm(tokens), Cache(tuple(keys), tuple(values), padding[:, None, None])

    def step(self, token: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """One real token (B, 1, W) more -> (B, 1, W) and the longer cache."""
        mask = F.pad(cache.mask, (0, 1))
        turn = self._turn(token, cache.mask.shape[-1])
        keys, values = [], []
        for i, block in enumerate(self.blocks):
            past = cache.keys[i], cache.values[i]
            token, key, value = block(token, mask, turn, past)
            keys.append(key)
            values.append(value)
        return self.norm(token), Cache(tuple(keys), tuple(values), mask)

    def _turn(self, tokens: Tensor, first: int) -> "Turn | None":
        """Of tokens (B, T, W) that begin at position first; the same for all blocks."""
        if not self.rotary:
            return None
        return rotary_turn(first, tokens.shape[1], self.head_width, tokens.dtype, tokens.device)


class Block(nn.Module):
    """x + attention(norm(x)), then x + perceptron(norm(x))."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.before_attention, self.before_perceptron = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.perceptron = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(
        self, x: Tensor, mask: Tensor, turn: "Turn | None", past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, W), mask broadcasting to (B, heads, T, keys) -> x and all keys and values.

        mask: bool, true where a key is seen, or numbers that are added to the scores.
        """
        joint = self.queries_keys_values(self.before_attention(x)).unflatten(
            -1, (3, self.heads, -1)
        )
        joint = joint.permute(2, 0, 3, 1, 4)
        query, key = (joint[:2] if turn is None else rotated(joint[:2], turn)).unbind()
        value = joint[2]
        if past:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        dropout = self.dropout if self.training else 0.0
        mixed = attention(query, key, value, mask=mask, dropout=dropout)
        mixed = self.projection(mixed.transpose(1, 2).flatten(-2))
        x = x + F.dropout(mixed, dropout)
        x = x + F.dropout(self.perceptron(self.before_perceptron(x)), dropout)
        return x, key, value


class Turn(NamedTuple):
    """What turns T tokens by their positions; (T, D) each, D a head's channels."""

    cos: Tensor
    sin: Tensor
    """Negative in the first half of the channels."""


@lru_cache(maxsize=1024)
@torch.inference_mode(False)  # or a table made under it could not be learned through later
def rotary_turn(
    first: int, count: int, channels: int, dtype: torch.dtype, device: torch.device
) -> Turn:
    """Of `count` tokens, the first at position `first`. Kept: a rollout asks for the same ones."""
    half = channels // 2
    frequency = ROTARY_BASE ** (-torch.arange(half, device=device, dtype=dtype) / half)
    position = torch.arange(first, first + count, device=device, dtype=dtype)
    angle = position[:, None] * frequency
    cos, sin = angle.cos(), angle.sin()
    return Turn(torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1))


def rotated(x: Tensor, turn: Turn) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864): pairs of channels turned by their position.

    x: (..., T, D), channel i paired with i + D / 2. Products of two depend on their distance.
    """
    return x * turn.cos + x.roll(x.shape[-1] // 2, dims=-1) * turn.sin
