"""The training of a planner: all its parts on the same windows, with exact resume."""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offdiff.core.errors import DivergedError, InputError
from offdiff.core.seeding import derive_seed
from offdiff.core.tensors import load_tensors, save_tensors
from offdiff.data.episodes import Episodes
from offdiff.data.plan_windows import PlanWindows, require_reach
from offdiff.data.windows import hold_out
from offdiff.diffusion.progress import StepBar
from offdiff.planners.base import PlannerConfig, PlannerModule
from offdiff.planners.task import Task

CHECKPOINT_SECONDS = 20.0
HELD_WINDOWS = 1024
"""Held-out windows of validation and calibration."""
SCALE_WINDOWS = 16_384
"""Windows that scales are measured on."""

Log = Callable[[int, Mapping[str, float]], None]
"""(gradient steps done, means since the last call)"""


@dataclass
class PlannerFit:
    """A training in progress: everything that later steps depend on."""

    config: PlannerConfig
    updates: int
    """Planned length, for the schedule."""
    seed: int
    train: PlanWindows
    held: PlanWindows
    module: PlannerModule
    average: PlannerModule
    """With averaged weights."""
    optimiser: torch.optim.AdamW | None
    """None if there is nothing to learn."""
    generator: torch.Generator
    steps: int = 0

    @classmethod
    def start(
        cls,
        config: PlannerConfig,
        task: Task,
        episodes: Episodes,
        *,
        updates: int,
        seed: int,
        device: torch.device,
    ) -> "PlannerFit":
        """Everything before the first step. Raises InputError for data it cannot be trained on."""
        require_reach(episodes, config.window, config.stride)
        kept, held = hold_out(episodes, config.holdout, seed)
        cut = partial(
            PlanWindows.of,
            rows=config.window,
            device=device,
            stride=config.stride,
            discount=config.discount,
            lasting=task.goal is not None,
        )
        train = cut(kept)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "planner"))
            module = config.build(task).to(device)
        scales = torch.Generator(device).manual_seed(0)
        module.begin(train.sample(SCALE_WINDOWS, generator=scales))
        return cls(
            config=config,
            updates=updates,
            seed=seed,
            train=train,
            held=cut(held),
            module=module,
            average=copy.deepcopy(module).eval().requires_grad_(False),
            optimiser=_optimiser(module, config),
            generator=torch.Generator(device).manual_seed(derive_seed(seed, "plan windows")),
        )

    def step(self) -> dict[str, Tensor]:
        """One gradient step of every part; gives their losses, still on the device."""
        assert self.optimiser is not None
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate * self.rate()
        # Dropout draws from the global generator: a resumed training must find it as it was.
        torch.manual_seed(derive_seed(self.seed, f"dropout {self.steps}"))
        batch = self.train.sample(self.config.batch_size, generator=self.generator)
        losses = self.module.losses(batch, generator=self.generator)
        self.optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        for part in self.parts:
            nn.utils.clip_grad_norm_(part.parameters(), self.config.gradient_norm)
        self.optimiser.step()
        self.module.after_step()
        self.steps += 1
        self._average()
        return {name: value.detach() for name, value in losses.items()}

    @cached_property
    def parts(self) -> list[nn.Module]:
        """The children that learn; their gradients are shortened one by one."""
        return [part for part in self.module.children() if any(True for _ in part.parameters())]

    def rate(self) -> float:
        """Share of the peak learning rate: linear warm-up, then half a cosine to 0."""
        warm = max(1, round(self.config.warmup * self.updates))
        if self.steps < warm:
            return (self.steps + 1) / warm
        done = (self.steps - warm) / max(1, self.updates - warm)
        return 0.5 * (1 + math.cos(math.pi * done))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Losses of the averaged weights on held-out episodes, always with the same noise."""
        generator = torch.Generator(self.generator.device).manual_seed(1)
        batch = self.held.sample(HELD_WINDOWS, generator=generator)
        losses = self.average.losses(batch, generator=generator)
        return {f"held_{name}": float(value) for name, value in losses.items()}

    @torch.no_grad()
    def finish(self) -> PlannerModule:
        """The planner, calibrated on held-out episodes."""
        generator = torch.Generator(self.generator.device).manual_seed(2)
        batch = self.held.sample(HELD_WINDOWS, generator=generator)
        self.average.calibrate(batch, generator=generator)
        return self.average

    def save(self, path: Path, identity: str) -> None:
        """Writes the state atomically."""
        tensors = {f"module/{k}": v for k, v in self.module.state_dict().items()}
        tensors |= {f"average/{k}": v for k, v in self.average.state_dict().items()}
        assert self.optimiser is not None
        for i, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{i}/{k}": torch.as_tensor(v) for k, v in state.items()}
        tensors["generator"] = self.generator.get_state()
        meta = {"kind": "planner_checkpoint", "identity": identity, "steps": self.steps}
        save_tensors(path, tensors, meta)

    def load(self, path: Path, identity: str) -> None:
        """Continues from a saved state. Raises InputError if it is another training's."""
        tensors, meta = load_tensors(path)
        if meta.get("kind") != "planner_checkpoint" or meta.get("identity") != identity:
            raise InputError(f"{path} belongs to another training; remove it")
        self.module.load_state_dict(_own("module", tensors))
        self.average.load_state_dict(_own("average", tensors))
        state: dict[int, dict[str, Any]] = {}
        for key, tensor in _own("optimiser", tensors).items():
            i, name = key.split("/")
            state.setdefault(int(i), {})[name] = tensor
        assert self.optimiser is not None
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        self.generator.set_state(tensors["generator"])
        self.steps = meta["steps"]

    def _average(self) -> None:
        # Early averages would remember the random start.
        decay = min(self.config.ema, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            averages = [p.detach() for p in self.average.parameters()]
            values = [p.detach() for p in self.module.parameters()]
            torch._foreach_lerp_(averages, values, 1 - decay)


def fit_planner(
    fit: PlannerFit,
    checkpoint: Path,
    identity: str,
    *,
    log: Log,
    log_every: int,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    title: str = "planner",
    progress: bool = False,
) -> PlannerModule:
    """Trains on to the planned length, with checkpoints on the way; gives the planner.

    Raises InputError for a loss that stops being finite.
    """
    if fit.optimiser is None:
        return fit.finish()
    totals: dict[str, Tensor] = {}
    saved, count = time.monotonic(), 0
    with (
        torch.random.fork_rng(devices=[]),
        StepBar(title, fit.updates, fit.steps, progress) as bar,
    ):
        while fit.steps < fit.updates:
            losses = fit.step()
            totals = {k: totals[k] + v if count else v for k, v in losses.items()}
            count += 1
            bar.advance(1)
            if fit.steps % log_every == 0 or fit.steps == fit.updates:
                row = {k: float(v) / count for k, v in totals.items()}
                _require_finite(row, fit.steps)
                row |= fit.validate()
                log(fit.steps, row)
                bar.show(", ".join(f"{k} {v:.3g}" for k, v in row.items() if k[:5] != "held_"))
                count = 0
                # Only where a log ends: its means are then the same after a resume.
                if time.monotonic() - saved >= checkpoint_seconds:
                    fit.save(checkpoint, identity)
                    saved = time.monotonic()
    return fit.finish()


def _optimiser(module: PlannerModule, config: PlannerConfig) -> torch.optim.AdamW | None:
    """AdamW that decays matrices but neither biases nor gains; None without parameters."""
    learned = [p for p in module.parameters() if p.requires_grad]
    if not learned:
        return None
    groups = [
        {"params": [p for p in learned if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in learned if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def _require_finite(row: Mapping[str, float], step: int) -> None:
    for name, value in row.items():
        if not math.isfinite(value):
            raise DivergedError(
                f"the planner's loss {name} became {value} before step {step}; lower its learning "
                "rate (the last checkpoint is from before)"
            )


def _own(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)}
