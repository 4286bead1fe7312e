"""Sampling with some blocks of a transformer left out: how it runs, which blocks, how many.

A block adds to its input, so that the network without it is still one (AutoDiffusion,
arXiv 2309.10438). Dimension letters: K steps of a sample, S blocks that may be skipped.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from offdiff.core.errors import InputError
from offdiff.diffusion.denoiser import Denoise
from offdiff.diffusion.dit import DiT
from offdiff.diffusion.mmdit import MMDiT

Sample = Callable[[Denoise, Tensor, Tensor], Tensor]
"""(denoiser, start at the first level (B, *E), falling levels (K + 1,), the last 0) -> clean."""


def require_transformer(network: nn.Module, purpose: str) -> DiT | MMDiT:
    """Raises InputError for a network of another kind."""
    if isinstance(network, DiT | MMDiT):
        return network
    raise InputError(
        f"{purpose} needs the blocks of a transformer, not those of a {type(network).__name__}: "
        "use a model with a dit-* or mmdit-* network"
    )


@contextmanager
def skipping(network: nn.Module, blocks: Collection[int]) -> Iterator[None]:
    """The network without these blocks (numbered from 0), for as long as the context lasts.

    Raises InputError for a network that is no transformer.
    """
    transformer = require_transformer(network, "skipping")
    before = transformer.skipped
    transformer.skipped = frozenset(blocks)
    try:
        yield
    finally:
        transformer.skipped = before


def with_skips(sample: Sample, network: nn.Module, skips: Sequence[Collection[int]]) -> Sample:
    """The sampler whose k-th call leaves out the blocks skips[k] of the network.

    sample: makes one call per level. network: what the denoisers call that it will be given; they
    may be guided. The sampler raises InputError for another number of levels than of skips.
    """

    def sample_skipping(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
        if len(sigmas) - 1 != len(skips):
            raise InputError(
                f"blocks to skip are known for {len(skips)} levels, not for {len(sigmas) - 1}"
            )
        left = iter(skips)

        def lighter(x: Tensor, sigma: Tensor, /) -> Tensor:
            with skipping(network, next(left)):
                return denoise(x, sigma)

        return sample(lighter, x, sigmas)

    return sample_skipping


@dataclass(frozen=True, kw_only=True)
class Skipping:
    """Which blocks of a network a search may skip, and how many it has to.

    What is skipped is (K, S) bool, in the order of rising times, for all blocks but the first and
    the last. Raises InputError for what cannot be carried out.
    """

    network: nn.Module
    most: float = 0.25
    """Largest share of the network's blocks that a step leaves out."""
    least: float = 0.125
    """Smallest share that the steps leave out together: the rest is the budget."""

    def __post_init__(self) -> None:
        if not 0 < self.most < 1 or not 0 <= self.least <= self.most:
            raise InputError(
                f"need 0 < most < 1 and 0 <= least <= most, got {self.most} and {self.least}"
            )
        if self.most_at_a_step < 1:
            raise InputError(
                f"{self.most:.0%} of {self.blocks} blocks, without the first and the last, is not "
                "one; allow a larger share, or take a deeper network"
            )

    @property
    def blocks(self) -> int:
        """Of the network."""
        return len(require_transformer(self.network, "skipping").blocks)

    @property
    def most_at_a_step(self) -> int:
        """Blocks that one step may skip."""
        return min(int(self.most * self.blocks + 1e-9), self.blocks - 2)

    def needed(self, steps: int) -> int:
        """Blocks that so many steps must skip together; at most what the steps may."""
        return min(int(self.least * self.blocks * steps + 1e-9), self.most_at_a_step * steps)

    def none(self, steps: int) -> Tensor:
        """(K, S) of the full network."""
        return torch.zeros(steps, self.blocks - 2, dtype=torch.bool)

    def random(self, steps: int, generator: torch.Generator) -> Tensor:
        """(K, S)."""
        skip = self.none(steps)
        share = self.most_at_a_step / skip.shape[1]
        return self.lawful(torch.rand(skip.shape, generator=generator) < share, generator)

    def mutated(self, skip: Tensor, rate: float, generator: torch.Generator) -> Tensor:
        """One block of some steps, at least one, in or out; another one for it if it must be.

        The same only where the limits allow nothing else.
        """
        steps, blocks = skip.shape
        rows = torch.rand(steps, generator=generator) < rate
        rows[int(torch.randint(steps, (), generator=generator))] = True
        which = torch.randint(blocks, (steps, 1), generator=generator)
        flipped = rows[:, None] & (torch.arange(blocks) == which)
        return self.lawful(skip ^ flipped, generator, fixed=flipped)

    def lawful(
        self, skip: Tensor, generator: torch.Generator, fixed: Tensor | None = None
    ) -> Tensor:
        """(K, S) within the limits: as much of what is wanted as fits, then what is needed.

        Random among equals. fixed: entries to change last.
        """
        rank = torch.rand(skip.shape, generator=generator) + 2.0 * skip
        if fixed is not None:
            rank += 4.0 * torch.where(fixed, 2.0 * skip - 1, 0.0)
        needed, taken = self.needed(len(skip)), torch.zeros_like(skip)
        for entry in rank.flatten().argsort(descending=True).tolist():
            step, block = divmod(entry, skip.shape[1])
            if taken[step].sum() < self.most_at_a_step:
                taken[step, block] = skip[step, block] or taken.sum() < needed
        return taken

    def in_order(self, skip: Tensor) -> tuple[tuple[int, ...], ...]:
        """(K, S) by rising times -> the numbers of the skipped blocks, from the first step on."""
        return tuple(tuple((1 + row.nonzero().flatten()).tolist()) for row in skip.flip(0))
