"""A transformer over rows of time with adaLN-Zero conditioning (DiT, Peebles and Xie 2023).

Tensors are (B batch, T rows, C channels); a row is a token of width d.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offdiff.core.attention import attention

NOISE_FEATURES = 256
NOISE_SCALE = 1000.0
"""Stretches c_noise = ln(sigma) / 4 to the range of the diffusion steps that DiT's sinusoids of
wavelengths 2 pi to 20,000 pi were made for."""
NORM_EPS = 1e-6


class DiT(nn.Module):
    """F(x; c_noise). At initialisation every block is the identity and the output zero.

    Parameters, for I inputs, O outputs, width d, depth L:
    L (18 d^2 + 15 d) + (I d + d) + (256 d + d + d^2 + d) + (2 d^2 + 2 d) + (O d + O).
    Queries and keys are scaled to RMS 1 per head, without learned gains.
    """

    skipped: frozenset[int] = frozenset()
    """Blocks that are left out, by number from 0; see `skips.skipping`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        depth: int,
        heads: int,
        causal: bool = False,
    ) -> None:
        """width: an even multiple of heads. causal: a row attends to itself and earlier rows."""
        super().__init__()
        if width % heads or width % 2:
            raise ValueError(f"width must be even and a multiple of {heads} heads, got {width}")
        self.tokens = nn.Linear(in_channels, width)
        self.embed = noise_layers(width)
        self.blocks = nn.ModuleList(Block(width, heads, causal) for _ in range(depth))
        self.modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, out_channels)
        initialise(self, self.embed, [self.head, self.modulation])

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """x (B, T, in_channels), c_noise (B,) -> (B, T, out_channels); any T >= 1."""
        embedding = self.embed(sinusoids(NOISE_SCALE * c_noise, NOISE_FEATURES))
        x = self.tokens(x)
        x = x + sinusoids(torch.arange(x.shape[1], device=x.device), x.shape[2])
        for k, block in enumerate(self.blocks):
            if k not in self.skipped:
                x = block(x, embedding)
        scale, shift = self.modulation(embedding).unsqueeze(1).chunk(2, dim=-1)
        out: Tensor = self.head(modulated_norm(x, scale, shift))
        return out


class Block(nn.Module):
    """x + gate * attention(norm(x)), then x + gate * perceptron(norm(x))."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.modulation = nn.Linear(width, 6 * width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.values = nn.Identity()  # a place for hooks that keep or replace them; see `editing`
        self.projection = nn.Linear(width, width)
        self.perceptron = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, T, d), embedding (B, d) -> (B, T, d)."""
        modulation = self.modulate(embedding)
        query, key, value = self.before_attention(x, modulation)
        mixed = attention(query, key, value, causal=self.causal)
        return self.after_attention(x, mixed, modulation)

    def modulate(self, embedding: Tensor) -> Sequence[Tensor]:
        """(B, d) -> scale, shift and gate of the attention, then of the perceptron, (B, 1, d)."""
        six: Tensor = self.modulation(embedding)
        return six.unsqueeze(1).chunk(6, dim=-1)

    def before_attention(
        self, x: Tensor, modulation: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, d) -> queries, keys and values, each (B, heads, T, d / heads)."""
        scale, shift, *_ = modulation
        joint = self.queries_keys_values(modulated_norm(x, scale, shift))
        query, key, value = joint.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = (F.rms_norm(t, t.shape[-1:], eps=NORM_EPS) for t in (query, key))
        return query, key, self.values(value)

    def after_attention(self, x: Tensor, mixed: Tensor, modulation: Sequence[Tensor]) -> Tensor:
        """(B, T, d) and the attention's values (B, heads, T, d / heads) -> (B, T, d)."""
        _, _, gate_1, scale_2, shift_2, gate_2 = modulation
        x = torch.addcmul(x, gate_1, self.projection(mixed.transpose(1, 2).flatten(-2)))
        return torch.addcmul(x, gate_2, self.perceptron(modulated_norm(x, scale_2, shift_2)))


def noise_layers(width: int) -> nn.Sequential:
    """Sinusoids of the noise level (B, 256) -> embedding (B, width)."""
    return nn.Sequential(
        nn.Linear(NOISE_FEATURES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
    )


def initialise(network: nn.Module, embed: nn.Module, zero: Iterable[nn.Module]) -> None:
    """adaLN-Zero: blocks begin as the identity. zero: further linear layers that begin at 0."""
    noise = set(embed.modules())
    for module in network.modules():
        if isinstance(module, nn.Linear):
            if module in noise:
                nn.init.normal_(module.weight, std=0.02)
            else:
                nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for linear in (*zero, *(m.modulation for m in network.modules() if isinstance(m, Block))):
        nn.init.zeros_(linear.get_parameter("weight"))


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """norm(x) * (1 + scale) + shift: x (B, T, d), scale and shift (B, 1, d)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), 1 + scale)


def sinusoids(position: Tensor, features: int) -> Tensor:
    """(N,) -> (N, features), cosines then sines; features even."""
    half = features // 2
    frequencies = 10_000.0 ** (-torch.arange(half, device=position.device) / half)
    angle = position.unsqueeze(-1) * frequencies
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
