"""Levels for a sampler of few steps, found by evolution: AutoDiffusion (arXiv 2309.10438).

The genome is K times; populations and rates are the released ones (lilijiangg/AutoDiffusion). What
differs: the score is the distance to the model's own fine ODE from the same noise, not FID, so no
data are needed and all candidates meet the same noise; times are continuous. Left out: the network
blocks to skip in every step, the sampler's rule and guidance as genes.

Measured on a mixture of three modes, 3 DDIM steps, three seeds: errors of 0.25 to 0.32 against 1.1
to 1.2 for the uniform grid. Most of that is the first level: a uniform grid whose first time alone
is tuned has 0.36.

A grid belongs to one model, one guidance scale and one sampler: search again when one changes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from offdiff.core.errors import InputError
from offdiff.diffusion.denoiser import SIGMA_MAX, Denoise
from offdiff.diffusion.gaussian_start import Start
from offdiff.diffusion.paths import Cosine, Path, sigma_at
from offdiff.diffusion.sampling import karras_sigmas, sample_euler, sample_heun

Sample = Callable[[Denoise, Tensor, Tensor], Tensor]
"""A sampler: (denoise, x (B, *E) at sigmas[0], falling levels (K + 1,), the last 0) -> clean."""
Report = Callable[[int, float], None]
"""(generations done, the smallest error so far)"""


GAP = 1e-5
"""Between the times of a grid."""


@dataclass(frozen=True, kw_only=True)
class Evolution:
    """The size of the search; what is not kept, mutated or crossed is fresh."""

    generations: int = 10
    population: int = 50
    kept: int = 10
    mutated: int = 25
    crossed: int = 12
    rate: float = 0.25
    """Probability that a gene is mutated."""
    finalists: int = 5
    """How many grids are scored again on fresh noise."""

    def __post_init__(self) -> None:
        """Refuse what cannot be carried out."""
        if self.generations < 0 or min(self.mutated, self.crossed) < 0:
            raise InputError("an evolution has no negative numbers of generations or children")
        if self.kept < 1 or self.kept + self.mutated + self.crossed > self.population:
            raise InputError(
                f"kept {self.kept} (at least 1) + mutated {self.mutated} + crossed {self.crossed} "
                f"must fit into a population of {self.population}"
            )
        if not 0 < self.rate <= 1 or not 1 <= self.finalists <= self.population:
            raise InputError("need 0 < rate <= 1 and 1 <= finalists <= population")


@dataclass(frozen=True)
class Found:
    """A grid and what it is worth."""

    sigmas: Tensor
    """(K + 1,) falling levels, the last 0"""
    error: float
    """Paired RMSE to the fine ODE, on noise that the search has not seen"""
    uniform_error: float
    """The same of K times evenly spaced in (0, 1], on the same noise"""
    evaluations: int
    """Grids scored on the search's noise"""


def start_at(noise: Tensor, sigma: float, spread: float = 1.0) -> Tensor:
    """Standard normal numbers -> where sampling starts at a level, the same shape.

    A sample at this level has the data's variance too. Noise of variance sigma^2 alone would be too
    narrow at a first level of few times the data's standard deviation, spread (rectified
    diffusion's second trap). `gaussian_start` does better where columns go together.
    What remains is that the start is a Gaussian around 0, not noisy data: the search weighs this.
    Measured on mixtures of unit variance, 3 steps: the error is a third of that of spread 0.
    """
    return math.hypot(sigma, spread) * noise


