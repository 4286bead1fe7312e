"""Fitted Q evaluation: what a policy would earn, told from data alone.

Dimension letters: P policies evaluated together, N transitions, E initial states, B batch,
O observation, A action.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from offdiff.algos.nets import Critic, move_toward
from offdiff.algos.optim import Adam
from offdiff.core.errors import InputError
from offdiff.core.protocols import Policy
from offdiff.core.seeding import SeedStreams, derive_seed
from offdiff.core.types import Batch, Spec
from offdiff.data.episodes import Episodes
from offdiff.statistics import bootstrap, mean

FAR = 0.5
"""Root-mean-square distance per action dimension, in a box of width 2, from which one is far."""
DIAGNOSED_ROWS = 10_000
"""Transitions on which the diagnostics are computed, at most."""
ROWS_AT_ONCE = 16_384
"""Observations that a policy is asked about in one call."""


@dataclass(frozen=True, kw_only=True)
class FQEConfig:
    """How a value function is fitted; see `fitted_q_evaluation`."""

    discount: float = 0.99
    """Per step, in [0, 1). Beyond 0.99 the updates must grow as 1 / (1 - discount) does."""
    updates: int = 25_000
    batch_size: int = 256
    hidden: tuple[int, ...] = (256, 256)
    learning_rate: float = 3e-4
    layer_norm: bool = True
    """Normalise hidden units: bounds what Q says of actions that the data does not hold."""
    target_rate: float = 0.02
    """Share of the online network in the target network's Polyak average, per update. The value
    has spread through the horizon when updates * target_rate * (1 - discount) is about 5."""

    def __post_init__(self) -> None:
        if not 0 <= self.discount < 1:
            raise InputError(f"discount must lie in [0, 1), got {self.discount}")
        if self.updates < 1 or self.batch_size < 1:
            raise InputError(
                f"updates and batch_size must be at least 1, got {self.updates}, {self.batch_size}"
            )


@dataclass(frozen=True, kw_only=True)
class ValueEstimate:
    """The discounted return that is expected of one policy, and how far to trust it."""

    value: float
    """Mean over the data's initial states, in the environment's reward units."""
    low: float
    high: float
    """95 % bootstrap interval over initial states; it holds no error of the fit itself."""
    td_error: float
    """Root mean square of Q(s, a) - (r + discount Q(s', pi(s'))) on the data, in reward units."""
    q_min: float
    q_max: float
    """Range of Q at the data's own actions."""
    far_actions: float
    """Share of the data's rows where the policy acts far from what was recorded (see FAR): there
    Q is extrapolated."""


