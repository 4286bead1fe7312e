"""A transformer with weights of its own for every kind of column (MM-DiT, Esser et al. 2024).

Tensors are (B batch, T rows, C channels), d the width. A stream is a range of columns: states, say,
or actions. Each row gives one token per stream. Streams share the noise embedding, the positions
in time and one attention over all M T tokens; every weight matrix beside them is the stream's own.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from offdiff.core.attention import attention
from offdiff.diffusion.dit import (
    NOISE_FEATURES,
    NOISE_SCALE,
    Block,
    initialise,
    modulated_norm,
    noise_layers,
    sinusoids,
)


class MMDiT(nn.Module):
    """F(x; c_noise). At initialisation every block is the identity and the output zero.

    Inputs are the columns of all M streams, then E further channels that every stream sees, such as
    noise levels. Streams need no embedding of their kind: the bias of `tokens` is one.
    Parameters, for streams of C_m columns, width d, depth L, head width h:
    M L (18 d^2 + 15 d + 2 h) + (256 d + d + d^2 + d)
    + the sum over m of ((C_m + E) d + d) + (2 d^2 + 2 d) + (C_m d + C_m).
    With one stream it is a DiT whose queries and keys have learned gains.
    """

    skipped: frozenset[int] = frozenset()
    """Blocks that are left out, by number from 0; see `skips.skipping`."""

    def __init__(
        self,
        in_channels: int,
        streams: Sequence[int],
        *,
        width: int,
        depth: int,
        heads: int,
    ) -> None:
        """streams: columns of each, in order. width: an even multiple of heads."""
        super().__init__()
        if width % heads or width % 2:
            raise ValueError(f"width must be even and a multiple of {heads} heads, got {width}")
        extra = in_channels - sum(streams)
        if extra < 0 or min(streams) < 1:
            raise ValueError(f"streams {tuple(streams)} do not divide {in_channels} inputs")
        self.split = (*streams, extra)
        self.embed = noise_layers(width)
        self.tokens = nn.ModuleList(nn.Linear(n + extra, width) for n in streams)
        self.blocks = nn.ModuleList(JointBlock(width, heads, len(streams)) for _ in range(depth))
        self.modulations = nn.ModuleList(nn.Linear(width, 2 * width) for _ in streams)
        self.heads = nn.ModuleList(nn.Linear(width, n) for n in streams)
        initialise(self, self.embed, [*self.heads, *self.modulations])

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """x (B, T, in_channels), c_noise (B,) -> (B, T, columns of all streams); any T >= 1."""
        embedding = self.embed(sinusoids(NOISE_SCALE * c_noise, NOISE_FEATURES))
        *columns, extra = x.split(self.split, dim=-1)
        position = sinusoids(torch.arange(x.shape[1], device=x.device), embedding.shape[-1])
        xs = [
            tokens(torch.cat((own, extra), dim=-1)) + position
            for tokens, own in zip(self.tokens, columns, strict=True)
        ]
        for k, block in enumerate(self.blocks):
            if k not in self.skipped:
                xs = block(xs, embedding)
        outputs = []
        for x_m, modulation, head in zip(xs, self.modulations, self.heads, strict=True):
            scale, shift = modulation(embedding).unsqueeze(1).chunk(2, dim=-1)
            outputs.append(head(modulated_norm(x_m, scale, shift)))
        return torch.cat(outputs, dim=-1)


class JointBlock(nn.Module):
    """A DiT block per stream, with one attention over the tokens of all."""

    def __init__(self, width: int, heads: int, streams: int) -> None:
        super().__init__()
        self.streams = nn.ModuleList(StreamBlock(width, heads) for _ in range(streams))

    def forward(self, xs: Sequence[Tensor], embedding: Tensor) -> list[Tensor]:
        """(B, T, d) of each stream, embedding (B, d) -> (B, T, d) of each stream."""
        streams = cast("Sequence[StreamBlock]", self.streams)
        modulations = [stream.modulate(embedding) for stream in streams]
        parts = map(StreamBlock.before_attention, streams, xs, modulations)
        query, key, value = (torch.cat(tokens, dim=2) for tokens in zip(*parts, strict=True))
        mixed = attention(query, key, value).chunk(len(xs), dim=2)
        return list(map(StreamBlock.after_attention, streams, xs, mixed, modulations))


class StreamBlock(Block):
    """One stream's share of a JointBlock.

    The gains let streams differ in how sharply they attend. They bound the attention logits by
    sqrt(h) * the largest query gain * the largest key gain, h the head width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, causal=False)
        self.query_gain = nn.Parameter(torch.ones(width // heads))
        self.key_gain = nn.Parameter(torch.ones(width // heads))

    def before_attention(
        self, x: Tensor, modulation: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, d) -> queries, keys and values, each (B, heads, T, d / heads)."""
        query, key, value = super().before_attention(x, modulation)
        return query * self.query_gain, key * self.key_gain, value
