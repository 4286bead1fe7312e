"""Genomes of the step search: times and skipped blocks, how they begin, mutate and cross.

Dimension letters: K steps of a sample, S blocks that may be skipped.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from offdiff.core.errors import InputError
from offdiff.diffusion.paths import Path
from offdiff.diffusion.sampling import karras_sigmas
from offdiff.diffusion.skips import Skipping

GAP = 1e-5
"""Between the times of a grid: multistep rules divide by their distance."""
TIMES, SKIPS = 0, 1
"""What a mutation changes: these alone, or both (2). Good times could not keep still otherwise."""


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
    full_share: float = 1 / 3
    """Share of the generations that search times alone, before blocks are skipped too."""

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
        if not 0 <= self.full_share <= 1:
            raise InputError(f"full_share must lie in [0, 1], got {self.full_share}")


@dataclass(frozen=True)
class Genome:
    """Times and what is skipped at them."""

    times: Tensor
    """(K,) rising, in (0, 1]"""
    skip: Tensor
    """(K, S) bool, see `Skipping`; S = 0 in a search of times alone"""

    def sorted(self) -> "Genome":
        """In the order of times, GAP apart at least, what is skipped moving along."""
        room = GAP * torch.arange(len(self.times), dtype=self.times.dtype)
        times, order = self.times.clamp(1e-3, 1).sort()
        return Genome((times - room).flip(0).cummin(0).values.flip(0) + room, self.skip[order])


def first_generation(
    skip: Tensor, clock: Path, sigma_max: float, evolution: Evolution, generator: torch.Generator
) -> list[Genome]:
    """The uniform grid, EDM's, and of the rest half mutations of the two, half random.

    skip: (K, S) of all of them.
    """
    steps = len(skip)
    latest = clock.time(torch.tensor(sigma_max, dtype=torch.float64))
    karras = clock.time(karras_sigmas(steps, sigma_max=sigma_max)[:-1]) / latest
    grids = [uniform_times(steps), karras]
    known = [Genome(times, skip).sorted() for times in grids][: evolution.population]
    rest = evolution.population - len(known)
    moved = [_moved(known[i % 2].times, evolution.rate, generator) for i in range(rest // 2)]
    random = [_random(steps, generator) for _ in range(rest - rest // 2)]
    return known + [Genome(times, skip).sorted() for times in moved + random]


def next_generation(
    parents: list[Genome], evolution: Evolution, limits: Skipping | None, generator: torch.Generator
) -> list[Genome]:
    """Those that join the kept ones: mutations, crossovers and fresh genomes.

    limits: of what may be skipped; None leaves that as the parents have it.
    """

    def parent() -> Genome:
        return parents[int(torch.randint(len(parents), (), generator=generator))]

    def mutated() -> Genome:
        one = parent()
        times, skip = one.times, one.skip
        which = int(torch.randint(3, (), generator=generator)) if limits else TIMES
        if which != SKIPS:
            times = _moved(times, evolution.rate, generator)
        if limits and which != TIMES:
            skip = limits.mutated(skip, evolution.rate, generator)
        return Genome(times, skip).sorted()

    def crossed() -> Genome:
        one, other = parent(), parent()
        first = torch.rand(len(one.times), generator=generator) < 0.5
        times = torch.where(first, one.times, other.times)
        skip = torch.where(first[:, None], one.skip, other.skip)
        return Genome(times, limits.lawful(skip, generator) if limits else skip).sorted()

    def fresh() -> Genome:
        times, skip = _random(len(parents[0].times), generator), parents[0].skip
        return Genome(times, limits.random(len(times), generator) if limits else skip).sorted()

    used = evolution.kept + evolution.mutated + evolution.crossed
    return [
        *(mutated() for _ in range(evolution.mutated)),
        *(crossed() for _ in range(evolution.crossed)),
        *(fresh() for _ in range(evolution.population - used)),
    ]


def _moved(times: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Some genes, at least one, moved by steps of all sizes: far at first, near at the end."""
    chosen = torch.rand(len(times), generator=generator) < rate
    chosen[int(torch.randint(len(times), (), generator=generator))] = True
    size = 10 ** -(0.5 + 1.5 * torch.rand(len(times), generator=generator, dtype=times.dtype))
    step = size * torch.randn(len(times), generator=generator, dtype=times.dtype)
    return torch.where(chosen, times + step, times)


def uniform_times(steps: int) -> Tensor:
    """(K,) evenly in (0, 1]."""
    return torch.arange(1, steps + 1, dtype=torch.float64) / steps


def _random(steps: int, generator: torch.Generator) -> Tensor:
    return torch.rand(steps, generator=generator, dtype=torch.float64)
