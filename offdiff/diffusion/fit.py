"""Training of a world model: exact resume, one process or many.

Dimension letters: B windows of the global batch, T rows, D columns.
"""

import copy
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offdiff.core.errors import DivergedError, InputError
from offdiff.core.seeding import derive_seed
from offdiff.core.tensors import load_tensors, save_tensors
from offdiff.data.codec import Codec
from offdiff.data.episodes import Episodes
from offdiff.data.windows import Windows, episodes_hash, hold_out
from offdiff.diffusion.config import ModelConfig
from offdiff.diffusion.couplings import Coupling, Independent
from offdiff.diffusion.denoiser import Denoiser, LevelLaw, Levels, draw_levels
from offdiff.diffusion.distributed import Group, distributed
from offdiff.diffusion.laws import training_levels
from offdiff.diffusion.losses import Loss, at_levels
from offdiff.diffusion.progress import StepBar
from offdiff.diffusion.world_model import (
    WorldModel,
    make_denoiser,
    measure_errors,
    measure_gaussian,
)

CHECKPOINT = "model-checkpoint.safetensors"
CHECKPOINT_SECONDS = 20.0
VALIDATIONS = 10
"""Points of the validation curve."""
VALIDATION_WINDOWS = 1024
STATISTICS_WINDOWS = 65_536