def search_steps(
    denoise: Denoise,
    shape: tuple[int, ...],
    sample: Sample = sample_euler,
    *,
    steps: int = 4,
    clock: Path = Cosine(),  # noqa: B008  frozen
    evolution: Evolution | None = None,
    fine_steps: int = 64,
    fresh_batches: int = 16,
    sigma_max: float = SIGMA_MAX,
    start: Start = start_at,
    seed: int = 0,
    like: Tensor | None = None,
    report: Report | None = None,
) -> Found:
    """The levels with which `sample` comes nearest to the fine ODE of the same model.

    shape: (B, *E) of the noise a candidate is scored on, and of every call; B of 256 to 512.
    sample: must be deterministic; sample_euler is DDIM. clock: whose times are the genes.
    fine_steps: of Heun's method on EDM's grid, the reference.
    fresh_batches: batches of the same shape on which finalists are scored again.
    start: where sampling begins; a grid must be used with the start it was searched with.
    like: gives device and dtype.
    """
    if steps < 1:
        raise InputError(f"a grid needs at least 1 step, got {steps}")
    if len(shape) < 2 or min(shape) < 1:
        raise InputError(f"shape is (B, ...) with nothing empty, got {shape}")
    if fine_steps < steps or fresh_batches < 1:
        raise InputError(f"need fine_steps >= steps = {steps} and fresh_batches >= 1")
    if sigma_max <= 0:
        raise InputError(f"need sigma_max > 0, got {sigma_max}")
    evolution = evolution or Evolution()
    # On the CPU: the same seed is the same search on every device.
    generator = torch.Generator().manual_seed(seed)
    like = torch.empty(0) if like is None else like
    fine = karras_sigmas(fine_steps, min(0.002, sigma_max), sigma_max)

    @torch.no_grad()
    def run(with_: Sample, sigmas: Tensor, noise: Tensor) -> Tensor:
        return with_(denoise, start(noise, float(sigmas[0])), sigmas)

    def pair() -> tuple[Tensor, Tensor]:
        noise = torch.randn(shape, generator=generator, dtype=like.dtype).to(like.device)
        return noise, run(sample_heun, fine, noise)

    def error(times: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> float:
        sigmas = _levels(times, clock, sigma_max)
        squares = [(run(sample, sigmas, z) - goal).square().mean() for z, goal in pairs]
        value = float(torch.stack(squares).mean().sqrt())
        return value if math.isfinite(value) else math.inf

    seen = [pair()]
    population = _first_generation(steps, clock, sigma_max, evolution, generator)
    scored = [(error(times, seen), times) for times in population]
    evaluations = len(scored)
    for generation in range(evolution.generations):
        scored.sort(key=lambda entry: entry[0])
        if report is not None:
            report(generation, scored[0][0])
        scored = scored[: evolution.kept]
        children = _children([times for _, times in scored], evolution, generator)
        scored += [(error(times, seen), times) for times in children]
        evaluations += len(children)
    scored.sort(key=lambda entry: entry[0])
    if report is not None:
        report(evolution.generations, scored[0][0])

    fresh = [pair() for _ in range(fresh_batches)]
    finals = [(error(times, fresh), times) for _, times in scored[: evolution.finalists]]
    best_error, best = min(finals, key=lambda entry: entry[0])
    uniform_error = error(_uniform(steps), fresh)
    return Found(_levels(best, clock, sigma_max), best_error, uniform_error, evaluations)


def _levels(times: Tensor, clock: Path, sigma_max: float) -> Tensor:
    """(K,) rising shares of the time of sigma_max -> (K + 1,) falling levels, the last 0."""
    latest = clock.time(times.new_tensor(sigma_max))
    levels = sigma_at(clock, latest * times, sigma_max)
    return torch.cat((levels.flip(0), levels.new_zeros(1)))


def _uniform(steps: int) -> Tensor:
    return torch.arange(1, steps + 1, dtype=torch.float64) / steps


def _first_generation(
    steps: int, clock: Path, sigma_max: float, evolution: Evolution, generator: torch.Generator
) -> list[Tensor]:
    """The uniform grid, EDM's, and of the rest half mutations of the two, half random."""
    latest = clock.time(torch.tensor(sigma_max, dtype=torch.float64))
    karras = clock.time(karras_sigmas(steps, sigma_max=sigma_max)[:-1]) / latest
    known = [_uniform(steps), karras]
    known = [_tidy(times) for times in known][: evolution.population]
    rest = evolution.population - len(known)
    mutated = [_mutated(known[i % 2], evolution.rate, generator) for i in range(rest // 2)]
    return known + mutated + [_random(steps, generator) for _ in range(rest - rest // 2)]


def _children(
    parents: list[Tensor], evolution: Evolution, generator: torch.Generator
) -> list[Tensor]:
    """Those that join the kept ones: mutations, crossovers and fresh grids."""

    def parent() -> Tensor:
        return parents[int(torch.randint(len(parents), (), generator=generator))]

    def crossed() -> Tensor:
        first, second = parent(), parent()
        return _tidy(torch.where(torch.rand(len(first), generator=generator) < 0.5, first, second))

    used = evolution.kept + evolution.mutated + evolution.crossed
    return [
        *(_mutated(parent(), evolution.rate, generator) for _ in range(evolution.mutated)),
        *(crossed() for _ in range(evolution.crossed)),
        *(_random(len(parents[0]), generator) for _ in range(evolution.population - used)),
    ]


def _mutated(times: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Some genes, at least one, moved by steps of all sizes: far at first, near at the end."""
    chosen = torch.rand(len(times), generator=generator) < rate
    chosen[int(torch.randint(len(times), (), generator=generator))] = True
    size = 10 ** -(0.5 + 1.5 * torch.rand(len(times), generator=generator, dtype=times.dtype))
    step = size * torch.randn(len(times), generator=generator, dtype=times.dtype)
    return _tidy(torch.where(chosen, times + step, times))


def _random(steps: int, generator: torch.Generator) -> Tensor:
    return _tidy(torch.rand(steps, generator=generator, dtype=torch.float64))


def _tidy(times: Tensor) -> Tensor:
    """Rising times in (0, 1], GAP apart at least: multistep rules divide by their distance."""
    room = GAP * torch.arange(len(times), dtype=times.dtype)
    rising = times.clamp(1e-3, 1).sort().values
    return (rising - room).flip(0).cummin(0).values.flip(0) + room
