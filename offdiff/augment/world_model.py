"""Rollouts of the policy in learned dynamics, step by step: MOPO's data, and PGD's baseline.

Dimension letters: N windows, M rows of the dataset, L transitions of a window, O observation,
A action.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from offdiff.augment.base import AugmentConfig, Source
from offdiff.augment.believable import observed_range
from offdiff.augment.dynamics import DynamicsConfig, DynamicsEnsemble, load_or_train
from offdiff.core.errors import InputError
from offdiff.core.protocols import GaussianPolicy, Policy
from offdiff.core.types import Trajectories


@dataclass(frozen=True, kw_only=True)
class WorldModelConfig(AugmentConfig):
    """An ensemble of dynamics in which the policy acts from states of the dataset."""

    needs_policy: ClassVar[bool] = True

    start: int = 2_500
    """Learner update before which synthetic experience is generated for the first time."""
    horizon: int = 16
    """Transitions per rollout; the papers take 1 or 5, and 16 is what diffusion models give."""
    penalty: float = 0.0
    """MOPO's coefficient: rewards lose this times max over elites of ||std||, >= 0."""
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    """The ensemble."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.horizon <= 1000:
            raise ValueError(f"horizon must lie in [1, 1000], got {self.horizon}")
        if not 0 <= self.penalty < float("inf"):
            raise ValueError(f"penalty must be a finite number >= 0, got {self.penalty}")

    def build(self, source: Source) -> "WorldModel":
        """Loads or trains the ensemble. Raises InputError for data of a single episode."""
        ensemble = load_or_train(source, self.dynamics)
        low, high = observed_range(source.episodes)
        starts = torch.from_numpy(np.array(source.episodes.obs)).to(source.device)
        bounds = (low.to(source.device), high.to(source.device))
        return WorldModel(ensemble, starts, source.episodes.spec.action_dim, bounds, self)


@dataclass(frozen=True)
class WorldModel:
    """The augmenter."""

    ensemble: DynamicsEnsemble
    starts: Tensor
    """(M, O) observations that rollouts begin in"""
    action_dim: int
    bounds: tuple[Tensor, Tensor]
    """(O,) each, the lowest and highest observation that is believed"""
    config: WorldModelConfig

    @property
    def window(self) -> int:
        """Transitions of a generated window."""
        return self.config.horizon

    @torch.no_grad()
    def generate(
        self, n: int, policy: Policy | None, *, generator: torch.Generator
    ) -> Trajectories:
        """n rollouts from uniformly drawn rows; the mask ends after a terminal or an escape.

        Raises InputError without a policy, or if its actions are not of the data's size.
        """
        if policy is None:
            raise InputError("the world model needs a policy to act in it; set start to 1 or more")
        device = self.starts.device
        policy.reset(torch.ones(n, dtype=torch.bool, device=device))
        obs = self.starts[torch.randint(len(self.starts), (n,), generator=generator, device=device)]
        alive = torch.ones(n, dtype=torch.bool, device=device)
        visited, steps = [obs], []
        for _ in range(self.config.horizon):
            action = self._act(policy, obs, generator)
            next_obs, reward = self.ensemble.step(obs, action, generator=generator)
            # An escape is no end of the task: "terminal" would teach that what follows is worth
            # nothing, and keeping the transition that a critic is right about such a state. Cut
            # before it, the rollout is truncated, and its last state bootstraps as any other.
            real = alive & self._believed(next_obs, reward)
            next_obs = torch.where(real[:, None], next_obs, obs)
            if self.config.penalty:
                reward = reward - self.config.penalty * self.ensemble.noise(obs, action)
            reward = torch.where(real, reward, 0.0)
            ended = real & self.ensemble.ends(obs, action, next_obs, generator=generator)
            steps.append((action, reward, ended.float(), real))
            visited.append(next_obs)
            obs, alive = next_obs, real & ~ended
        actions, rewards, terminals, masks = zip(*steps, strict=True)
        return Trajectories(
            obs=torch.stack(visited, dim=1),
            action=torch.stack(actions, dim=1),
            reward=torch.stack(rewards, dim=1),
            terminal=torch.stack(terminals, dim=1),
            mask=torch.stack(masks, dim=1),
        )

    def provenance(self) -> dict[str, Any]:
        """What the synthetic data were made with, for the record."""
        return self.ensemble.provenance()

    def _act(self, policy: Policy, obs: Tensor, generator: torch.Generator) -> Tensor:
        """(N, O) -> (N, A), drawn if the policy says how it spreads."""
        if isinstance(policy, GaussianPolicy):
            mean, std = policy.distribution(obs)
            noise = torch.randn(mean.shape, generator=generator, device=mean.device)
            action = (mean + std * noise).clamp(-1, 1)
        else:
            action = policy.act(obs)
        if action.shape[-1] != self.action_dim:
            raise InputError(
                f"the policy's actions have {action.shape[-1]} numbers, the dataset's "
                f"{self.action_dim}; give a policy of the same environment"
            )
        return action

    def _believed(self, next_obs: Tensor, reward: Tensor) -> Tensor:
        """(N, O), (N,) -> (N,) bool; False for NaN too, with which every comparison is false."""
        low, high = self.bounds
        return ((next_obs >= low) & (next_obs <= high)).all(-1) & reward.isfinite()
