"""What descendants of TD3 share: actor, twin critics, targets, smoothing (Fujimoto et al. 2018).

Dimension letters: S seeds, B batch, O observation, A action.
"""

import torch
from torch import Tensor, nn

from offdiff.algos.nets import MLP, Critic, move_toward
from offdiff.algos.optim import Adam
from offdiff.algos.policies import TanhMean
from offdiff.algos.state import Part, gather, scatter
from offdiff.core.seeding import SeedStreams


class ActorCritic:
    """A deterministic actor and its critics, with slow copies and optimisers."""

    def __init__(
        self,
        actor: MLP,
        critic: Critic,
        *,
        actor_learning_rate: float,
        critic_learning_rate: float,
        random: SeedStreams,
    ) -> None:
        """actor, critic: initialised, on their device. random: draws the smoothing noise."""
        self.actor, self.critic, self.random = actor, critic, random
        self.target_actor = actor.clone()
        self.target_critic = critic.target()
        self.actor_optimiser = Adam([actor.flat], actor_learning_rate)
        self.critic_optimiser = Adam([critic.net.flat], critic_learning_rate)
        self._parts: dict[str, Part] = {
            "actor": actor,
            "critic": critic.net,
            "target_actor": self.target_actor,
            "target_critic": self.target_critic.net,
            "actor_optimiser": self.actor_optimiser,
            "critic_optimiser": self.critic_optimiser,
        }
        self.policy_loss = torch.zeros(len(random), device=actor.flat.device)
        """(S,) of the latest policy step; reported between steps, too."""

    def act(self, obs: Tensor) -> Tensor:
        """(S, B, O) -> (S, B, A), the actor's actions."""
        return torch.tanh(self.actor(obs))

    @torch.no_grad()
    def smoothed_action(self, obs: Tensor, noise: float, clip: float) -> Tensor:
        """(S, B, O) -> (S, B, A), the target actor's actions plus clipped normal noise."""
        action = torch.tanh(self.target_actor(obs))
        disturbance = self.random.normal(*action.shape[1:]).mul_(noise).clamp_(-clip, clip)
        return (action + disturbance).clamp_(-1, 1)

    def policy_is_due(self, delay: int) -> bool:
        """True at every `delay`-th update, asked after the critic's step."""
        return self.critic_optimiser.steps % delay == 0

    def step_policy(self, loss: Tensor, target_rate: float) -> None:
        """Steps the actor on the losses (S,), then moves all targets."""
        self.actor_optimiser.minimise(loss.sum())
        move_toward(self.target_critic.net, self.critic.net, target_rate)
        move_toward(self.target_actor, self.actor, target_rate)
        self.policy_loss = loss.detach()

    def policy(self, seed: int) -> nn.Module:
        """The policy of the seed at this position."""
        return TanhMean(self.actor.module(seed), self.actor.sizes[-1])

    def state_dict(self) -> dict[str, Tensor]:
        """Networks, targets, optimisers and the latest policy loss."""
        return {**gather(self._parts), "policy_loss": self.policy_loss}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` gave."""
        scatter(self._parts, state)
        self.policy_loss = state["policy_loss"].to(self.actor.flat.device)
