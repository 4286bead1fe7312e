"""Levels for a sampler of few steps, found by evolution: AutoDiffusion (arXiv 2309.10438).

The genome is K times and, if asked for, the blocks of the network that each step skips; populations
and rates are the released ones (lilijiangg/AutoDiffusion). What differs: the score is the distance
to the model's own fine ODE from the same noise, not FID, so no data are needed and all candidates
meet the same noise; times are continuous; mutations change what is skipped, which the released ones
do not. Left out: the sampler's rule and guidance as genes.

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
from offdiff.diffusion.genomes import (
    Evolution,
    Genome,
    first_generation,
    next_generation,
    uniform_times,
)
from offdiff.diffusion.paths import Cosine, Path, sigma_at
from offdiff.diffusion.sampling import karras_sigmas, sample_euler, sample_heun
from offdiff.diffusion.skips import Sample, Skipping, with_skips

Report = Callable[[int, float], None]
"""(generations done, the smallest error so far)"""


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
    full_error: float
    """The error on the same levels and noise with nothing skipped"""
    skips: tuple[tuple[int, ...], ...] = ()
    """The blocks that each step skips, in the order of sampling; empty if none was to"""
    saved: float = 0.0
    """Share of the block executions that this saves"""


Scored = tuple[float, Genome]
"""An error and what has it."""


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
    skipping: Skipping | None = None,
) -> Found:
    """The levels with which `sample` comes nearest to the fine ODE of the same model.

    shape: (B, *E) of the noise a candidate is scored on, and of every call; B of 256 to 512.
    sample: must be deterministic; sample_euler is DDIM. clock: whose times are the genes.
    fine_steps: of Heun's method on EDM's grid, the reference.
    fresh_batches: batches of the same shape on which finalists are scored again.
    start: where sampling begins; a grid must be used with the start it was searched with.
    like: gives device and dtype.
    skipping: the blocks that may be skipped too, by a sampler of one call per level.
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
    judge = _Judge(denoise, sample, clock, sigma_max, start, skipping)
    fine = karras_sigmas(fine_steps, min(0.002, sigma_max), sigma_max)

    def pair() -> tuple[Tensor, Tensor]:
        noise = torch.randn(shape, generator=generator, dtype=like.dtype).to(like.device)
        return noise, judge.run(sample_heun, fine, noise)

    seen, evaluations = [pair()], 0

    def score(genomes: list[Genome]) -> list[Scored]:
        nonlocal evaluations
        evaluations += len(genomes)
        return [(judge.error(genome, seen), genome) for genome in genomes]

    def evolve(scored: list[Scored], start: int, end: int, limits: Skipping | None) -> list[Scored]:
        for generation in range(start, end):
            kept = sorted(scored, key=_rank)[: evolution.kept]
            parents = [genome for _, genome in kept]
            scored = kept + score(next_generation(parents, evolution, limits, generator))
            if report is not None:
                report(generation + 1, min(scored, key=_rank)[0])
        return sorted(scored, key=_rank)

    none = torch.zeros(steps, 0, dtype=torch.bool) if skipping is None else skipping.none(steps)
    scored = score(first_generation(none, clock, sigma_max, evolution, generator))
    if report is not None:
        report(0, min(scored, key=_rank)[0])
    last = evolution.generations
    full = last if skipping is None else int(evolution.full_share * last)
    scored = evolve(scored, 0, full, None)
    if skipping is not None:
        best = [genome.times for _, genome in scored[: evolution.kept]]
        lighter = [
            Genome(best[i % len(best)], skipping.random(steps, generator))
            for i in range(evolution.population)
        ]
        scored = evolve(score(lighter), full, last, skipping)

    fresh = [pair() for _ in range(fresh_batches)]
    finals = [(judge.error(one, fresh), one) for _, one in scored[: evolution.finalists]]
    error, found = min(finals, key=_rank)
    return Found(
        _levels(found.times, clock, sigma_max),
        error,
        judge.error(Genome(uniform_times(steps), none), fresh),
        evaluations,
        full_error=judge.error(Genome(found.times, none), fresh) if found.skip.any() else error,
        skips=skipping.in_order(found.skip) if skipping else (),
        saved=int(found.skip.sum()) / (steps * skipping.blocks) if skipping else 0.0,
    )


@dataclass(frozen=True)
class _Judge:
    """What genomes are scored with."""

    denoise: Denoise
    sample: Sample
    clock: Path
    sigma_max: float
    start: Start
    skipping: Skipping | None

    @torch.no_grad()
    def run(self, sample: Sample, sigmas: Tensor, noise: Tensor) -> Tensor:
        return sample(self.denoise, self.start(noise, float(sigmas[0])), sigmas)

    def error(self, genome: Genome, pairs: list[tuple[Tensor, Tensor]]) -> float:
        """RMSE over pairs of noise and what the fine ODE makes of it; infinite if it diverges."""
        sigmas = _levels(genome.times, self.clock, self.sigma_max)
        sample = self.sample
        if self.skipping is not None and genome.skip.any():
            sample = with_skips(sample, self.skipping.network, self.skipping.in_order(genome.skip))
        squares = [(self.run(sample, sigmas, z) - goal).square().mean() for z, goal in pairs]
        value = float(torch.stack(squares).mean().sqrt())
        return value if math.isfinite(value) else math.inf


def _rank(scored: Scored) -> tuple[float, int]:
    """By error; of equals the one that executes fewer blocks."""
    error, genome = scored
    return error, -int(genome.skip.sum())


def _levels(times: Tensor, clock: Path, sigma_max: float) -> Tensor:
    """(K,) rising shares of the time of sigma_max -> (K + 1,) falling levels, the last 0."""
    latest = clock.time(times.new_tensor(sigma_max))
    levels = sigma_at(clock, latest * times, sigma_max)
    return torch.cat((levels.flip(0), levels.new_zeros(1)))
