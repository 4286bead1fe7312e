"""TD3+BC: TD3 whose policy also imitates the data (Fujimoto and Gu 2021)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from offdiff.algos.losses import bellman_target, critic_loss, td3bc_actor_loss
from offdiff.algos.nets import MLP, Critic, mlp_module
from offdiff.algos.policies import TanhMean
from offdiff.algos.td3 import ActorCritic
from offdiff.core.protocols import LearnerConfig
from offdiff.core.seeding import SeedStreams
from offdiff.core.types import Batch, Metrics, Spec


@dataclass(frozen=True, kw_only=True)
class TD3BCConfig(LearnerConfig):
    """TD3+BC at the paper's sizes."""

    scale_observations: bool = True
    """Standardise observations with the data's mean and standard deviation."""
    alpha: float = 2.5
    """Weight of the value term against imitation, > 0."""
    discount: float = 0.99
    """Per step, in [0, 1)."""
    target_rate: float = 0.005
    """Polyak rate of all target networks, in (0, 1]."""
    learning_rate: float = 3e-4
    """Of policy and critic, constant."""
    policy_noise: float = 0.2
    """Standard deviation of the target policy's smoothing noise."""
    noise_clip: float = 0.5
    """Bound of that noise."""
    policy_delay: int = 2
    """Critic updates per update of policy and targets."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden widths of policy and critics."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha <= 0:
            raise ValueError(f"alpha must be positive, got {self.alpha}")

    def build(
        self, spec: Spec, *, random: SeedStreams, updates: int, device: torch.device
    ) -> "TD3BC":
        """A learner at its first update."""
        return TD3BC(self, spec, random, device)

    def network(self, spec: Spec) -> nn.Module:
        """An untrained policy of this shape."""
        return TanhMean(mlp_module((spec.obs_dim, *self.hidden, spec.action_dim)), spec.action_dim)


class TD3BC:
    """Twin critics, target smoothing, delayed policy, and a squared-error imitation term.

    Differences from the paper: none known. The actor loss averages the imitation term over action
    dimensions and normalises by the batch's mean |Q|, as the authors' code does.
    """

    def __init__(
        self, config: TD3BCConfig, spec: Spec, random: SeedStreams, device: torch.device
    ) -> None:
        self.config = config
        sizes = (spec.obs_dim, *config.hidden, spec.action_dim)
        actor = MLP(sizes, len(random)).to(device).initialise(random, "torch")
        critic = Critic(spec, config.hidden, len(random), members=2)
        critic.net.to(device).initialise(random, "torch")
        self.nets = ActorCritic(
            actor,
            critic,
            actor_learning_rate=config.learning_rate,
            critic_learning_rate=config.learning_rate,
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
        next_value = nets.target_critic(batch.next_obs, next_action).amin(1)
        target = bellman_target(batch.reward, batch.terminal, next_value, c.discount)
        q = nets.critic(batch.obs, batch.action)
        loss = critic_loss(q, target)
        nets.critic_optimiser.minimise(loss.sum())
        return q.detach().mean((1, 2)), loss.detach()

    def _step_policy(self, batch: Batch) -> None:
        action = self.nets.act(batch.obs)
        q = self.nets.critic.first(batch.obs, action)
        loss = td3bc_actor_loss(q, action, batch.action, self.config.alpha)
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
