"""A perceptron over whole windows: for short windows the cheapest denoiser on a CPU.

Tensors are (B batch, T rows, C channels) at the interface; inside, a window is one vector.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from offdiff.diffusion.unet import NoiseEmbedding


class WindowMLP(nn.Module):
    """F(x; c_noise): residual blocks on the flattened window; zero at initialisation."""

    def __init__(
        self, in_channels: int, out_channels: int, *, rows: int, width: int, depth: int
    ) -> None:
        """rows: T, of every window. width: a multiple of 8 from 16 on."""
        super().__init__()
        if width < 16 or width % 8:
            raise ValueError(f"width must be a multiple of 8 from 16 on, got {width}")
        self.shape = (rows, out_channels)
        self.embed = NoiseEmbedding(width)
        self.enter = nn.Linear(rows * in_channels, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.head = nn.Linear(width, rows * out_channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """x (B, T, in_channels), c_noise (B,) -> (B, T, out_channels)."""
        embedding = self.embed(c_noise)
        hidden = self.enter(x.flatten(1))
        for block in self.blocks:
            hidden = block(hidden, embedding)
        out: Tensor = self.head(F.layer_norm(hidden, hidden.shape[-1:])).unflatten(1, self.shape)
        return out


class ResidualBlock(nn.Module):
    """x + perceptron(norm(x) with the noise level)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, 2 * width)
        self.level = nn.Linear(width, 2 * width)
        self.second = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, width), embedding (B, width) -> (B, width)."""
        out: Tensor = x + self.second(F.gelu(self.first(self.norm(x)) + self.level(embedding)))
        return out
