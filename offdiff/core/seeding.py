"""Random numbers that belong to a seed, whichever seeds are trained beside it."""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def derive_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed for one purpose ("init", "batches", ...) of one run."""
    words = np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(
        2, np.uint32
    )
    return (int(words[0]) << 31) ^ int(words[1])


class SeedStreams:
    """One generator per training seed; every draw has the seeds as its leading dimension.

    Seed s of a joint run draws exactly the numbers that it draws when trained alone.
    """

    def __init__(self, seeds: Sequence[int], purpose: str, device: torch.device) -> None:
        self.device = device
        self.generators = [
            torch.Generator(device).manual_seed(derive_seed(seed, purpose)) for seed in seeds
        ]

    def __len__(self) -> int:
        return len(self.generators)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, (S, *shape)."""
        out = torch.empty(len(self), *shape, device=self.device)
        for row, generator in zip(out, self.generators, strict=True):
            row.normal_(generator=generator)
        return out

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform numbers in [low, high), (S, *shape)."""
        out = torch.empty(len(self), *shape, device=self.device)
        for row, generator in zip(out, self.generators, strict=True):
            row.uniform_(low, high, generator=generator)
        return out

    def integers(self, high: int, *shape: int) -> Tensor:
        """Integers in [0, high), int64, (S, *shape)."""
        out = torch.empty(len(self), *shape, dtype=torch.int64, device=self.device)
        for row, generator in zip(out, self.generators, strict=True):
            row.random_(0, high, generator=generator)
        return out

    def clone(self) -> "SeedStreams":
        """Streams that will draw the same numbers from here on, independently."""
        twin = SeedStreams([0] * len(self), "clone", self.device)
        twin.load_state_dict(self.state_dict())
        return twin

    def state_dict(self) -> dict[str, Tensor]:
        """Generator states, uint8 on the CPU, keyed by position."""
        return {str(i): g.get_state() for i, g in enumerate(self.generators)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` gave."""
        for i, generator in enumerate(self.generators):
            generator.set_state(state[str(i)])
