"""Implicit diffusion Q-learning: IQL's critics choose among a cloned policy's samples.

Hansen-Estruch et al. 2023. Dimension letters: S seeds, B batch, N candidates, O observation,
A action.
"""

from dataclasses import dataclass
from typing import Literal

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
from offdiff.algos.iql import ImplicitValues
from offdiff.algos.nets import mlp_module, move_toward
from offdiff.algos.optim import Adam
from offdiff.algos.state import Part, gather, scatter
from offdiff.core.protocols import LearnerConfig
from offdiff.core.seeding import SeedStreams
from offdiff.core.types import Batch, Metrics, Spec


@dataclass(frozen=True, kw_only=True)
class IDQLConfig(LearnerConfig):
    """IDQL at the paper's sizes; the paper's batches are of 512."""

    expectile: float = 0.7
    """Of the value regression, in [0.5, 1); antmaze 0.9."""
    levels: int = 5
    """Steps of the diffusion chain."""
    candidates: int = 64
    """Actions sampled per observation when acting, of which one is chosen; the paper: 16 to 256."""
    choice: Literal["expectile", "best"] = "expectile"
    """expectile: draw by |expectile - 1(Q < V)|, the implicit policy; best: the largest Q."""
    ema_rate: float = 0.001
    """By which the averaged actor, which is deployed, moves every update, in (0, 1]."""
    discount: float = 0.99
    """Per step, in [0, 1)."""
    target_rate: float = 0.005
    """Polyak rate of the target critics, in (0, 1]."""
    learning_rate: float = 3e-4
    """Of all networks; the actor's decays to zero along a cosine over the run."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden widths of critics and value."""
    actor_hidden: tuple[int, ...] = (256, 256, 256)
    """Hidden widths of the actor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, levels=1, candidates=1, ema_rate=1e-9)
        if self.ema_rate > 1:
            raise ValueError(f"ema_rate must lie in (0, 1], got {self.ema_rate}")
        if not 0.5 <= self.expectile < 1:
            raise ValueError(f"expectile must lie in [0.5, 1), got {self.expectile}")
        if self.choice not in ("expectile", "best"):
            raise ValueError(f"choice must be expectile or best, got {self.choice}")
        if not self.actor_hidden or min(self.actor_hidden) < 1:
            raise ValueError(f"actor_hidden must be widths of at least 1, got {self.actor_hidden}")

    def build(
        self, spec: Spec, *, random: SeedStreams, updates: int, device: torch.device
    ) -> "IDQL":
        """A learner at its first update."""
        return IDQL(self, spec, random, updates, device)

    def network(self, spec: Spec) -> nn.Module:
        """An untrained policy of this shape."""
        network = mlp_module(network_sizes(spec, self.actor_hidden))
        value = mlp_module((spec.obs_dim, *self.hidden, 1))
        return self.deployed(network, untrained_critics(spec, self.hidden), value, spec, 0)

    def deployed(
        self, network: nn.Module, q: SmallestQ, value: nn.Module, spec: Spec, noise_seed: int
    ) -> CandidatePolicy:
        """The policy made of these networks."""
        best = self.choice == "best"
        return CandidatePolicy(
            network,
            LargestValue(q) if best else ExpectileWeights(q, value, self.expectile),
            action_dim=spec.action_dim,
            candidates=self.candidates,
            levels=self.levels,
            seed=noise_seed,
        )


class ExpectileWeights(nn.Module):
    """Candidates weigh |expectile - 1(Q < V)|: the policy that the expectile V belongs to."""

    def __init__(self, q: SmallestQ, value: nn.Module, expectile: float) -> None:
        """value: (..., O) -> (..., 1)."""
        super().__init__()
        self.q, self.value, self.expectile = q, value, expectile

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """(B, N, O), (B, N, A) -> (B, N) log weights."""
        worse: Tensor = self.q(obs, action) < self.value(obs[:, :1]).squeeze(-1)
        return (self.expectile - worse.to(action.dtype)).abs().log()


class LargestValue(nn.Module):
    """All weight on the candidate of the largest Q."""

    def __init__(self, q: SmallestQ) -> None:
        super().__init__()
        self.q = q

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """(B, N, O), (B, N, A) -> (B, N) log weights."""
        q: Tensor = self.q(obs, action)
        return torch.where(q == q.amax(1, keepdim=True), 0.0, -torch.inf)


class IDQL:
    """V and Q as IQL learns them, and an actor that only imitates; they meet when acting.

    Differences from the paper: plain ReLU networks where theirs are residual ones with LayerNorm
    and dropout (actor) and with LayerNorm (value); sines of the level instead of learned Fourier
    features; Adam without weight decay; EDM's preconditioning around the actor, with the paper's
    loss (squared error of the noise).
    """

    def __init__(
        self,
        config: IDQLConfig,
        spec: Spec,
        random: SeedStreams,
        updates: int,
        device: torch.device,
    ) -> None:
        self.config, self.spec = config, spec
        rate = config.learning_rate
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
        self.actor = DiffusionActor(spec, config.actor_hidden, config.levels, random, device)
        self.actor_optimiser = Adam([self.actor.net.flat], rate, cosine_updates=updates)
        self.parts: dict[str, Part] = {
            **self.values.parts,
            "actor": self.actor.net,
            "average_actor": self.actor.average,
            "actor_optimiser": self.actor_optimiser,
        }

    def update(self, batch: Batch) -> Metrics:
        """One step of value, critics, target critics, actor and averaged actor."""
        _, metrics = self.values.update(batch)
        loss = self.actor.loss(batch.obs, batch.action)
        self.actor_optimiser.minimise(loss.sum())
        move_toward(self.actor.average, self.actor.net, self.config.ema_rate)
        return {**metrics, "imitation_loss": loss.detach()}

    def policy(self, seed: int) -> nn.Module:
        """The averaged actor of one seed, with the target critics and the value that choose."""
        return self.config.deployed(
            self.actor.average.module(seed),
            critic_modules(self.values.target_critic.net, seed),
            self.values.value.module(seed),
            self.spec,
            self.actor.noise_seeds[seed],
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Networks, averages, targets and optimisers."""
        return gather(self.parts)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` gave."""
        scatter(self.parts, state)
