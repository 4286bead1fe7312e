"""A trained policy as it is used: raw observations in, the environment's actions out.

Dimension letters: B batch, O observation, A action.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class DeployedPolicy(nn.Module):
    """A network between the scaling of its observations and that of its actions.

    It is a `Policy` (`act`, in [-1, 1]), an exportable module (`forward`, in the environment's
    units) and, through `predict`, usable wherever stable-baselines3 takes a policy.
    """

    obs_mean: Tensor
    obs_std: Tensor
    action_low: Tensor
    action_high: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        obs_mean: Tensor,
        obs_std: Tensor,
        action_low: Tensor,
        action_high: Tensor,
    ) -> None:
        """network: scaled observations (B, O) -> (B, A) in [-1, 1]. Others: (O,) (O,) (A,) (A,)."""
        super().__init__()
        self.network = network
        self.register_buffer("obs_mean", obs_mean)
        self.register_buffer("obs_std", obs_std)
        self.register_buffer("action_low", action_low)
        self.register_buffer("action_high", action_high)
        self.eval()

    def forward(self, obs: Tensor) -> Tensor:
        """(B, O) in the environment's units -> (B, A) inside the environment's action box."""
        unit = self.unit_action(obs)
        return self.action_low + (unit + 1) / 2 * (self.action_high - self.action_low)

    def unit_action(self, obs: Tensor) -> Tensor:
        """(B, O) in the environment's units -> (B, A) in [-1, 1]; differentiable."""
        action: Tensor = self.network((obs - self.obs_mean) / self.obs_std)
        return action.clamp(-1, 1)

    @torch.no_grad()
    def act(self, obs: Tensor, /) -> Tensor:
        """The `Policy` contract: (B, O) -> (B, A) in [-1, 1]."""
        return self.unit_action(obs)

    def reset(self, which: Tensor, /) -> None:
        """Nothing to forget between episodes."""

    @torch.no_grad()
    def predict(
        self,
        observation: NDArray[Any],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], tuple[NDArray[Any], ...] | None]:
        """stable-baselines3's interface: (B, O) or (O,) -> actions in the environment's units.

        The policy is deterministic, whatever `deterministic` asks; `state` passes through.
        """
        obs = torch.as_tensor(np.asarray(observation), dtype=torch.float32)
        action = self(obs.reshape(-1, self.obs_mean.shape[0]).to(self.obs_mean.device))
        shape = (*obs.shape[:-1], self.action_low.shape[0])
        return action.reshape(shape).cpu().numpy(), state


class GaussianDeployedPolicy(DeployedPolicy):
    """A deployed policy that also knows how its actions spread: a `GaussianPolicy`.

    It still acts by its mean; the spread serves guidance and likelihoods.
    """

    @torch.no_grad()
    def distribution(self, obs: Tensor, /) -> tuple[Tensor, Tensor]:
        """(B, O) -> mean and standard deviation, (B, A) each, of actions in [-1, 1]."""
        moments: tuple[Tensor, Tensor] = self.network.distribution(  # type: ignore[operator]
            (obs - self.obs_mean) / self.obs_std
        )
        return moments


def deploy(
    network: nn.Module,
    *,
    obs_mean: Tensor,
    obs_std: Tensor,
    action_low: Tensor,
    action_high: Tensor,
) -> DeployedPolicy:
    """A deployed policy, Gaussian if the network has a `distribution`; see `DeployedPolicy`."""
    kind = GaussianDeployedPolicy if hasattr(network, "distribution") else DeployedPolicy
    return kind(
        network, obs_mean=obs_mean, obs_std=obs_std, action_low=action_low, action_high=action_high
    )
