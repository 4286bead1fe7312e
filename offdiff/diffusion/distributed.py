"""One training over several processes, as `torchrun` starts them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from offdiff.core.errors import InputError


@dataclass(frozen=True)
class Group:
    """The processes of one training; a single process is a group of one."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """True in the process that writes files and shows progress."""
        return self.rank == 0

    def require_divisible(self, batch_size: int) -> None:
        """Raises InputError unless every process gets an equal part of a batch."""
        if batch_size % self.size:
            raise InputError(
                f"a batch of {batch_size} cannot be shared by {self.size} processes; give a "
                "multiple"
            )

    def part(self, batch: Tensor) -> Tensor:
        """The part of a global batch that falls to this process."""
        each = len(batch) // self.size
        return batch[self.rank * each : (self.rank + 1) * each]

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, with gradients averaged over the processes."""
        if self.size == 1:
            return module
        return nn.parallel.DistributedDataParallel(module)


@contextmanager
def distributed(device: torch.device) -> Iterator[Group]:
    """Joins the processes that `torchrun` started, by its environment variables."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group()
        return
    import torch.distributed as dist

    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process among those that `torchrun` started; 0 alone."""
    return int(os.environ.get("RANK", "0"))


def agree(answer: bool | None) -> bool:
    """The first process's answer, for all of them; the others give None.

    Over a key in torchrun's store: no process group is joined before the training.
    """
    if answer is not None and os.environ.get("WORLD_SIZE", "1") == "1":
        return answer
    from datetime import timedelta

    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://"))
    key = "offdiff answer"
    if answer is None:
        # Another run may hold the lock for as long as a training takes.
        store.wait([key], timedelta(days=30))
        return bool(store.get(key) == b"1")
    store.set(key, "1" if answer else "0")
    return answer
