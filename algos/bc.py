"""Behaviour cloning: the policy is regressed on the data's actions. With `keep_best`, %BC."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from offdiff.algos.nets import MLP, mlp_module
from offdiff.algos.optim import Adam
from offdiff.algos.policies import TanhMean
from offdiff.algos.state import Part, gather, scatter
from offdiff.core.protocols import LearnerConfig
from offdiff.core.seeding import SeedStreams
from offdiff.core.types import Batch, Metrics, Spec


@dataclass(frozen=True, kw_only=True)
class BCConfig(LearnerConfig):
    """Deterministic behaviour cloning; `--algo.keep-best 0.1` gives 10 %BC."""

    scale_observations: bool = True
    """Standardise observations with the data's mean and standard deviation."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden widths of the policy."""
    learning_rate: float = 3e-4
    """Of Adam, constant."""

    def build(self, spec: Spec, *, random: SeedStreams, updates: int, device: torch.device) -> "BC":
        """A learner at its first update."""
        return BC(self, spec, random, device)

    def network(self, spec: Spec) -> nn.Module:
        """An untrained policy of this shape."""
        return TanhMean(mlp_module((spec.obs_dim, *self.hidden, spec.action_dim)), spec.action_dim)


class BC:
    """Minimises the mean squared error between pi(s) and a.

    Differences from the paper: none known; the network, learning rate and scaling are those of
    TD3+BC (Fujimoto and Gu 2021), as in the CORL library.
    """

    def __init__(
        self, config: BCConfig, spec: Spec, random: SeedStreams, device: torch.device
    ) -> None:
        self.spec = spec
        sizes = (spec.obs_dim, *config.hidden, spec.action_dim)
        self.actor = MLP(sizes, len(random)).to(device).initialise(random, "torch")
        self.optimiser = Adam([self.actor.flat], config.learning_rate)
        self.parts: dict[str, Part] = {"actor": self.actor, "optimiser": self.optimiser}

    def update(self, batch: Batch) -> Metrics:
        """One step of the policy."""
        action = torch.tanh(self.actor(batch.obs))
        loss = (action - batch.action).square().mean((-2, -1))
        self.optimiser.minimise(loss.sum())
        return {"policy_loss": loss.detach()}

    def policy(self, seed: int) -> nn.Module:
        """The policy of one seed."""
        return TanhMean(self.actor.module(seed), self.spec.action_dim)

    def state_dict(self) -> dict[str, Tensor]:
        """Networks and optimiser."""
        return gather(self.parts)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` gave."""
        scatter(self.parts, state)
