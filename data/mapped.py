"""Training from disk: transitions in a memory-mapped file, gathered ahead of time by a thread.

Dimension letters: N rows, W numbers per row, K batches looked ahead, S seeds, B batch.
"""

import math
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offdiff.core.errors import InputError
from offdiff.core.files import replacing
from offdiff.core.seeding import SeedStreams
from offdiff.core.types import Batch, Spec
from offdiff.data.buffer import pack, unpack

LOOKAHEAD_BYTES = 32 * 2**20
"""Rows gathered in one go. They are read in file order: the more, the nearer one to the next."""
PIECE_ROWS = 16_384
"""Rows asked for before any of them is waited for."""
SMALL_GAP = 32_768
"""Bytes between two rows that are cheaper to read than to leave out."""


class MappedReplay:
    """A `ReplayBuffer` to sample from, whose rows stay on disk.

    With the same streams it gives the same batches as the buffer in memory: what is read ahead is
    only a prediction of the indices that `sample` is going to draw, made with a clone of its
    streams, so a run's state is the same for both.
    """

    def __init__(self, path: Path, spec: Spec, device: torch.device) -> None:
        """path: written by `write_rows`. Raises InputError if it holds no rows of this spec."""
        try:
            self.rows: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is no memory-mapped buffer ({error}); remove it") from error
        if self.rows.ndim != 2 or self.rows.shape[1] != spec.row_width:
            raise InputError(
                f"{path} holds rows of shape {self.rows.shape[1:]}, {spec.row_width} numbers are "
                "needed; remove it"
            )
        self.spec, self.device = spec, device
        self._file = path.open("rb")
        self._first_byte = path.stat().st_size - self.rows.nbytes  # behind the header
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="offdiff-prefetch")
        self._ahead: SeedStreams | None = None
        self._pending: Future[tuple[Tensor, Tensor]] | None = None
        self._indices = torch.empty(0)
        self._block = torch.empty(0)
        self._position = 0

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, n: int, *, random: SeedStreams) -> Batch:
        """n transitions per seed, uniform with replacement: fields (S, n, ...)."""
        if self._ahead is None:
            self._ahead = random.clone()
            self._pending = self._prefetch(n)
        wanted = random.integers(len(self), n)
        if self._position == len(self._block):
            assert self._pending is not None
            self._indices, self._block = self._pending.result()
            self._pending = self._prefetch(n)
            self._position = 0
        if not torch.equal(self._indices[self._position], wanted):
            # Another batch size, or streams that were set back: predict again from here.
            self._ahead = random.clone()
            self._pending, self._block, self._position = self._prefetch(n), self._block[:0], 0
            rows = self._gather(wanted)
        else:
            rows = self._block[self._position]
            self._position += 1
        return unpack(rows.to(self.device, non_blocking=True), self.spec)

    def _prefetch(self, n: int) -> Future[tuple[Tensor, Tensor]]:
        """Starts to gather the next K batches: indices (K, S, n) and rows (K, S, n, W)."""
        assert self._ahead is not None
        ahead = self._ahead
        batches = max(1, LOOKAHEAD_BYTES // (len(ahead) * n * self.rows.strides[0]))
        indices = torch.stack([ahead.integers(len(self), n) for _ in range(batches)])
        return self._thread.submit(lambda: (indices, self._gather(indices)))

    def _gather(self, index: Tensor) -> Tensor:
        """(...) indices -> (..., W) rows in memory."""
        flat = index.numpy().reshape(-1)
        rows = np.empty((flat.size, self.spec.row_width), np.float32)
        order = np.argsort(flat, kind="stable")
        for piece in np.array_split(order, math.ceil(flat.size / PIECE_ROWS)):
            self._request(flat[piece])
            rows[piece] = self.rows[flat[piece]]
        return torch.from_numpy(rows).view(*index.shape, -1)

    def _request(self, index: NDArray[np.int64]) -> None:
        """Asks the system to read ascending rows: a disk is many times faster at many at once."""
        if not hasattr(os, "posix_fadvise"):
            return  # there the rows are read one by one, when they are touched
        width = self.rows.strides[0]
        start = self._first_byte + index * width
        cuts = np.flatnonzero(np.diff(start) > SMALL_GAP)
        firsts, lasts = start[np.append(0, cuts + 1)], start[np.append(cuts, -1)]
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            size = last + width - first
            os.posix_fadvise(self._file.fileno(), first, size, os.POSIX_FADV_WILLNEED)


def write_rows(path: Path, chunks: Iterable[Batch], total: int, spec: Spec) -> None:
    """Writes `total` transitions, given in chunks with fields (n, ...), as a `.npy`, atomically."""
    shape, start = (total, spec.row_width), 0
    with replacing(path) as temporary:
        rows = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        for chunk in chunks:
            stop = start + len(chunk.reward)
            rows[start:stop] = pack(chunk).numpy()
            start = stop
        rows.flush()
