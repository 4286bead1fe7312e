"""The temporal U-Net of Diffuser (Janner et al. 2022), which its successors plan with too.

Tensors are (B batch, T rows, C channels) throughout, channels last, as in `unet`.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offdiff.diffusion.unet import GROUPS, RowConvolution

KERNEL = 5
WAVELENGTHS = 10_000.0


class TemporalUNet(nn.Module):
    """F(x; level, condition): residual blocks, rows halve on the way down, skips on the way up.

    Two blocks per level and two in the middle. Level and condition are embedded, concatenated, and
    added inside every block. Between levels rows are halved: T is filled up with copies of the last
    row to a multiple of 2^(levels - 1), and cut again.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        multipliers: tuple[int, ...] = (1, 2, 4, 8),
        conditional: bool = False,
        level_scale: float = 1.0,
    ) -> None:
        """width: of the first level, a multiple of 8. multipliers: of the width, level by level.

        conditional: may be given a number per window. level_scale: stretches levels to the range of
        the diffusion steps 0 to 100 that the sinusoids were made for.
        """
        super().__init__()
        if width < GROUPS or width % GROUPS:
            raise ValueError(f"width must be a positive multiple of {GROUPS}, got {width}")
        if not multipliers or min(multipliers) < 1:
            raise ValueError(f"multipliers must be positive and at least one, got {multipliers}")
        widths = [width * m for m in multipliers]
        embedding = width * (1 + conditional)
        self.stride = 2 ** (len(widths) - 1)
        self.embed_level = LevelEmbedding(width, level_scale)
        self.embed_condition = _perceptron(1, width) if conditional else None
        self.down = nn.ModuleList(
            BlockPair(i, o, embedding) for i, o in pairwise([in_channels, *widths])
        )
        self.halvings = nn.ModuleList(HalveRows(w) for w in widths[:-1])
        self.middle = BlockPair(widths[-1], widths[-1], embedding)
        rising = list(reversed(widths))
        self.up = nn.ModuleList(BlockPair(2 * i, o, embedding) for i, o in pairwise(rising))
        self.doublings = nn.ModuleList(DoubleRows(w) for w in rising[1:])
        self.last = ConvolutionLayer(widths[0], widths[0])
        self.head = nn.Linear(widths[0], out_channels)

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        condition: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, in_channels), level (B,) -> (B, T, out_channels); any T >= 1.

        condition: (B,) or None. keep: (B,) bool, False for the null condition, which is a zero
        vector in place of the embedding; None keeps all.
        """
        embedding = self._embed(level, condition, keep)
        rows = x.shape[1]
        if missing := -rows % self.stride:
            x = torch.cat((x, x[:, -1:].expand(-1, missing, -1)), dim=1)
        skips: list[Tensor] = []
        for i, block in enumerate(self.down):
            x = block(self.halvings[i - 1](x) if i else x, embedding)
            skips.append(x)
        x = self.middle(x, embedding)
        # The skip of the first level joins nothing: Diffuser's network has one level less upwards.
        for block, double in zip(self.up, self.doublings, strict=True):
            x = double(block(torch.cat((x, skips.pop()), dim=-1), embedding))
        out: Tensor = self.head(self.last(x))
        return out[:, :rows]

    def _embed(self, level: Tensor, condition: Tensor | None, keep: Tensor | None) -> Tensor:
        embedding: Tensor = self.embed_level(level)
        if self.embed_condition is not None:
            if condition is None:
                added = torch.zeros_like(embedding)
            else:
                added = self.embed_condition(condition[:, None])
                if keep is not None:
                    added = added * keep[:, None]
            embedding = torch.cat((embedding, added), dim=-1)
        elif condition is not None:
            raise ValueError("this network was built without a condition; use conditional=True")
        return F.mish(embedding)


class BlockPair(nn.Module):
    """Two residual blocks, the first of which changes the number of channels."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.first = ResidualBlock(inputs, outputs, embedding)
        self.second = ResidualBlock(outputs, outputs, embedding)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, T, inputs), embedding (B, embedding) -> (B, T, outputs)."""
        out: Tensor = self.second(self.first(x, embedding), embedding)
        return out


class ResidualBlock(nn.Module):
    """x + second(first(x) + shift(embedding))."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.first = ConvolutionLayer(inputs, outputs)
        self.shift = nn.Linear(embedding, outputs)
        self.second = ConvolutionLayer(outputs, outputs)
        self.skip = nn.Linear(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, T, inputs), embedding (B, embedding) -> (B, T, outputs)."""
        hidden = self.first(x) + self.shift(embedding)[:, None]
        out: Tensor = self.second(hidden) + self.skip(x)
        return out


class ConvolutionLayer(nn.Module):
    """mish(norm(convolution(x))), statistics over all rows."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = RowConvolution(inputs, outputs, KERNEL)
        self.norm = nn.GroupNorm(GROUPS, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, inputs) -> (B, T, outputs)."""
        normed = self.norm(self.convolution(x).transpose(1, 2)).transpose(1, 2)
        # Contiguous again: the next convolution puts neighbours side by side, slow across strides.
        return F.mish(normed.contiguous())


class HalveRows(nn.Linear):
    """Convolution of kernel 3 and stride 2: (B, T, C) -> (B, T / 2, C), T even."""

    def __init__(self, channels: int) -> None:
        super().__init__(3 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Row i of the output sees rows 2i - 1 to 2i + 1."""
        rows = x.shape[1]
        x = F.pad(x, (0, 0, 1, 1))
        return super().forward(torch.cat([x[:, i : i + rows : 2] for i in range(3)], dim=-1))


class DoubleRows(nn.Module):
    """Transposed convolution of kernel 4 and stride 2: (B, T, C) -> (B, 2 T, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.ConvTranspose1d(channels, channels, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Rows 2i and 2i + 1 of the output see row i and its neighbours."""
        out: Tensor = self.convolution(x.transpose(1, 2)).transpose(1, 2)
        return out


class LevelEmbedding(nn.Module):
    """Sinusoids of the level through a perceptron."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.layers = _perceptron(width, width)
        half = width // 2
        exponents = torch.arange(half) / (half - 1)
        self.register_buffer("frequencies", scale * WAVELENGTHS**-exponents, persistent=False)
        self.frequencies: Tensor

    def forward(self, level: Tensor) -> Tensor:
        """(B,) -> (B, width)."""
        angle = level[:, None] * self.frequencies
        out: Tensor = self.layers(torch.cat((angle.sin(), angle.cos()), dim=-1))
        return out


def _perceptron(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 2 * width), nn.Mish(), nn.Linear(2 * width, width))
