"""How good world models are at few network calls: the same noise, the same yardsticks for all.

Dimension letters: N windows, T rows, D columns.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offdiff.core.protocols import Policy
from offdiff.data.dataset import DatasetInfo
from offdiff.data.episodes import Episodes
from offdiff.data.windows import Windows
from offdiff.diagnostics import Inspector
from offdiff.diffusion.denoiser import Denoise
from offdiff.diffusion.fit import split
from offdiff.diffusion.guidance import PolicyGuidance, guided
from offdiff.diffusion.multistep import sample_unipc
from offdiff.diffusion.progress import StepBar
from offdiff.diffusion.sampling import karras_sigmas, low_levels
from offdiff.diffusion.solvers import Solver, calls_of, chosen, levels_of, sampler
from offdiff.diffusion.world_model import WorldModel
from offdiff.distances import energy_distance

FINE = 64
"""Calls of the third-order rule that stand for the exact ODE."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model, sampled with so many calls."""

    model: str
    solver: str
    levels: str
    """karras, low (from the data's Gaussian), student (from pure noise), searched or
    partial (from noised windows of the data)"""
    calls: int
    paired: float | None
    """RMSE to what the exact ODE makes of the same noise, its teacher's for a student, in standard
    deviations of the data; None if guided."""
    energy: float
    """Energy distance to windows of held-out episodes."""
    dynamics: float | None
    """Mean squared error of successors against the simulator, in variances of the data."""
    dynamics_median: float | None
    log_likelihood: float | None
    """Of the actions, by the policy."""
    residual_std: float | None
    """Of the actions from the policy's mean, in the policy's standard deviations."""
    terminal_rate: float
    seconds_per_100k: float
    """Transitions, one thread."""
    novelty: float | None = None
    """Distance to the nearest recorded window, in those of recorded windows to each other."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All points, and what the data themselves have."""

    points: tuple[Point, ...]
    energy_floor: float
    """Between two samples of held-out windows, as many as the models make."""
    dynamics_floor: float | None
    terminal_rate: float

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


@torch.no_grad()
def compare(
    models: Mapping[str, tuple[WorldModel, Sequence[Solver]]],
    episodes: Episodes,
    info: DatasetInfo,
    calls: Sequence[int],
    *,
    policy: Policy | None = None,
    strength: float = 1.0,
    windows: int = 256,
    noised: float = 0.0,
    seed: int = 0,
    progress: bool = False,
) -> Comparison:
    """Samples every model by every one of its solvers at all numbers of calls, or at its only one.

    models: label -> model and solvers. policy: guide all by it, calibrated with a strength.
    noised: start from windows of the data at this level of noise; 0 for the models' own start.
    """
    first = next(iter(models.values()))[0]
    kept, held = split(episodes, first.config, first.device)
    yardstick = _Yardstick(first, kept, held, info, episodes, windows, seed)
    jobs = [
        (label, model, chosen(solver, model, levels_of(solver, n)), n)
        for label, (model, solvers) in models.items()
        for solver in solvers
        for n in ((model.lineage.max_calls,) if model.lineage.max_calls else calls)
    ]
    points: dict[tuple[str, str, int], Point] = {}
    exact = {model.hash: _exact(model, windows, seed) for model, _ in models.values()
             if policy is None}  # fmt: skip
    with StepBar("comparing", len(jobs), 0, progress) as bar:
        for label, model, solver, n in jobs:
            bar.advance(1)
            levels = levels_of(solver, n)
            key = (label, solver, calls_of(solver, levels))
            if key in points:  # Heun makes one call with two as with one
                continue
            reference = exact.get(model.lineage.teacher or model.hash, exact.get(model.hash))
            points[key] = yardstick.measure(
                label, model, solver, levels, policy, strength, noised, reference
            )
    return Comparison(
        points=tuple(points.values()),
        energy_floor=yardstick.floor(),
        dynamics_floor=yardstick.data_dynamics,
        terminal_rate=yardstick.data_terminal_rate,
    )


class _Yardstick:
    """What all points are measured with."""

    def __init__(
        self,
        model: WorldModel,
        kept: Windows,
        held: Windows,
        info: DatasetInfo,
        episodes: Episodes,
        windows: int,
        seed: int,
    ) -> None:
        generator = torch.Generator(model.device).manual_seed(seed)
        self.real = [
            model.codec.encode(held.sample(windows, generator=generator)) for _ in range(2)
        ]
        self.known = model.codec.encode(kept.sample(windows, generator=generator))
        self.inspector = Inspector(info, episodes, samples=windows)
        self.windows, self.seed = windows, seed
        self.data_dynamics: float | None = None
        self.data_terminal_rate = 0.0

    def floor(self) -> float:
        """Energy distance between two samples of the data."""
        return energy_distance(*self.real)

    def measure(
        self,
        label: str,
        model: WorldModel,
        solver: str,
        levels: int,
        policy: Policy | None,
        strength: float,
        noised: float,
        exact: Tensor | None,
    ) -> Point:
        """One point."""
        denoise: Denoise = model.denoiser
        if policy is not None:
            denoise = guided(denoise, PolicyGuidance(
                codec=model.codec, policy=policy, strength=strength, variance=model.errors,
            ))  # fmt: skip
        noise = _noise(model, self.windows, self.seed)
        if noised:
            sigmas, start = low_levels(levels, noised), self.known + noised * noise
        else:
            sigmas, start = model.levels(levels), model.start(noise, levels)
        begun = time.perf_counter()
        rows = sampler(solver, model, levels)(denoise, start, sigmas)
        seconds = time.perf_counter() - begun
        made = model.codec.decode(rows)
        found = self.inspector.inspect(made, policy)
        self.data_dynamics = found.floor.mean if found.floor else None
        self.data_terminal_rate = found.data_terminal_rate
        return Point(
            model=label,
            solver=solver,
            levels="partial" if noised else _kind_of_levels(model, levels),
            calls=calls_of(solver, levels),
            paired=None if exact is None else float((rows - exact).square().mean().sqrt()),
            energy=energy_distance(rows, self.real[0]),
            dynamics=found.dynamics.mean if found.dynamics else None,
            dynamics_median=found.dynamics.median if found.dynamics else None,
            log_likelihood=found.policy.log_likelihood if found.policy else None,
            residual_std=found.policy.residual_std if found.policy else None,
            terminal_rate=found.terminal_rate,
            novelty=found.novelty,
            seconds_per_100k=seconds / max(1, int(made.mask.sum())) * 100_000,
        )


def _kind_of_levels(model: WorldModel, steps: int) -> str:
    if steps in model.grids:
        return "searched"
    if model.starts_low(steps):
        return "low"
    return "student" if model.lineage.teacher else "karras"


def _noise(model: WorldModel, n: int, seed: int) -> Tensor:
    """(N, T, D), the same for all models of these windows."""
    generator = torch.Generator(model.device).manual_seed(seed)
    return model.noise(n, 1.0, generator=generator)


def _exact(model: WorldModel, n: int, seed: int) -> Tensor:
    """What the ODE makes of that noise."""
    only = model.lineage.max_calls
    sigmas = model.levels(only) if only else karras_sigmas(FINE)
    return sample_unipc(model.denoiser, float(sigmas[0]) * _noise(model, n, seed), sigmas, order=3)
