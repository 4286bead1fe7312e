"""Diffusion Q-learning: a diffusion policy that imitates and climbs Q (Wang et al. 2023).

Dimension letters: S seeds, B batch, N candidates, O observation, A action.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from offdiff.algos.diffusion_policy import (
    CandidatePolicy,
    DiffusionActor,
    SmallestQ,
    critic_modules,
    network_sizes,
    require_at_least,
    untrained_critics,
)
from offdiff.algos.losses import bellman_target, critic_loss
from offdiff.algos.nets import MLP, Critic, mlp_module, move_toward
from offdiff.algos.optim import Adam
from offdiff.algos.state import Part, gather, scatter
from offdiff.core.protocols import LearnerConfig
from offdiff.core.seeding import SeedStreams
from offdiff.core.types import Batch, Metrics, Spec


@dataclass(frozen=True, kw_only=True)
class DQLConfig(LearnerConfig):
    """Diffusion-QL at the paper's sizes."""

    eta: float = 1.0
    """Weight of the value term against imitation, >= 0; antmaze 0.5 to 4.5, adroit 0.1."""
    levels: int = 5
    """Steps of the diffusion chain."""
    candidates: int = 50
    """Actions sampled per observation when acting, of which one is drawn."""
    inverse_temperature: float = 1.0
    """Multiplies Q in the weights exp(Q) of that draw, >= 0."""
    backup_samples: int = 1
    """Next actions per transition, of which the best counts in the target; antmaze 10."""
    max_gradient_norm: float = 5.0
    """Longest gradient of actor and of critics, > 0; the paper's vary by task from 1 to 10."""
    ema_rate: float = 0.005
    """By which the averaged actor moves, in (0, 1]; it gives target actions, and is deployed."""
    ema_every: int = 5
    """Updates between two such moves."""
    ema_from: int = 1000
    """Update from which on it averages; before, it is a copy of the actor."""
    discount: float = 0.99
    """Per step, in [0, 1)."""
    target_rate: float = 0.005
    """Polyak rate of the target critics, in (0, 1]."""
    learning_rate: float = 3e-4
    """Of actor and critics, constant."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Hidden widths of actor and critics."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(
            self, eta=0, levels=1, candidates=1, inverse_temperature=0, backup_samples=1,
            max_gradient_norm=1e-9, ema_rate=1e-9, ema_every=1, ema_from=0,
        )  # fmt: skip
        if self.ema_rate > 1:
            raise ValueError(f"ema_rate must lie in (0, 1], got {self.ema_rate}")

    def build(
        self, spec: Spec, *, random: SeedStreams, updates: int, device: torch.device
    ) -> "DQL":
        """A learner at its first update."""
        return DQL(self, spec, random, device)

    def network(self, spec: Spec) -> nn.Module:
        """An untrained policy of this shape."""
        network = mlp_module(network_sizes(spec, self.hidden))
        return self.deployed(network, untrained_critics(spec, self.hidden), spec, 0)

    def deployed(
        self, network: nn.Module, q: SmallestQ, spec: Spec, noise_seed: int
    ) -> CandidatePolicy:
        """The policy made of these networks."""
        return CandidatePolicy(
            network,
            ValueWeights(q, self.inverse_temperature),
            action_dim=spec.action_dim,
            candidates=self.candidates,
            levels=self.levels,
            seed=noise_seed,
        )


class ValueWeights(nn.Module):
    """Candidates weigh exp(inverse temperature * Q)."""

    def __init__(self, q: SmallestQ, inverse_temperature: float) -> None:
        super().__init__()
        self.q, self.inverse_temperature = q, inverse_temperature

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """(B, N, O), (B, N, A) -> (B, N) log weights."""
        q: Tensor = self.q(obs, action)
        return self.inverse_temperature * q


class DQL:
    """Twin critics, and an actor whose whole sampling chain is differentiated through Q.

    Differences from the paper: ReLU instead of Mish, and sines of the level instead of an embedding
    network; the network predicts through EDM's preconditioning, its loss is the paper's (squared
    error of the noise). The averaged actor acts, where theirs acts by the last one; before
    `ema_from` it copies the actor, where theirs stays at its initial value. The learning rate is
    constant: in their code its decay hardly happens.
    """

    def __init__(
        self, config: DQLConfig, spec: Spec, random: SeedStreams, device: torch.device
    ) -> None:
        self.config, self.spec, self.random = config, spec, random
        self.actor = DiffusionActor(spec, config.hidden, config.levels, random, device)
        self.critic = Critic(spec, config.hidden, len(random), members=2)
        self.critic.net.to(device).initialise(random, "torch")
        self.target_critic = self.critic.target()
        self.actor_optimiser = Adam([self.actor.net.flat], config.learning_rate)
        self.critic_optimiser = Adam([self.critic.net.flat], config.learning_rate)
        self.parts: dict[str, Part] = {
            "actor": self.actor.net,
            "average_actor": self.actor.average,
            "critic": self.critic.net,
            "target_critic": self.target_critic.net,
            "actor_optimiser": self.actor_optimiser,
            "critic_optimiser": self.critic_optimiser,
        }

    def update(self, batch: Batch) -> Metrics:
        """One step of critics and actor, of the target critics, and of the average when due."""
        metrics = self._step_critic(batch) | self._step_actor(batch)
        move_toward(self.target_critic.net, self.critic.net, self.config.target_rate)
        self._average_actor()
        return metrics

    def _step_critic(self, batch: Batch) -> dict[str, Tensor]:
        next_value = self._next_value(batch.next_obs)
        target = bellman_target(batch.reward, batch.terminal, next_value, self.config.discount)
        q = self.critic(batch.obs, batch.action)
        loss = critic_loss(q, target)
        self._minimise(self.critic_optimiser, self.critic.net, loss)
        return {"critic_loss": loss.detach(), "value": q.detach().mean((1, 2))}

    @torch.no_grad()
    def _next_value(self, next_obs: Tensor) -> Tensor:
        """(S, B, O) -> (S, B): the least over critics of the most over sampled actions."""
        n = self.config.backup_samples
        obs = next_obs.repeat_interleave(n, dim=1)
        q = self.target_critic(obs, self.actor.sample(self.actor.average, obs))
        return q.view(*q.shape[:2], -1, n).amax(-1).amin(1)

    def _step_actor(self, batch: Batch) -> dict[str, Tensor]:
        imitation = self.actor.loss(batch.obs, batch.action)
        action = self.actor.sample(self.actor.net, batch.obs)
        q = self.critic(batch.obs, action, frozen=True)  # (S, 2, B)
        climbed = self.random.integers(2, 1, 1).expand(-1, 1, q.shape[-1])
        scale = q.gather(1, 1 - climbed).detach().abs().mean((1, 2))
        value = q.gather(1, climbed).mean((1, 2)) / scale
        self._minimise(self.actor_optimiser, self.actor.net, imitation - self.config.eta * value)
        return {"imitation_loss": imitation.detach(), "policy_value": value.detach()}

    def _minimise(self, optimiser: Adam, net: MLP, loss: Tensor) -> None:
        """A step down the losses (S,), each seed's gradient not longer than allowed."""
        (gradient,) = torch.autograd.grad(loss.sum(), [net.flat])
        clip_by_seed(net, gradient, len(loss), self.config.max_gradient_norm)
        optimiser.step([gradient])

    def _average_actor(self) -> None:
        c, done = self.config, self.actor_optimiser.steps
        if done < c.ema_from:
            move_toward(self.actor.average, self.actor.net, 1.0)
        elif done % c.ema_every == 0:
            move_toward(self.actor.average, self.actor.net, c.ema_rate)

    def policy(self, seed: int) -> nn.Module:
        """The averaged policy of one seed, with the target critics that choose."""
        return self.config.deployed(
            self.actor.average.module(seed),
            critic_modules(self.target_critic.net, seed),
            self.spec,
            self.actor.noise_seeds[seed],
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Networks, averages, targets and optimisers."""
        return gather(self.parts)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` gave."""
        scatter(self.parts, state)


def clip_by_seed(net: MLP, gradient: Tensor, seeds: int, longest: float) -> None:
    """Shortens each seed's part of a flat gradient to `longest`, in place."""
    pieces = [piece.view(seeds, -1) for kind in net.split(gradient) for piece in kind]
    squares = torch.stack([piece.square().sum(1) for piece in pieces]).sum(0)
    factor = (longest / squares.sqrt()).clamp(max=1)
    for piece in pieces:
        piece.mul_(factor.unsqueeze(1))