def fitted_q_evaluation(
    policies: Mapping[str, Policy],
    episodes: Episodes,
    config: FQEConfig | None = None,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> dict[str, ValueEstimate]:
    """The expected discounted return of deterministic policies from the data's initial states.

    Fits Q(s, a) to r + discount * Q_target(s', pi(s')); terminal rows do not bootstrap, truncated
    ones do (Le et al. 2019; Paine et al. 2020 for its use in ranking policies). All policies are
    fitted at once on the same batches from the same initial parameters, so the estimate of one
    does not depend on which others are evaluated beside it. Targets are kept in the range that
    returns can have at all.
    Raises InputError if a policy does not fit the data or an estimate is not finite.
    """
    config = config or FQEConfig()
    device = torch.device(device)
    batch = episodes.transitions("strict")
    fit = _Fit(policies, batch, config, seed=seed, device=device)
    with Progress(console=Console(stderr=True), disable=not progress, transient=True) as bar:
        for _ in bar.track(range(config.updates), description="fitted Q evaluation"):
            fit.update()
    initial = torch.from_numpy(episodes.obs[episodes.first])
    values = fit.values(policies, initial).double().cpu().numpy()
    if not np.isfinite(values).all():
        raise InputError("fitted Q evaluation diverged; lower the discount or the learning rate")
    diagnostics = fit.diagnostics(np.random.default_rng(derive_seed(seed, "fqe diagnostics")))
    return {name: _estimate(values[p], diagnostics[p], seed) for p, name in enumerate(policies)}


def _estimate(
    values: NDArray[np.float64], diagnostics: Mapping[str, float], seed: int
) -> ValueEstimate:
    """values: (E,)"""
    random = np.random.default_rng(derive_seed(seed, "fqe bootstrap"))
    interval = bootstrap(mean, values[:, None], random=random, draws=2_000)
    return ValueEstimate(
        value=float(interval.value),
        low=float(interval.low),
        high=float(interval.high),
        **diagnostics,
    )


class _Fit:
    """P value functions under way. Inside, observations are standardised and values scaled."""

    def __init__(
        self,
        policies: Mapping[str, Policy],
        batch: Batch,
        config: FQEConfig,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self.config = config
        self.device = device
        self.mean = batch.obs.mean(0).to(device)
        self.std = batch.obs.std(0, correction=0).clamp_min(1e-3).to(device)
        # Values become of order one. No shift: the value after a terminal row has to stay zero.
        self.unit = max(float(batch.reward.abs().mean()), 1e-6) / (1 - config.discount)
        action_dim = batch.action.shape[1]
        self.policy_next = _actions(policies, batch.next_obs, action_dim, device)
        self.policy_now = _actions(policies, batch.obs, action_dim, device)
        self.obs = self._scaled(batch.obs)
        self.next_obs = self._scaled(batch.next_obs)
        self.action = batch.action.clamp(-1, 1).to(device)
        self.reward = batch.reward.to(device) / self.unit
        self.continues = config.discount * (1 - batch.terminal.to(device))
        horizon = 1 / (1 - config.discount)
        self.lowest = min(float(self.reward.min()), 0.0) * horizon
        self.highest = max(float(self.reward.max()), 0.0) * horizon

        spec = Spec(batch.obs.shape[1], action_dim)
        self.critic = Critic(
            spec, config.hidden, len(policies), members=1, layer_norm=config.layer_norm
        )
        # One seed for every policy: they differ in nothing but their actions.
        start = SeedStreams([seed] * len(policies), "fqe init", torch.device("cpu"))
        self.critic.net.initialise(start, "torch")
        self.critic.net.to(device)
        self.target = self.critic.target()
        self.optimiser = Adam([self.critic.net.flat], config.learning_rate)
        self.rows = SeedStreams([seed], "fqe batches", device)

    def update(self) -> None:
        """One gradient step of all value functions."""
        rows = self.rows.integers(len(self.reward), self.config.batch_size)[0]
        error = self._td_error(rows)
        self.optimiser.minimise(error.square().mean(-1).sum())
        move_toward(self.target.net, self.critic.net, self.config.target_rate)

    def values(self, policies: Mapping[str, Policy], obs: Tensor) -> Tensor:
        """Q at each policy's own action, (E, O) -> (P, E), in reward units."""
        action = _actions(policies, obs, self.action.shape[1], self.device)
        scaled = self._scaled(obs).expand(len(action), -1, -1)
        with torch.no_grad():
            return self.unit * self.critic(scaled, action)[:, 0]

    def diagnostics(self, random: np.random.Generator) -> list[dict[str, float]]:
        """Per policy, the fields of ValueEstimate beside the value."""
        n = len(self.reward)
        rows = torch.from_numpy(random.permutation(n)[:DIAGNOSED_ROWS]).to(self.device)
        with torch.no_grad():
            error = self.unit * self._td_error(rows).square().mean(-1).sqrt()
            q = self.unit * self._q(rows)
            distance = (self.policy_now[:, rows] - self.action[rows]).square().mean(-1).sqrt()
            far = (distance > FAR).float().mean(-1)
        columns = zip(
            error.tolist(), q.amin(-1).tolist(), q.amax(-1).tolist(), far.tolist(), strict=True
        )
        return [
            {"td_error": e, "q_min": low, "q_max": high, "far_actions": f}
            for e, low, high, f in columns
        ]

    def _td_error(self, rows: Tensor) -> Tensor:
        """Q(s, a) - (r + discount Q_target(s', pi(s'))) at the given rows (B,) -> (P, B)."""
        next_action = self.policy_next[:, rows]
        next_obs = self.next_obs[rows].expand(len(next_action), -1, -1)
        following = self.target(next_obs, next_action)[:, 0]
        goal = self.reward[rows] + self.continues[rows] * following
        return self._q(rows) - goal.clamp(self.lowest, self.highest)

    def _q(self, rows: Tensor) -> Tensor:
        """Q at the data's actions, (B,) -> (P, B)."""
        p = len(self.policy_next)
        obs, action = self.obs[rows].expand(p, -1, -1), self.action[rows].expand(p, -1, -1)
        return self.critic(obs, action)[:, 0]

    def _scaled(self, obs: Tensor) -> Tensor:
        return (obs.to(self.device) - self.mean) / self.std


@torch.no_grad()
def _actions(
    policies: Mapping[str, Policy], obs: Tensor, action_dim: int, device: torch.device
) -> Tensor:
    """What each policy does at each observation, (N, O) -> (P, N, A); asked once, then kept."""
    actions = []
    for name, policy in policies.items():
        parts = []
        for rows in torch.split(obs.to(device), ROWS_AT_ONCE):
            policy.reset(torch.ones(len(rows), dtype=torch.bool, device=device))
            try:
                parts.append(policy.act(rows).clamp(-1, 1))
            except RuntimeError as error:
                raise InputError(
                    f"policy {name!r} cannot act on the data's {obs.shape[1]} observation numbers "
                    f"({error}); evaluate it on data of its own environment"
                ) from error
        actions.append(torch.cat(parts))
        if actions[-1].shape[1] != action_dim:
            raise InputError(
                f"policy {name!r} gives {actions[-1].shape[1]} action numbers, the data has "
                f"{action_dim}; evaluate it on data of its own environment"
            )
    return torch.stack(actions)
