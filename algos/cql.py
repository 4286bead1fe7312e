"""Conservative Q-learning on a soft actor-critic (Kumar et al. 2020)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from offdiff.algos.losses import (
    bellman_target,
    cql_gap,
    critic_loss,
    tanh_gaussian_log_prob,
)
from offdiff.algos.nets import MLP, Critic, mlp_module, move_toward
from offdiff.algos.optim import Adam
from offdiff.algos.policies import TanhMean
from offdiff.algos.state import Leaf, Part, gather, scatter
from offdiff.core.protocols import LearnerConfig
from offdiff.core.seeding import SeedStreams
from offdiff.core.types import Batch, Metrics, Spec


@dataclass(frozen=True, kw_only=True)
class CQLConfig(LearnerConfig):
    """CQL(H) without Lagrange multiplier, at the paper's sizes for locomotion."""

    penalty: float = 10.0
    """Weight of the conservative term (5 or 10 in the paper), >= 0."""
    importance_sampling: bool = True
    """Subtract the samples' log densities, CQL(H); else CQL(rho)."""
    samples: int = 10
    """Actions drawn per state from each of: uniform, policy, policy at the next state."""
    max_target_backup: bool = False
    """Bootstrap from the best of `samples` actions instead of one."""
    entropy_backup: bool = False
    """Subtract the entropy term in the target (the official code does not)."""
    discount: float = 0.99
    """Per step, in [0, 1)."""
    target_rate: float = 0.005
    """Polyak rate of the target critics, in (0, 1]."""
    actor_learning_rate: float = 1e-4
    """Of the policy and its temperature, constant."""
    critic_learning_rate: float = 3e-4
    """Of the critics, constant."""
    log_std_min: float = -5.0
    """Lower clip of the policy's log standard deviation."""
    log_std_max: float = 2.0
    """Upper clip of the policy's log standard deviation."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Hidden widths of policy and critics."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.penalty < 0:
            raise ValueError(f"penalty must be >= 0, got {self.penalty}")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")

    def build(
        self, spec: Spec, *, random: SeedStreams, updates: int, device: torch.device
    ) -> "CQL":
        """A learner at its first update."""
        return CQL(self, spec, random, device)

    def network(self, spec: Spec) -> nn.Module:
        """An untrained policy of this shape."""
        sizes = (spec.obs_dim, *self.hidden, 2 * spec.action_dim)
        return TanhMean(mlp_module(sizes), spec.action_dim)


class CQL:
    """Soft actor-critic whose critics are pushed down on sampled actions and up on the data's.

    Differences from the paper: no Lagrange multiplier and no warm start by cloning. Every loss is
    taken at the parameters before the step, in the order temperature, policy, critic.
    """

    def __init__(
        self, config: CQLConfig, spec: Spec, random: SeedStreams, device: torch.device
    ) -> None:
        self.config, self.spec, self.random = config, spec, random
        seeds = len(random)
        sizes = (spec.obs_dim, *config.hidden, 2 * spec.action_dim)
        self.actor = MLP(sizes, seeds).to(device).initialise(random, "small_head", 3e-3)
        self.critic = Critic(spec, config.hidden, seeds, members=2)
        self.critic.net.to(device).initialise(random, "small_head", 3e-3)
        self.target_critic = self.critic.target()
        self.log_alpha = Leaf(torch.zeros(seeds, device=device))
        self.actor_optimiser = Adam([self.actor.flat], config.actor_learning_rate)
        self.alpha_optimiser = Adam([self.log_alpha.tensor], config.actor_learning_rate)
        self.critic_optimiser = Adam([self.critic.net.flat], config.critic_learning_rate)
        self.parts: dict[str, Part] = {
            "actor": self.actor,
            "critic": self.critic.net,
            "target_critic": self.target_critic.net,
            "log_alpha": self.log_alpha,
            "actor_optimiser": self.actor_optimiser,
            "alpha_optimiser": self.alpha_optimiser,
            "critic_optimiser": self.critic_optimiser,
        }

    def update(self, batch: Batch) -> Metrics:
        """One step of temperature, policy and critics, and of the target critics."""
        samples, target = self._sample_and_target(batch)
        alpha = self.log_alpha.tensor.detach().exp()

        action, log_prob = self._act(self.actor(batch.obs), 1)
        q = self.critic(batch.obs, action, frozen=True).amin(1)
        policy_loss = (alpha.unsqueeze(-1) * log_prob - q).mean(-1)
        # Target entropy -A: the temperature rises while the policy is more certain than that.
        surplus = log_prob.detach().mean(-1) - self.spec.action_dim
        self.alpha_optimiser.minimise(-(self.log_alpha.tensor * surplus).sum())
        self.actor_optimiser.minimise(policy_loss.sum())

        loss, gap, value = self._critic_loss(batch, target, *samples)
        self.critic_optimiser.minimise(loss.sum())
        move_toward(self.target_critic.net, self.critic.net, self.config.target_rate)
        return {
            "critic_loss": loss.detach(),
            "policy_loss": policy_loss.detach(),
            "gap": gap,
            "value": value,
            "alpha": alpha,
            "entropy": -log_prob.detach().mean(-1),
        }

    @torch.no_grad()
    def _sample_and_target(self, batch: Batch) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Actions (S, 3NB, A), sample-major, log densities (S, 3NB) and the target (S, B)."""
        c, (seeds, size, dims) = self.config, batch.action.shape
        outputs = self.actor(torch.cat((batch.obs, batch.next_obs), dim=1))
        here, there = outputs.split(size, dim=1)
        current, current_density = self._act(here, c.samples)
        following, following_density = self._act(there, c.samples)
        uniform = self.random.uniform(c.samples * size, dims, low=-1.0, high=1.0)
        uniform_density = torch.full_like(current_density, -dims * math.log(2))
        actions = torch.cat((uniform, following, current), dim=1)
        densities = torch.cat((uniform_density, following_density, current_density), dim=1)

        draws = c.samples if c.max_target_backup else 1
        backup, backup_density = following[:, : draws * size], following_density[:, : draws * size]
        q = self.target_critic(batch.next_obs.repeat(1, draws, 1), backup).amin(1)
        if c.entropy_backup:
            q = q - self.log_alpha.tensor.exp().unsqueeze(-1) * backup_density
        next_value = q.view(seeds, draws, size).amax(1)
        target = bellman_target(batch.reward, batch.terminal, next_value, c.discount)
        return (actions, densities), target

    def _critic_loss(
        self, batch: Batch, target: Tensor, actions: Tensor, densities: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, mean gap and mean value of the data, each (S,)."""
        c, size = self.config, batch.action.shape[1]
        sets = 3 * c.samples
        # One evaluation for the data's action and all samples: (1 + 3N) B rows per state batch.
        q = self.critic(batch.obs.repeat(1, 1 + sets, 1), torch.cat((batch.action, actions), dim=1))
        q_data, q_sampled = q[..., :size], q[..., size:].unflatten(-1, (sets, size)).mT
        density = densities.view(-1, 1, sets, size).mT if c.importance_sampling else None
        gap = cql_gap(q_sampled, density, q_data).mean(-1)  # (S, E)
        loss = critic_loss(q_data, target) + c.penalty * gap.sum(-1)
        return loss, gap.detach().mean(-1), q_data.detach().mean((1, 2))

    def _act(self, outputs: Tensor, draws: int) -> tuple[Tensor, Tensor]:
        """(S, B, 2A) outputs -> `draws` actions per row (S, draws * B, A) and log densities."""
        mean, log_std = outputs.repeat(1, draws, 1).chunk(2, dim=-1)
        log_std = log_std.clamp(self.config.log_std_min, self.config.log_std_max)
        pre_tanh = mean + log_std.exp() * self.random.normal(*mean.shape[1:])
        return torch.tanh(pre_tanh), tanh_gaussian_log_prob(pre_tanh, mean, log_std)

    def policy(self, seed: int) -> nn.Module:
        """The mean policy, tanh of the Gaussian's mean, of one seed."""
        return TanhMean(self.actor.module(seed), self.spec.action_dim)

    def state_dict(self) -> dict[str, Tensor]:
        """Networks, target, temperature and optimisers."""
        return gather(self.parts)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` gave."""
        scatter(self.parts, state)
