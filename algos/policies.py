"""Policy networks as they are deployed: plain torch modules.

Dimension letters: B batch, O observation, A action.
"""

import torch
from torch import Tensor, nn


class TanhMean(nn.Module):
    """tanh of the first `action_dim` outputs of a policy network."""

    def __init__(self, trunk: nn.Sequential, action_dim: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.action_dim = action_dim

    def forward(self, obs: Tensor) -> Tensor:
        """(B, O) -> (B, A) in (-1, 1)."""
        return torch.tanh(self.trunk(obs)[..., : self.action_dim])


class TanhMeanGaussian(TanhMean):
    """The same as the mean of a Gaussian whose spread does not depend on the state."""

    std: Tensor

    def __init__(self, trunk: nn.Sequential, std: Tensor) -> None:
        """std: (A,)."""
        super().__init__(trunk, len(std))
        self.register_buffer("std", std)

    def distribution(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """(B, O) -> mean and standard deviation, (B, A) each."""
        mean = self(obs)
        return mean, self.std.expand_as(mean)