@dataclass
class Fit:
    """A training in progress: everything that later steps depend on."""

    config: ModelConfig
    codec: Codec
    coupling: Coupling
    held: Windows
    law: Levels
    """Of the noise levels in training."""
    loss: Loss
    average: Denoiser
    """The denoiser with averaged weights."""
    optimiser: torch.optim.AdamW
    generator: torch.Generator
    group: Group
    steps: int = 0
    validation: list[tuple[int, float]] = field(default_factory=list)

    @classmethod
    def start(
        cls, episodes: Episodes, config: ModelConfig, device: torch.device, group: Group
    ) -> "Fit":
        """Everything before the first step. Raises InputError for data that hold no window."""
        windows, held = split(episodes, config, device)
        index = torch.linspace(
            0, len(windows) - 1, min(len(windows), STATISTICS_WINDOWS), dtype=torch.float64
        )  # float32 could not name every window
        codec = Codec.fit(windows.cut(index.long().to(device)), config.action_map)
        return cls.of(config, codec, Independent(windows, codec), held, group)

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        codec: Codec,
        coupling: Coupling,
        held: Windows,
        group: Group,
        weights: nn.Module | None = None,
    ) -> "Fit":
        """Before the first step. weights: a network to start from; None for fresh ones."""
        device = codec.mean.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, "model"))
            denoiser = make_denoiser(config, codec)
        if weights is not None:
            denoiser.network.load_state_dict(weights.state_dict())
        denoiser.half_precision = device.type == "cuda"
        return cls(
            config=config,
            codec=codec,
            coupling=coupling,
            held=held,
            law=training_levels(config),
            loss=Loss(denoiser, config.objective, config.metric),
            average=copy.deepcopy(denoiser).eval().requires_grad_(False),
            optimiser=_optimiser(denoiser, config),
            generator=torch.Generator(device).manual_seed(derive_seed(config.seed, "windows")),
            group=group,
        )

    def step(self, loss: nn.Module) -> Tensor:
        """One gradient step; gives its loss, still on the device."""
        config = self.config
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate * schedule(self.steps, config)
        clean, noise, sigma = self.draw()
        value: Tensor = loss(*(self.group.part(t) for t in (clean, noise, sigma)))
        self.optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(loss.parameters(), config.gradient_norm)
        self.optimiser.step()
        self.steps += 1
        # Early averages would remember the random start.
        decay = min(config.ema, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()),
                [p.detach() for p in self.loss.parameters()],
                1 - decay,
            )
        return value.detach()

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """The global batch: clean rows, noise (B, T, D), levels. The same in every process."""
        n, generator = self.config.batch_size, self.generator
        progress = self.steps / self.config.steps
        clean, noise, known = self.coupling.draw(n, progress, generator=generator)
        if isinstance(self.coupling, Independent):
            rows = clean.shape[1]
            sigma = draw_levels(self.config.levels, self.law, n, rows, generator=generator)
        else:  # which groups a pair's teacher was told is part of the pair
            sigma = at_levels(self.law.sample(n, generator=generator), known)
        return clean, noise, sigma

    @torch.no_grad()
    def validate(self) -> float:
        """Loss of the averaged weights on held-out episodes, always with the same noise."""
        generator = torch.Generator(self.codec.mean.device).manual_seed(1)
        clean = self.codec.encode(self.held.sample(VALIDATION_WINDOWS, generator=generator))
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        law = LevelLaw(mean=self.config.level_mean, std=self.config.level_std)
        sigma = law.sample(len(clean), generator=generator)
        return float(Loss(self.average)(clean, noise, sigma))

    def model(self, data_hash: str) -> WorldModel:
        """What has been learned so far."""
        return WorldModel(
            config=self.config,
            denoiser=self.average,
            codec=self.codec,
            errors=measure_errors(self.average, self.codec, self.held, VALIDATION_WINDOWS),
            data_hash=data_hash,
            validation=tuple(self.validation),
        )

    def save(self, path: Path, data_hash: str) -> None:
        """Writes the state atomically."""
        tensors = {f"network/{k}": v for k, v in self.loss.denoiser.network.state_dict().items()}
        tensors |= {f"average/{k}": v for k, v in self.average.network.state_dict().items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{i}/{k}": torch.as_tensor(v) for k, v in state.items()}
        tensors["generator"] = self.generator.get_state()
        meta = {
            "kind": "model_checkpoint",
            "config_hash": self.config.hash,
            "data_hash": data_hash,
            "steps": self.steps,
            "validation": self.validation,
        }
        save_tensors(path, tensors, meta)

    def load(self, path: Path, data_hash: str) -> None:
        """Continues from a saved state. Raises InputError if it is another model's."""
        tensors, meta = load_tensors(path)
        if (meta.get("config_hash"), meta.get("data_hash")) != (self.config.hash, data_hash):
            raise InputError(f"{path} belongs to another model; remove it")
        self.loss.denoiser.network.load_state_dict(_own("network", tensors))
        self.average.network.load_state_dict(_own("average", tensors))
        state: dict[int, dict[str, Any]] = {}
        for key, tensor in _own("optimiser", tensors).items():
            i, name = key.split("/")
            state.setdefault(int(i), {})[name] = tensor
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        self.generator.set_state(tensors["generator"])
        self.steps = meta["steps"]
        self.validation = [tuple(point) for point in meta["validation"]]


def train_model(
    episodes: Episodes,
    config: ModelConfig,
    device: torch.device,
    folder: Path,
    *,
    progress: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> WorldModel:
    """Trains a world model; continues from the checkpoint in `folder` if there is one.

    Under `torchrun` the batch is shared between the processes (PyTorch DDP): the result is that of
    one process but for the order of summation, with `levels="shared"`; mixed levels are averaged
    process by process. The first process writes checkpoints.
    Raises InputError for unfit data, or a loss that stops being finite.
    """
    data_hash = episodes_hash(episodes)
    with distributed(device) as group:
        group.require_divisible(config.batch_size)
        fit = Fit.start(episodes, config, device, group)
        run_fit(
            fit, folder / CHECKPOINT, data_hash, title="world model", progress=progress,
            checkpoint_seconds=checkpoint_seconds,
        )  # fmt: skip
        windows, _ = split(episodes, config, device)
        return replace(fit.model(data_hash), gaussian=measure_gaussian(fit.codec, windows))


def run_fit(
    fit: Fit,
    checkpoint: Path,
    identity: str,
    *,
    title: str,
    progress: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> None:
    """All steps that are left, from the checkpoint if there is one.

    identity: what the checkpoint must be of, besides the configuration: data, teacher.
    Raises InputError for a checkpoint of another model, or a loss that stops being finite.
    """
    config, group = fit.config, fit.group
    if checkpoint.exists():
        fit.load(checkpoint, identity)
    loss = group.wrap(fit.loss)
    every = max(1, config.steps // VALIDATIONS)
    with StepBar(title, config.steps, fit.steps, progress and group.first) as bar:
        saved, total = time.monotonic(), torch.zeros((), device=fit.codec.mean.device)
        while fit.steps < config.steps:
            total += fit.step(loss)
            bar.advance(1)
            if fit.steps % every == 0 or fit.steps == config.steps:
                _require_finite(total, fit.steps)
                fit.validation.append((fit.steps, fit.validate()))
                bar.show(f"validation loss {fit.validation[-1][1]:.4f}")
            if group.first and time.monotonic() - saved >= checkpoint_seconds:
                _require_finite(total, fit.steps)
                fit.save(checkpoint, identity)
                saved = time.monotonic()


def split(episodes: Episodes, config: ModelConfig, device: torch.device) -> tuple[Windows, Windows]:
    """Windows to train on and windows of held-out episodes. Raises InputError without any."""
    kept, held = hold_out(episodes, config.holdout, config.seed)
    windows = Windows.of(kept, config.horizon, device, terminals=config.terminals)
    try:
        return windows, Windows.of(held, config.horizon, device, terminals=config.terminals)
    except InputError as error:
        raise InputError(
            f"none of the held-out episodes has a window of {config.horizon} transitions; "
            "shorten the horizon or hold out more"
        ) from error


def schedule(step: int, config: ModelConfig) -> float:
    """Share of the peak learning rate: linear warm-up, then half a cosine to 0."""
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, config.steps - warm)
    return 0.5 * (1 + math.cos(math.pi * done))


def _optimiser(denoiser: Denoiser, config: ModelConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices but neither biases nor gains."""
    matrices = [p for p in denoiser.parameters() if p.ndim >= 2]
    others = [p for p in denoiser.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, foreach=True)


def _require_finite(loss: Tensor, step: int) -> None:
    if not math.isfinite(float(loss)):
        raise DivergedError(
            f"the world model's loss became {float(loss)} before step {step}; lower its "
            "learning rate (the last checkpoint is from before)"
        )


def _own(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)}
