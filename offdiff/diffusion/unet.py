"""The one-dimensional U-Net of Policy-Guided Diffusion (Jackson et al. 2024), over rows of time.

Tensors are (B batch, T rows, C channels) throughout, channels last: convolutions are then single
matrix products and statistics per row reduce over the last axis.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 8
GROUP_NORM_EPS = 1e-6  # Flax's; torch has 1e-5
TRUNCATED_STD = 0.87962566103423978  # of a standard normal cut at +-2


class UNet(nn.Module):
    """F(x; c_noise): widths double and rows halve from block to block, skips join equal lengths.

    At even lengths as the authors' code. Where a length is odd, they drop the last row on the way
    down and stretch the rest over it on the way up; here it is pooled alone and keeps its place.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        blocks: int = 3,
        row_norm: bool = True,
    ) -> None:
        """width: of the first block, a multiple of 8 from 32 on. row_norm: see `GroupNorm`."""
        super().__init__()
        if width < 32 or width % GROUPS:  # below, a row's groups of 2 would become +-1
            raise ValueError(f"width must be a multiple of {GROUPS} from 32 on, got {width}")
        if blocks < 1:
            raise ValueError(f"blocks must be at least 1, got {blocks}")
        widths = [width * 2**i for i in range(blocks)]
        self.embed = NoiseEmbedding(width)
        self.encoder = nn.ModuleList(
            EncoderBlock(inputs, outputs, width, row_norm)
            for inputs, outputs in zip([in_channels, *widths], widths, strict=False)
        )
        self.decoder = nn.ModuleList(
            DecoderBlock(outputs, width, row_norm) for outputs in reversed(widths[:-1])
        )
        self.head = RowConvolution(width, out_channels, kernel=1)
        self.apply(_initialise)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """x (B, T, in_channels), c_noise (B,) -> (B, T, out_channels); any T >= 1."""
        embedding = self.embed(c_noise)
        skips: list[Tensor] = []
        for i, block in enumerate(self.encoder):
            x = block(halve(x) if i else x, embedding)
            skips.append(x)
        skips.pop()  # the last block feeds the decoder; the authors also pool it, and drop that
        for block in self.decoder:
            x = block(x, skips.pop(), embedding)
        out: Tensor = self.head(x)
        return out


class EncoderBlock(nn.Module):
    """Two convolutions at one length; the noise level enters between them."""

    def __init__(self, inputs: int, outputs: int, embedding: int, row_norm: bool) -> None:
        super().__init__()
        self.first = ConvolutionLayer(inputs, outputs, 3, row_norm, embedding)
        self.second = ConvolutionLayer(outputs, outputs, 3, row_norm)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, T, inputs), embedding (B, embedding) -> (B, T, outputs)."""
        out: Tensor = self.second(self.first(x, embedding))
        return out


class DecoderBlock(nn.Module):
    """Doubles the rows, halves the channels, then merges the encoder's output of that length."""

    def __init__(self, outputs: int, embedding: int, row_norm: bool) -> None:
        super().__init__()
        self.up = ConvolutionLayer(2 * outputs, outputs, 2, row_norm, embedding)
        self.first = ConvolutionLayer(2 * outputs, outputs, 3, row_norm)
        self.second = ConvolutionLayer(outputs, outputs, 3, row_norm)

    def forward(self, x: Tensor, skip: Tensor, embedding: Tensor) -> Tensor:
        """x (B, ceil(T / 2), 2 * outputs), skip (B, T, outputs) -> (B, T, outputs)."""
        x = x.repeat_interleave(2, dim=1)[:, : skip.shape[1]]
        x = self.up(x, embedding)
        out: Tensor = self.second(self.first(torch.cat([x, skip], dim=-1)))
        return out


class ConvolutionLayer(nn.Module):
    """relu(norm(convolution(x) + shift(embedding)))."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, row_norm: bool, embedding: int = 0
    ) -> None:
        """embedding: its width; 0 for a layer that does not see the noise level."""
        super().__init__()
        self.convolution = RowConvolution(inputs, outputs, kernel)
        self.shift = nn.Linear(embedding, outputs) if embedding else None
        self.norm = GroupNorm(outputs, row_norm)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """x (B, T, inputs), embedding (B, embedding) -> (B, T, outputs), >= 0."""
        x = self.convolution(x)
        if self.shift is not None:
            x += self.shift(embedding).unsqueeze(1)
        out: Tensor = self.norm(x)
        return out.relu_()


class RowConvolution(nn.Linear):
    """Convolution over rows that keeps their number: one product with neighbours side by side.

    On CPU twice as fast as `nn.Conv1d`, forward and backward. The weight is (outputs, kernel *
    inputs), a Flax kernel (kernel, inputs, outputs) flattened and transposed. An even kernel looks
    one row further ahead than back.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(kernel * inputs, outputs)
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, inputs) -> (B, T, outputs); rows outside count as zeros."""
        rows, before = x.shape[1], (self.kernel - 1) // 2
        if self.kernel > 1:
            x = F.pad(x, (0, 0, before, self.kernel - 1 - before))
            x = torch.cat([x[:, i : i + rows] for i in range(self.kernel)], dim=-1)
        return super().forward(x)


class GroupNorm(nn.Module):
    """Standardises groups of channels, then scales and shifts every channel.

    per_row: statistics of each row by itself, as the authors' network has them: Flax takes the
    first axis of the (T, C) arrays under their vmap for a batch. Otherwise over all rows, as in
    `nn.GroupNorm`.
    """

    def __init__(self, channels: int, per_row: bool) -> None:
        super().__init__()
        self.per_row = per_row
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, channels) -> the same shape."""
        if not self.per_row:
            by_channel = x.transpose(1, 2)
            return F.group_norm(
                by_channel, GROUPS, self.weight, self.bias, GROUP_NORM_EPS
            ).transpose(1, 2)
        # equals F.group_norm of (B * T, C), at half its time on CPU
        groups = x.unflatten(-1, (GROUPS, -1))
        standardised = F.layer_norm(groups, groups.shape[-1:], eps=GROUP_NORM_EPS)
        return torch.addcmul(self.bias, standardised.flatten(-2), self.weight)


class NoiseEmbedding(nn.Module):
    """Sinusoids of the noise level through a perceptron, ready for linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width // 4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        half = width // 8
        exponents = torch.arange(half) / (half - 1)
        self.register_buffer("frequencies", 10_000.0**-exponents, persistent=False)
        self.frequencies: Tensor

    def forward(self, c_noise: Tensor) -> Tensor:
        """(B,) -> (B, width)."""
        angle = c_noise.unsqueeze(-1) * self.frequencies
        out: Tensor = self.layers(torch.cat([angle.sin(), angle.cos()], dim=-1))
        return out


def halve(x: Tensor) -> Tensor:
    """Maxima of pairs of rows: (B, T, C) >= 0 -> (B, ceil(T / 2), C); an odd last row stays."""
    return torch.maximum(x[:, ::2], F.pad(x[:, 1::2], (0, 0, 0, x.shape[1] % 2)))


def _initialise(module: nn.Module) -> None:
    """Flax's defaults: LeCun normal weights (variance 1 / inputs, cut at 2 sigma), zero biases."""
    if isinstance(module, nn.Linear):
        std = 1 / (math.sqrt(module.in_features) * TRUNCATED_STD)
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(module.bias)
