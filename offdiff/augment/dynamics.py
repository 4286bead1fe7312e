"""What an action leads to: an ensemble of Gaussian networks (PETS, Chua et al. 2018; MOPO, 2020).

Dimension letters: E members, K elites, N rows, B batch, O observation, A action, I = O + A inputs,
D = O + 1 outputs (change of the observation, reward), H hidden units.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from torch import Tensor

from offdiff.augment.base import Source
from offdiff.augment.networks import Networks, Rows, initial, loss, squared_error
from offdiff.augment.terminations import Termination, known_end
from offdiff.core.files import require_writable
from offdiff.core.tensors import load_tensors, save_tensors
from offdiff.data.episodes import Episodes
from offdiff.data.windows import episodes_hash, hold_out
from offdiff.diffusion.progress import StepBar

TINY = 1e-6
"""Standard deviations below this belong to quantities that never change."""


@dataclass(frozen=True, kw_only=True)
class DynamicsConfig:
    """Sizes and training of the ensemble, as in the unifloral library but for `updates`."""

    members: int = 7
    """Networks that are trained."""
    elites: int = 5
    """Networks that are kept: those with the lowest error on held-out episodes."""
    hidden: tuple[int, ...] = (200, 200, 200, 200)
    """Hidden widths."""
    updates: int = 3_000
    """Gradient steps, sized for a laptop; the papers take 400 epochs."""
    batch_size: int = 256
    """Transitions per member and update, drawn for each member by itself."""
    learning_rate: float = 1e-3
    """Of AdamW."""
    weight_decay: float = 2.5e-5
    """Of AdamW, on all parameters."""
    holdout: float = 0.2
    """Share of the episodes that elites are chosen on, in (0, 1); rows would leak neighbours."""
    seed: int = 0
    """Of initial weights, held-out episodes and batches."""

    def __post_init__(self) -> None:
        if not 1 <= self.elites <= self.members:
            raise ValueError(f"elites must lie in [1, {self.members}], got {self.elites}")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden must be positive widths, got {self.hidden}")
        if self.updates < 1 or self.batch_size < 1:
            raise ValueError(f"updates and batch_size must be at least 1, got {self}")
        if not (0 < self.learning_rate < 1 and 0 <= self.weight_decay < 1 and 0 < self.holdout < 1):
            raise ValueError(f"learning_rate and holdout must lie in (0, 1), got {self}")


class Scaling(NamedTuple):
    """Means and standard deviations. Those of the targets are ours: unifloral leaves them raw."""

    input_mean: Tensor
    """(I,)"""
    input_std: Tensor
    """(I,), 1 where an input never changes"""
    target_mean: Tensor
    """(D,)"""
    target_std: Tensor
    """(D,), tiny where a target never changes: drawn noise then stays tiny too"""

    def inputs(self, obs: Tensor, action: Tensor) -> Tensor:
        """(N, O), (N, A) -> (N, I)."""
        return (torch.cat((obs, action), dim=-1) - self.input_mean) / self.input_std

    def target(self, obs: Tensor, next_obs: Tensor, reward: Tensor) -> Tensor:
        """(N, O), (N, O), (N,) -> (N, D)."""
        raw = torch.cat((next_obs - obs, reward[:, None]), dim=-1)
        return (raw - self.target_mean) / self.target_std


@dataclass(frozen=True)
class DynamicsEnsemble:
    """The trained networks. Observations and rewards are in the environment's units."""

    networks: Networks
    scaling: Scaling
    holdout_error: Tensor
    """(E,) mean squared error of standardised targets on held-out episodes"""
    elites: Tensor
    """(K,) numbers of the members that predict, best first"""
    termination: Termination | None
    """The task's own end, None if it has to be predicted"""

    @torch.no_grad()
    def predict(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """(N, O), (N, A) -> mean and standard deviation of the elites' standardised targets.

        (K, N, D) each.
        """
        elites = self.networks.subset(self.elites)
        parts = [(m, v) for m, v, _ in elites.chunks(self.scaling.inputs(obs, action))]
        mean, log_variance = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        return mean, (0.5 * log_variance).exp()

    def step(
        self, obs: Tensor, action: Tensor, *, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """(N, O), (N, A) -> next observation (N, O) and reward (N,), drawn from a random elite."""
        mean, std = self.predict(obs, action)
        elite = self._draw_elites(len(obs), generator)
        row = torch.arange(len(obs), device=obs.device)
        noise = torch.randn(mean.shape[1:], generator=generator, device=obs.device)
        drawn = mean[elite, row] + std[elite, row] * noise
        change = drawn * self.scaling.target_std + self.scaling.target_mean
        return obs + change[:, :-1], change[:, -1]

    @torch.no_grad()
    def ends(
        self, obs: Tensor, action: Tensor, next_obs: Tensor, *, generator: torch.Generator
    ) -> Tensor:
        """(N,) bool, whether transitions end the task; predicted ends are drawn from an elite."""
        if self.termination is not None:
            return self.termination(next_obs)
        elites = self.networks.subset(self.elites)
        parts = [logit for _, _, logit in elites.chunks(self.scaling.inputs(obs, action))]
        elite = self._draw_elites(len(obs), generator)
        logit = torch.cat(parts, dim=1)[elite, torch.arange(len(obs), device=obs.device)]
        return torch.rand(len(obs), generator=generator, device=obs.device) < logit.sigmoid()

    def disagreement(self, obs: Tensor, action: Tensor) -> Tensor:
        """(N,) max over elites i of ||mean_i - mean of the elites||, in standardised units."""
        mean, _ = self.predict(obs, action)
        distance: Tensor = torch.linalg.vector_norm(mean - mean.mean(0), dim=-1)
        return distance.amax(0)

    def noise(self, obs: Tensor, action: Tensor) -> Tensor:
        """(N,) max over elites i of ||std_i|| in the environment's units, MOPO's uncertainty."""
        _, std = self.predict(obs, action)
        norm: Tensor = torch.linalg.vector_norm(std * self.scaling.target_std, dim=-1)
        return norm.amax(0)

    def log_prob(self, obs: Tensor, action: Tensor, next_obs: Tensor, reward: Tensor) -> Tensor:
        """(N,) log-density of (next_obs, reward) under the elites' mixture, environment's units."""
        mean, std = self.predict(obs, action)
        z = (self.scaling.target(obs, next_obs, reward) - mean) / std
        unit = std * self.scaling.target_std * math.sqrt(2 * math.pi)
        each = -(0.5 * z.square() + unit.log()).sum(-1)
        return each.logsumexp(0) - math.log(len(each))

    def implausibility(
        self, obs: Tensor, action: Tensor, next_obs: Tensor, reward: Tensor
    ) -> Tensor:
        """(N,) expected squared error of (next_obs, reward), in variances of the data.

        Mean over numbers and elites, each of which may be right: what the elites disagree on counts
        as error of the transition, too.
        """
        mean, _ = self.predict(obs, action)
        spread = torch.cat((self.scaling.input_std[: obs.shape[-1]], self.scaling.target_std[-1:]))
        error = self.scaling.target(obs, next_obs, reward) - mean
        return (error * self.scaling.target_std / spread).square().mean((0, 2))

    def provenance(self) -> dict[str, Any]:
        """How good the elites are and who says when tasks end, for the run record."""
        end = "predicted" if self.termination is None else self.termination.__name__
        return {"holdout_error": self.holdout_error[self.elites].tolist(), "task_end": end}

    def _draw_elites(self, n: int, generator: torch.Generator) -> Tensor:
        device = self.elites.device
        return torch.randint(len(self.elites), (n,), generator=generator, device=device)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything but the task's own end."""
        layers = enumerate(zip(self.networks.weights, self.networks.biases, strict=True))
        state = {f"{kind}{i}": t for i, pair in layers for kind, t in zip("wb", pair, strict=True)}
        bounds = [self.networks.max_log_variance, self.networks.min_log_variance]
        state |= {"bounds": torch.stack(bounds), **self.scaling._asdict()}
        return state | {"holdout_error": self.holdout_error, "elites": self.elites}

    @classmethod
    def restore(
        cls, state: Mapping[str, Tensor], ended: Termination | None, device: torch.device
    ) -> "DynamicsEnsemble":
        """What `state_dict` gave, on a device."""
        at = {name: tensor.to(device) for name, tensor in state.items()}
        depth = sum(name.startswith("w") for name in at)
        weights, biases = ([at[f"{kind}{i}"] for i in range(depth)] for kind in "wb")
        networks = Networks(weights, biases, *at["bounds"])
        scaling = Scaling(*(at[name] for name in Scaling._fields))
        return cls(networks, scaling, at["holdout_error"], at["elites"], ended)


def load_or_train(source: Source, config: DynamicsConfig) -> DynamicsEnsemble:
    """The ensemble for these data, from the cache if it was trained before.

    Raises InputError for data of a single episode, a damaged file, or a cache without room.
    """
    values = json.dumps(dataclasses.asdict(config), sort_keys=True)
    config_hash = hashlib.sha256(values.encode()).hexdigest()[:8]
    data_hash = episodes_hash(source.episodes)[:16]
    path = source.cache / f"dynamics-{data_hash}-{config_hash}.safetensors"
    require_writable(source.cache)
    source.cache.mkdir(parents=True, exist_ok=True)
    env_id = source.info.env_id
    with FileLock(path.with_suffix(".lock")):  # another run may be training the same
        if not path.exists():
            trained = train_dynamics(
                source.episodes, env_id, config, source.device, source.progress
            )
            save_tensors(path, trained.state_dict(), {"kind": "dynamics", "config": values})
        state, _ = load_tensors(path)
    return DynamicsEnsemble.restore(state, known_end(source.episodes, env_id), source.device)


def train_dynamics(
    episodes: Episodes,
    env_id: str | None,
    config: DynamicsConfig,
    device: torch.device,
    progress: bool = False,
) -> DynamicsEnsemble:
    """Trains an ensemble. progress: a bar on stderr. Raises InputError for a single episode."""
    training, validation = hold_out(episodes, config.holdout, config.seed)
    scaling = _scaling(training, device)
    rows, held = _rows(training, scaling, device), _rows(validation, scaling, device)
    table = torch.cat([part.reshape(len(rows.known), -1) for part in rows], dim=1)
    widths = [rows.inputs.shape[1], rows.target.shape[1], 1, 1]
    generator = torch.Generator(device).manual_seed(config.seed)
    networks = initial(widths[0], config.hidden, widths[1], config.members, generator)
    optimiser = torch.optim.AdamW(
        networks.tensors(), config.learning_rate, eps=1e-5, weight_decay=config.weight_decay,
        fused=True,
    )  # fmt: skip
    draw = (config.members, config.batch_size)
    with StepBar("dynamics", config.updates, 0, progress) as bar:
        for _ in range(config.updates):
            bar.advance(1)
            index = torch.randint(len(table), draw, generator=generator, device=device)
            inputs, target, terminal, known = table[index].split(widths, dim=-1)
            batch = Rows(inputs, target, terminal.squeeze(-1), known.squeeze(-1))
            optimiser.zero_grad()
            loss(networks, batch).backward()
            optimiser.step()
    for tensor in networks.tensors():
        tensor.requires_grad_(False)
    errors = squared_error(networks, held)
    elites = errors.argsort()[: config.elites]
    return DynamicsEnsemble(networks, scaling, errors, elites, known_end(episodes, env_id))


def _scaling(episodes: Episodes, device: torch.device) -> Scaling:
    """Statistics of the usable transitions, summed in float64."""
    batch = episodes.transitions("strict")
    inputs = torch.cat((batch.obs, batch.action), dim=-1).double()
    target = torch.cat((batch.next_obs - batch.obs, batch.reward[:, None]), dim=-1).double()
    target = target[torch.from_numpy(episodes.successor_known[episodes.usable("strict")])]
    input_std, target_std = inputs.std(0, correction=0), target.std(0, correction=0)
    input_std[input_std < TINY] = 1.0
    values = (inputs.mean(0), input_std, target.mean(0), target_std.clamp_min(TINY))
    return Scaling(*(value.float().to(device) for value in values))


def _rows(episodes: Episodes, scaling: Scaling, device: torch.device) -> Rows:
    """All usable transitions: (N, I), (N, D), (N,), (N,)."""
    usable = episodes.usable("strict")
    batch = episodes.transitions_at(usable, "strict")
    known = torch.from_numpy(episodes.successor_known[usable]).float()
    obs, action, reward, next_obs, terminal, known = (
        part.to(device)
        for part in (batch.obs, batch.action, batch.reward, batch.next_obs, batch.terminal, known)
    )
    inputs = scaling.inputs(obs, action)
    return Rows(inputs, scaling.target(obs, next_obs, reward), terminal, known)
