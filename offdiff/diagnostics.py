"""How good synthetic experience is: against the simulator, the policy and the data.

Definitions are those of the PGD spec, section 12. Everything is finite or None, as JSON asks.
Dimension letters: N windows, L transitions of a window, M transitions, O observation, A action.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offdiff.core.errors import InputError
from offdiff.core.protocols import GaussianPolicy, Policy
from offdiff.core.types import Batch, Trajectories
from offdiff.data.dataset import DatasetInfo
from offdiff.data.episodes import Episodes
from offdiff.data.windows import Windows
from offdiff.distances import to_nearest, wasserstein
from offdiff.policy import DeployedPolicy
from offdiff.simulate import DynamicsError, can_restore, dynamics_error

SAMPLES = 256
"""Windows that are looked at."""
REFERENCES = 200_000
"""Windows of the data among which the nearest is sought."""
RECORDED = 16
"""Recorded transitions to compare with, per window that is looked at."""
OTHERS = 0.1
"""Share of the episodes that the distance between recorded windows is measured from."""
FAR = 1e6
"""Standard deviations beyond which distances, whose squares must stay finite, grow no more."""
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class PolicyAgreement:
    """How a policy sees the actions."""

    log_likelihood: float
    """Mean over transitions of the log density of the action, summed over its numbers."""
    action_mse: float
    """Mean over transitions of the squared distance to the policy's mean, summed likewise."""
    residual_mean: float
    """Mean of (action - policy's mean) / policy's std."""
    residual_std: float
    """Standard deviation of the same: 1 on-policy, 0 where actions have collapsed."""


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """One generation of one seed."""

    dynamics: DynamicsError | None
    """None where the simulator's state cannot be restored."""
    floor: DynamicsError | None
    """The same of recorded transitions, all as one row."""
    policy: PolicyAgreement | None
    """None before there was a policy, and where it gives numbers that are not finite."""
    behaviour: PolicyAgreement | None
    """The same of recorded transitions."""
    broken: float
    """Share of windows with one of the next three."""
    not_finite: float
    """Numbers that are not finite; the other measures leave these transitions out."""
    outside: float
    """Observations more than 3 standard deviations outside the range of the data."""
    beyond: float
    """Actions outside [-1, 1]."""
    terminal_rate: float
    """Terminals per transition."""
    data_terminal_rate: float
    length: float
    """Mean transitions of a window."""
    novelty: float | None
    """Mean distance of full windows to the nearest recorded one, over that of other recorded
    windows: 0 for copies, 1 for new data of the same kind. None without windows to compare."""
    wasserstein_obs: float | None
    """1-Wasserstein distance to the data, of observations in standard deviations, mean over O."""
    wasserstein_action: float | None
    """The same of actions, not scaled, mean over A."""

    def as_json(self) -> dict[str, Any]:
        """Plain values for a record."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Diagnostics":
        """What `as_json` gave; other keys are ignored."""
        kinds = {"dynamics": DynamicsError, "floor": DynamicsError,
                 "policy": PolicyAgreement, "behaviour": PolicyAgreement}  # fmt: skip
        known = {f.name: values[f.name] for f in fields(cls)}
        parts = {k: kind(**known[k]) for k, kind in kinds.items() if known[k] is not None}
        return cls(**{**known, **parts})

    def summary(self) -> dict[str, float]:
        """Every single number that is known, parts with their name: "dynamics_mean"."""
        flat: dict[str, float] = {}
        for name, value in self.as_json().items():
            part = value if isinstance(value, dict) else {"": value}
            for key, number in part.items():
                if number is not None and not isinstance(number, list):
                    flat[f"{name}_{key}".rstrip("_")] = float(number)
        return flat

    def sentence(self) -> str:
        """The main numbers in one line."""
        parts = [f"terminals {self.terminal_rate:.2%} (data {self.data_terminal_rate:.2%})"]
        if self.dynamics and self.floor:
            parts.append(f"dynamics error {self.dynamics.mean:.2g} (data {self.floor.mean:.2g})")
        if self.policy and self.behaviour:
            own, data = self.policy.log_likelihood, self.behaviour.log_likelihood
            parts.append(f"log-likelihood {own:.2f} (data {data:.2f})")
            parts.append(f"residual std {self.policy.residual_std:.2f}")
        if self.novelty is not None:
            parts.append(f"novelty {self.novelty:.2f}")
        if self.broken:
            parts.append(f"{self.broken:.1%} of windows broken")
        return ", ".join(parts)


class Inspector:
    """Looks at generations, always with the same yardsticks."""

    def __init__(
        self,
        info: DatasetInfo,
        episodes: Episodes,
        *,
        samples: int = SAMPLES,
        references: int = REFERENCES,
        seed: int = 0,
    ) -> None:
        """samples: windows of a generation that are looked at.

        references: windows of the data among which the nearest is sought: copies of others go
        unnoticed, so that only as many as the data have windows find every one.
        """
        self._env_id = info.env_id if can_restore(info.env_id) else None
        self._episodes, self._seed = episodes, seed
        self._samples, self._references = samples, references
        std = torch.from_numpy(episodes.obs.std(0, dtype=np.float64))
        self._std = torch.where(std < 1e-6, 1.0, std)
        self._mean = torch.from_numpy(episodes.obs.mean(0, dtype=np.float64))
        self._low = torch.from_numpy(episodes.obs.min(0)) - 3 * self._std
        self._high = torch.from_numpy(episodes.obs.max(0)) + 3 * self._std
        self._reward_std = float(episodes.reward.std(dtype=np.float64)) or 1.0
        rows = episodes.usable("strict")
        chosen = np.random.default_rng(seed).permutation(rows)[: samples * RECORDED]
        self._recorded = episodes.transitions_at(chosen, "strict")
        self._known = episodes.successor_known[chosen]
        self._neighbours: dict[int, tuple[Tensor, float] | None] = {}

    def inspect(
        self, windows: Trajectories, policy: Policy | None, policy_std: float = 1.0
    ) -> Diagnostics:
        """Diagnostics of a generation; a few seconds at most.

        policy_std: spread that a policy without one is taken to have.
        """
        chosen = np.random.default_rng(self._seed).permutation(len(windows))[: self._samples]
        sample = _take(windows, chosen)
        shares, sample = self._validity(sample)
        batch = sample.transitions()
        row = torch.arange(sample.horizon).expand_as(sample.mask)[sample.mask]
        return Diagnostics(
            dynamics=self._dynamics(batch, row.numpy(), sample.horizon),
            floor=self._floor,
            policy=policy_agreement(policy, batch, policy_std),
            behaviour=policy_agreement(policy, self._recorded, policy_std),
            **shares,
            terminal_rate=float(
                windows.terminal[windows.mask].sum() / windows.mask.sum().clamp(min=1)
            ),
            data_terminal_rate=float(self._episodes.terminal.mean()),
            length=float(windows.mask.sum(1).float().mean()),
            novelty=self._novelty(sample),
            wasserstein_obs=wasserstein(batch.obs / self._std, self._recorded.obs / self._std),
            wasserstein_action=wasserstein(batch.action, self._recorded.action),
        )

    def _dynamics(self, batch: Batch, row: NDArray[np.int64], rows: int) -> DynamicsError | None:
        if self._env_id is None:
            return None
        return dynamics_error(
            self._env_id, batch, row, rows, obs_std=self._std.numpy(), reward_std=self._reward_std
        )

    @cached_property
    def _floor(self) -> DynamicsError | None:
        # A terminal row may lack its successor.
        known = Batch(*(field[torch.from_numpy(self._known)] for field in self._recorded))
        return self._dynamics(known, np.zeros(len(known.reward), np.int64), 1)

    def _validity(self, sample: Trajectories) -> tuple[dict[str, float], Trajectories]:
        """Shares of windows, and the windows with the transitions masked that are not finite."""
        finite = sample.obs.isfinite().all(-1)
        sound = finite[:, :-1] & finite[:, 1:] & sample.action.isfinite().all(-1)
        sound &= sample.reward.isfinite()
        far = ((sample.obs < self._low) | (sample.obs > self._high)).any(-1)
        # The margin is for float32 arithmetic on the way from a model's units.
        beyond = (sample.action.abs() > 1 + 1e-6).any(-1)
        wrong = {"not_finite": ~sound, "outside": far[:, :-1] | far[:, 1:], "beyond": beyond}
        # Where a window has ended anything may stand.
        windows = {name: (bad & sample.mask).any(1) for name, bad in wrong.items()}
        windows["broken"] = torch.stack(list(windows.values())).any(0)
        shares = {name: float(bad.float().mean()) for name, bad in windows.items()}
        return shares, replace(sample, mask=sample.mask & sound)

    def _novelty(self, sample: Trajectories) -> float | None:
        full = sample.mask.all(1) & ~sample.terminal.bool().any(1)
        if sample.horizon not in self._neighbours:
            self._neighbours[sample.horizon] = self._yardstick(sample.horizon)
        yardstick = self._neighbours[sample.horizon]
        if yardstick is None or not full.any():
            return None
        points, usual = yardstick
        return to_nearest(self._points(sample)[full], points) / usual

    def _yardstick(self, horizon: int) -> tuple[Tensor, float] | None:
        """Recorded windows as points, and the distance of others to them; None without others."""
        try:
            windows = Windows.of(self._episodes, horizon, CPU, terminals=False)
        except InputError:  # no window of this length
            return None
        # Neighbours in time are nearly copies: both sides must be of different episodes.
        owner = np.searchsorted(self._episodes.last, windows.starts.numpy())
        random = np.random.default_rng(self._seed)
        owners = random.permutation(np.unique(owner))
        if len(owners) < 2:
            return None
        other = np.isin(owner, owners[: max(1, round(OTHERS * len(owners)))])
        near = random.permutation(np.flatnonzero(~other))[: self._references]
        far = random.permutation(np.flatnonzero(other))[: self._samples]
        points, others = (self._points(windows.cut(torch.from_numpy(at))) for at in (near, far))
        usual = to_nearest(others, points)
        return (points, usual) if usual > 0 else None

    def _points(self, windows: Trajectories) -> Tensor:
        """(N, ...) windows as points: scaled observations, actions."""
        obs = (windows.obs - self._mean) / self._std
        points = torch.cat((obs.flatten(1), windows.action.flatten(1)), dim=1)
        return points.float().clamp(-FAR, FAR)


def policy_agreement(
    policy: Policy | None, batch: Batch, policy_std: float
) -> PolicyAgreement | None:
    """How the policy sees the actions of some transitions on the CPU; None if it cannot tell."""
    if policy is None or not len(batch.reward):
        return None
    obs = batch.obs.to(policy.obs_mean.device if isinstance(policy, DeployedPolicy) else CPU)
    with torch.no_grad():
        if isinstance(policy, GaussianPolicy):
            mean, std = policy.distribution(obs)
        else:
            # A policy with a memory sees the first observation of an episode in every row.
            policy.reset(torch.ones(len(obs), dtype=torch.bool, device=obs.device))
            mean = policy.act(obs)
            std = torch.full_like(mean, policy_std)
    error, std = batch.action.double() - mean.cpu().double(), std.cpu().double()
    residual = error / std
    density = -residual.square() / 2 - std.log() - math.log(2 * math.pi) / 2
    found = PolicyAgreement(
        log_likelihood=float(density.sum(-1).mean()),
        action_mse=float(error.square().sum(-1).mean()),
        residual_mean=float(residual.mean()),
        residual_std=float(residual.std(correction=0)),
    )
    return found if all(math.isfinite(value) for value in vars(found).values()) else None


def _take(windows: Trajectories, index: NDArray[np.int64]) -> Trajectories:
    """Some of the windows, on the CPU."""
    at = torch.from_numpy(np.sort(index)).to(windows.reward.device)
    return Trajectories(**{name: value[at].cpu() for name, value in vars(windows).items()})
