"""Synthetic transitions beside the real ones: the last few generations of every seed.

Dimension letters: S seeds, K pools, C capacity of a pool, W numbers per row, B batch.
"""

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from offdiff.core.errors import InputError
from offdiff.core.seeding import SeedStreams
from offdiff.core.types import Batch, Spec
from offdiff.data.buffer import pack, unpack


class Pools:
    """A `Replay` of K generations per seed, every one of which supplies the same share.

    One store on one device; sampling is one gather without a sync.
    """

    def __init__(
        self, seeds: int, pools: int, capacity: int, spec: Spec, device: torch.device
    ) -> None:
        """Allocates everything at once. Raises InputError, naming the size, if it does not fit."""
        needed = seeds * pools * capacity * spec.row_width * 4
        if needed > (memory := _memory(device)):
            raise InputError(
                f"{pools} pools of {capacity} synthetic transitions for {seeds} seeds need "
                f"{needed / 2**30:.1f} GiB and {device} has {memory / 2**30:.1f} GiB; lower "
                "--augment.transitions or --augment.pools"
            )
        self.spec = spec
        self.rows = torch.zeros(seeds, pools, capacity, spec.row_width, device=device)
        self.sizes = torch.zeros(seeds, pools, dtype=torch.int64, device=device)
        self.filled = 0
        """Pools in use: the first ones."""

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def put(self, number: int, generation: list[Batch]) -> None:
        """Takes generation `number`, one batch of (N, ...) fields per seed, in the oldest's place.

        Raises ValueError if a batch is empty or exceeds the capacity.
        """
        k, capacity = number % self.rows.shape[1], self.rows.shape[2]
        for s, batch in enumerate(generation):
            rows = pack(batch)
            if not 0 < len(rows) <= capacity:
                raise ValueError(f"a pool holds 1 to {capacity} transitions, got {len(rows)}")
            self.rows[s, k, : len(rows)] = rows
            self.sizes[s, k] = len(rows)
        self.filled = max(self.filled, k + 1)

    def state(self, number: int) -> dict[str, Tensor]:
        """A generation that is held, as tensors for a file."""
        k = number % self.rows.shape[1]
        return {"rows": self.rows[:, k], "sizes": self.sizes[:, k]}

    def restore(self, number: int, state: Mapping[str, Tensor]) -> None:
        """Puts what `state` gave back in its place."""
        rows, sizes = state["rows"].to(self.rows.device), state["sizes"].tolist()
        self.put(
            number,
            [unpack(own[:size], self.spec) for own, size in zip(rows, sizes, strict=True)],
        )

    def sample(self, n: int, *, random: SeedStreams) -> Batch:
        """n transitions per seed from its own pools: fields (S, n, ...)."""
        seeds, pools, capacity, width = self.rows.shape
        pool = random.integers(self.filled, n)  # (S, n)
        size = self.sizes.to(random.device).gather(1, pool)
        # Sizes differ, so that the row is a uniform number scaled; in float64, where 1 is not hit.
        row = (random.uniform(n).double() * size).long()
        seed = torch.arange(seeds, device=random.device)[:, None]
        index = ((seed * pools + pool) * capacity + row).to(self.rows.device)
        flat = self.rows.view(-1, width).index_select(0, index.view(-1))
        return unpack(flat.view(seeds, n, width), self.spec)


def _memory(device: torch.device) -> int:
    """Bytes free on a GPU; all bytes of the machine, which lends its caches when asked."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
