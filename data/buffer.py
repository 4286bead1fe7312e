"""The replay buffer: one contiguous store on the learner's device.

Dimension letters: N rows held, W numbers per row, S seeds, B batch, O observation, A action.
"""

import torch
from torch import Tensor

from offdiff.core.errors import InputError
from offdiff.core.protocols import Replay
from offdiff.core.seeding import SeedStreams
from offdiff.core.types import Batch, Spec


class ReplayBuffer:
    """A ring of transitions, each one row [obs, action, next_obs, next_action, reward, terminal].

    One row is one `index_select`: sampling costs a single gather, on the device, without a sync.
    """

    def __init__(self, capacity: int, spec: Spec, device: torch.device) -> None:
        """Allocates `capacity` rows at once. Raises InputError if they do not fit the device."""
        self.capacity = capacity
        self.spec = spec
        needed = capacity * spec.row_width * 4
        if device.type == "cuda" and needed > torch.cuda.mem_get_info(device)[0]:
            raise InputError(
                f"{capacity} transitions need {needed / 2**30:.1f} GiB and {device} has less free; "
                "train from disk with --memory-mapped"
            )
        self.rows = torch.empty(capacity, spec.row_width, device=device)
        self._next = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def device(self) -> torch.device:
        """Where the rows are, and batches will be."""
        return self.rows.device

    def extend(self, batch: Batch) -> None:
        """Appends transitions (N, ...), overwriting the oldest.

        Raises ValueError if they exceed the capacity.
        """
        rows = pack(batch).to(self.device)
        n = len(rows)
        if n > self.capacity:
            raise ValueError(
                f"{n} transitions do not fit a buffer of {self.capacity}; raise `capacity`"
            )
        head = min(n, self.capacity - self._next)
        self.rows[self._next : self._next + head] = rows[:head]
        self.rows[: n - head] = rows[head:]
        self._next = (self._next + n) % self.capacity
        self._size = min(self._size + n, self.capacity)

    def sample(self, n: int, *, random: SeedStreams) -> Batch:
        """n transitions per seed, uniform with replacement: fields (S, n, ...), one gather."""
        index = random.integers(self._size, n)
        return unpack(self.rows.index_select(0, index.view(-1)).view(*index.shape, -1), self.spec)


class MixedReplay:
    """Batches with an exact share of synthetic transitions."""

    def __init__(
        self,
        real: Replay,
        synthetic: Replay,
        synthetic_share: float,
        synthetic_random: SeedStreams | None = None,
    ) -> None:
        """synthetic_share: in [0, 1]; a batch of n holds round(n * share) synthetic transitions.

        synthetic_random: streams that draw the synthetic part; by default those of the real part.
        (A memory-mapped replay reads ahead well only if nobody else draws from its streams.)
        """
        if not 0 <= synthetic_share <= 1:
            raise ValueError(f"synthetic_share must lie in [0, 1], got {synthetic_share}")
        self.real, self.synthetic, self.synthetic_share = real, synthetic, synthetic_share
        self.synthetic_random = synthetic_random

    def __len__(self) -> int:
        return len(self.real) + len(self.synthetic)

    def sample(self, n: int, *, random: SeedStreams) -> Batch:
        """n transitions per seed, the real ones first: fields (S, n, ...)."""
        synthetic = round(n * self.synthetic_share)
        if synthetic == 0:
            return self.real.sample(n, random=random)
        if synthetic == n:
            return self.synthetic.sample(n, random=self.synthetic_random or random)
        parts = (
            self.real.sample(n - synthetic, random=random),
            self.synthetic.sample(synthetic, random=self.synthetic_random or random),
        )
        return Batch(*(torch.cat(pair, dim=1) for pair in zip(*parts, strict=True)))


def pack(batch: Batch) -> Tensor:
    """(N, ...) fields -> (N, W) rows."""
    columns = (batch.obs, batch.action, batch.next_obs, batch.next_action)
    scalars = torch.stack((batch.reward, batch.terminal), dim=-1)
    return torch.cat((*columns, scalars), dim=-1)


def unpack(rows: Tensor, spec: Spec) -> Batch:
    """(..., W) rows -> fields, as views."""
    o, a = spec.obs_dim, spec.action_dim
    obs, action, next_obs, next_action, scalars = rows.split((o, a, o, a, 2), dim=-1)
    return Batch(
        obs=obs,
        action=action,
        reward=scalars[..., 0],
        next_obs=next_obs,
        terminal=scalars[..., 1],
        next_action=next_action,
    )
