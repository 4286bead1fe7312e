"""Implicit Q-learning: expectile values, advantage-weighted policy (Kostrikov et al. 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from offdiff.algos.losses import (
    advantage_weight,
    bellman_target,
    critic_loss,
    expectile_loss,
    gaussian_log_prob,
)
from offdiff.algos.nets import MLP, Critic, mlp_module, move_toward
from offdiff.algos.optim import Adam, minimise_apart
from offdiff.algos.policies import TanhMeanGaussian
from offdiff.algos.state import Leaf, Part, gather, scatter
from offdiff.core.protocols import LearnerConfig
from offdiff.core.seeding import SeedStreams
from offdiff.core.types import Batch, Metrics, Spec


@dataclass(frozen=True, kw_only=True)
class IQLConfig(LearnerConfig):
    """IQL at the paper's sizes."""

    scale_observations: bool = True
    """Standardise observations, as the CORL library does; the paper does not."""
    expectile: float = 0.7
    """Of the value regression, in [0.5, 1)."""
    inverse_temperature: float = 3.0
    """Multiplies the advantage in the policy's weights, >= 0."""
    maximum_weight: float = 100.0
    """Clip of those weights."""
    discount: float = 0.99
    """Per step, in [0, 1)."""
    target_rate: float = 0.005
    """Polyak rate of the target critics, in (0, 1]."""
    learning_rate: float = 3e-4
    """Of all three networks; the policy's decays to zero along a cosine over the run."""
    dropout: float = 0.0
    """Of the policy's hidden layers, in [0, 1)."""
    log_std_min: float = -5.0
    """Lower clip of the policy's log standard deviation."""
    log_std_max: float = 2.0
    """Upper clip of the policy's log standard deviation."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden widths of all networks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.5 <= self.expectile < 1:
            raise ValueError(f"expectile must lie in [0.5, 1), got {self.expectile}")
        if self.inverse_temperature < 0:
            raise ValueError(f"inverse_temperature must be >= 0, got {self.inverse_temperature}")

    def build(
        self, spec: Spec, *, random: SeedStreams, updates: int, device: torch.device
    ) -> "IQL":
        """A learner at its first update."""
        return IQL(self, spec, random, updates, device)

    def network(self, spec: Spec) -> nn.Module:
        """An untrained policy of this shape."""
        trunk = mlp_module((spec.obs_dim, *self.hidden, spec.action_dim))
        return TanhMeanGaussian(trunk, torch.ones(spec.action_dim))


class ImplicitValues:
    """V by expectile regression on the target Q, Q by Bellman targets from V, for S seeds.

    The policy has no part in it. All losses are taken at the parameters before the update.
    """

    def __init__(
        self,
        spec: Spec,
        hidden: Sequence[int],
        random: SeedStreams,
        device: torch.device,
        *,
        learning_rate: float,
        expectile: float,
        discount: float,
        target_rate: float,
    ) -> None:
        """Networks at their first update. The rest as in `IQLConfig`."""
        seeds = len(random)
        self.expectile, self.discount, self.target_rate = expectile, discount, target_rate
        self.value = MLP((spec.obs_dim, *hidden, 1), seeds)
        self.value.to(device).initialise(random, "orthogonal")
        self.critic = Critic(spec, hidden, seeds, members=2)
        self.critic.net.to(device).initialise(random, "orthogonal")
        self.target_critic = self.critic.target()
        self.value_optimiser = Adam([self.value.flat], learning_rate)
        self.critic_optimiser = Adam([self.critic.net.flat], learning_rate)
        self.parts: dict[str, Part] = {
            "value": self.value,
            "critic": self.critic.net,
            "target_critic": self.target_critic.net,
            "value_optimiser": self.value_optimiser,
            "critic_optimiser": self.critic_optimiser,
        }

    def update(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """One step of V, Q and the target Q. Gives the advantages (S, B) and the metrics."""
        with torch.no_grad():
            target_q = self.target_critic(batch.obs, batch.action).amin(1)
            next_value = self.value(batch.next_obs).squeeze(-1)
        value = self.value(batch.obs).squeeze(-1)
        advantage = target_q - value
        value_loss = expectile_loss(advantage, self.expectile)
        target = bellman_target(batch.reward, batch.terminal, next_value, self.discount)
        loss = critic_loss(self.critic(batch.obs, batch.action), target)
        minimise_apart(
            (value_loss.sum(), loss.sum()), (self.value_optimiser, self.critic_optimiser)
        )
        move_toward(self.target_critic.net, self.critic.net, self.target_rate)
        return advantage.detach(), {
            "value_loss": value_loss.detach(),
            "critic_loss": loss.detach(),
            "value": value.detach().mean(-1),
            "advantage": advantage.detach().mean(-1),
        }


class IQL:
    """V and Q as `ImplicitValues` learns them, policy by weighted likelihood.

    Differences from the paper: the three losses are taken at the parameters before the step, as in
    the CORL library; the authors step V first and use the new V in the other two.
    """

    def __init__(
        self, config: IQLConfig, spec: Spec, random: SeedStreams, updates: int, device: torch.device
    ) -> None:
        self.config, self.spec, self.random = config, spec, random
        seeds, rate = len(random), config.learning_rate
        self.values = ImplicitValues(
            spec,
            config.hidden,
            random,
            device,
            learning_rate=rate,
            expectile=config.expectile,
            discount=config.discount,
            target_rate=config.target_rate,
        )
        self.actor = MLP((spec.obs_dim, *config.hidden, spec.action_dim), seeds)
        self.actor.to(device).initialise(random, "orthogonal")
        self.log_std = Leaf(torch.zeros(seeds, 1, spec.action_dim, device=device))
        policy_tensors = [self.actor.flat, self.log_std.tensor]
        self.actor_optimiser = Adam(policy_tensors, rate, cosine_updates=updates)
        self.parts: dict[str, Part] = {
            **self.values.parts,
            "actor": self.actor,
            "log_std": self.log_std,
            "actor_optimiser": self.actor_optimiser,
        }

    def update(self, batch: Batch) -> Metrics:
        """One step of value and critic, of the target critic, and of the policy."""
        advantage, metrics = self.values.update(batch)
        metrics["policy_loss"] = self._step_policy(batch, advantage)
        return metrics

    def _step_policy(self, batch: Batch, advantage: Tensor) -> Tensor:
        c = self.config
        weight = advantage_weight(advantage, c.inverse_temperature, c.maximum_weight)
        mean = torch.tanh(self.actor(batch.obs, dropout=self._dropout_masks(batch.obs.shape[1])))
        log_std = self.log_std.tensor.clamp(c.log_std_min, c.log_std_max)
        loss = -(weight * gaussian_log_prob(batch.action, mean, log_std)).mean(-1)
        self.actor_optimiser.minimise(loss.sum())
        return loss.detach()

    def _dropout_masks(self, n: int) -> list[Tensor]:
        keep = 1 - self.config.dropout
        if keep == 1:
            return []
        return [(self.random.uniform(n, h) < keep) / keep for h in self.config.hidden]

    def policy(self, seed: int) -> nn.Module:
        """The mean policy of one seed, with its spread."""
        c = self.config
        std = self.log_std.tensor[seed, 0].detach().clamp(c.log_std_min, c.log_std_max).exp()
        return TanhMeanGaussian(self.actor.module(seed), std)

    def state_dict(self) -> dict[str, Tensor]:
        """Networks, target and optimisers."""
        return gather(self.parts)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` gave."""
        scatter(self.parts, state)
