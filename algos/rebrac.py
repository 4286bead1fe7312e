"""ReBRAC: TD3 with imitation penalties on both actor and critic (Tarasov et al. 2023)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from offdiff.algos.losses import (
    bellman_target,
    critic_loss,
    rebrac_actor_loss,
    rebrac_next_value,
)
from offdiff.algos.nets import MLP, Critic, mlp_module
from offdiff.algos.policies import TanhMean
from offdiff.algos.td3 import ActorCritic
from offdiff.core.protocols import LearnerConfig
from offdiff.core.seeding import SeedStreams
from offdiff.core.types import Batch, Metrics, Spec


@dataclass(frozen=True, kw_only=True)
class ReBRACConfig(LearnerConfig):
    """ReBRAC at the paper's sizes for locomotion."""

    needs_next_action: ClassVar[bool] = True

    batch_size: int = 1024
    """Transitions per update."""
    actor_penalty: float = 0.01
    """Weight of |pi(s) - a|^2, summed over action dimensions, in the actor loss (beta 1)."""
    critic_penalty: float = 0.01
    """Weight of |a~ - a'|^2, summed over action dimensions, in the target (beta 2)."""
    discount: float = 0.99
    """Per step, in [0, 1)."""
    target_rate: float = 0.005
    """Polyak rate of all target networks, in (0, 1]."""
    actor_learning_rate: float = 1e-3
    """Of the policy, constant."""
    critic_learning_rate: float = 1e-3
    """Of the critics, constant."""
    policy_noise: float = 0.2
    """Standard deviation of the target policy's smoothing noise."""
    noise_clip: float = 0.5
    """Bound of that noise."""
    policy_delay: int = 2
    """Critic updates per update of policy and targets."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Hidden widths of policy and critics."""
    critic_layer_norm: bool = True
    """LayerNorm after each hidden ReLU of the critics."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.actor_penalty, self.critic_penalty) < 0:
            raise ValueError("actor_penalty and critic_penalty must be >= 0")

    def build(
        self, spec: Spec, *, random: SeedStreams, updates: int, device: torch.device
    ) -> "ReBRAC":
        """A learner at its first update."""
        return ReBRAC(self, spec, random, device)

    def network(self, spec: Spec) -> nn.Module:
        """An untrained policy of this shape."""
        return TanhMean(mlp_module((spec.obs_dim, *self.hidden, spec.action_dim)), spec.action_dim)


class ReBRAC:
    """TD3 with decoupled behaviour penalties.

    Differences from the paper: none known; ReLU comes before LayerNorm, as in the authors' code.
    """

    def __init__(
        self, config: ReBRACConfig, spec: Spec, random: SeedStreams, device: torch.device
    ) -> None:
        self.config = config
        sizes = (spec.obs_dim, *config.hidden, spec.action_dim)
        actor = MLP(sizes, len(random)).to(device).initialise(random, "small_head", 1e-3)
        critic = Critic(
            spec, config.hidden, len(random), members=2, layer_norm=config.critic_layer_norm
        )
        critic.net.to(device).initialise(random, "small_head", 3e-3)
        self.nets = ActorCritic(
            actor,
            critic,
            actor_learning_rate=config.actor_learning_rate,
            critic_learning_rate=config.critic_learning_rate,
            random=random,
        )

    def update(self, batch: Batch) -> Metrics:
        """One step of the critic; of the policy and the targets every `policy_delay` steps."""
        value, loss = self._step_critic(batch)
        if self.nets.policy_is_due(self.config.policy_delay):
            self._step_policy(batch)
        return {"critic_loss": loss, "value": value, "policy_loss": self.nets.policy_loss}

    def _step_critic(self, batch: Batch) -> tuple[Tensor, Tensor]:
        c, nets = self.config, self.nets
        next_action = nets.smoothed_action(batch.next_obs, c.policy_noise, c.noise_clip)
        q_next = nets.target_critic(batch.next_obs, next_action)
        next_value = rebrac_next_value(q_next, next_action, batch.next_action, c.critic_penalty)
        target = bellman_target(batch.reward, batch.terminal, next_value, c.discount)
        q = nets.critic(batch.obs, batch.action)
        loss = critic_loss(q, target)
        nets.critic_optimiser.minimise(loss.sum())
        return q.detach().mean((1, 2)), loss.detach()

    def _step_policy(self, batch: Batch) -> None:
        action = self.nets.act(batch.obs)
        q = self.nets.critic(batch.obs, action, frozen=True).amin(1)
        loss = rebrac_actor_loss(q, action, batch.action, self.config.actor_penalty)
        self.nets.step_policy(loss, self.config.target_rate)

    def policy(self, seed: int) -> nn.Module:
        """The policy of one seed."""
        return self.nets.policy(seed)

    def state_dict(self) -> dict[str, Tensor]:
        """Networks, targets and optimisers."""
        return self.nets.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` gave."""
        self.nets.load_state_dict(state)
