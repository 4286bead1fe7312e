"""How clean windows and noise are paired in training: all that reflow and distillation change.

Dimension letters: N pairs, B batch, T rows, D columns, G channel groups.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from offdiff.core.errors import InputError
from offdiff.core.tensors import load_tensors, save_tensors
from offdiff.data.codec import Codec
from offdiff.data.windows import Windows


class Batch(NamedTuple):
    """Clean windows and the noise that they are mixed with."""

    clean: Tensor
    """(B, T, D)"""
    noise: Tensor
    """(B, T, D) standard normal"""
    known: Tensor | None
    """(B, T, G) bool: observed groups, which have level 0; None if there are none."""


class Coupling(Protocol):
    """A joint law of windows and noise."""

    def draw(self, n: int, progress: float, *, generator: torch.Generator) -> Batch:
        """n pairs; progress in [0, 1) is how much of the training is done."""
        ...


@dataclass(frozen=True)
class Independent:
    """Windows of the data, and noise that knows nothing of them."""

    windows: Windows
    codec: Codec

    def draw(self, n: int, progress: float, *, generator: torch.Generator) -> Batch:
        """The same at any progress."""
        clean = self.codec.encode(self.windows.sample(n, generator=generator))
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        return Batch(clean, noise, None)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Noise and where a teacher's ODE takes it (arXiv 2209.03003): one is a function of the other.

    anneal: SlimFlow's share of the training (arXiv 2407.12718) in which the noise is exchanged
    little by little for the pairs' own, eps' = sqrt(1 - beta^2) eps + beta xi, beta 1 -> 0; its law
    never changes. For students that do not start from the teacher's weights.
    """

    clean: Tensor
    """(N, T, D)"""
    noise: Tensor
    """(N, T, D)"""
    known: Tensor | None
    """(N, T, G) bool"""
    teacher: str
    """`WorldModel.hash` of the model that made them"""
    calls: int
    """Network calls per pair"""
    made: str = ""
    """What they were asked for with"""
    anneal: float = 0.0

    def __len__(self) -> int:
        return len(self.clean)

    def draw(self, n: int, progress: float, *, generator: torch.Generator) -> Batch:
        """n pairs with replacement."""
        index = torch.randint(len(self), (n,), generator=generator, device=generator.device)
        noise = self.noise[index]
        if progress < self.anneal:
            beta = 1 - progress / self.anneal
            fresh = torch.randn(noise.shape, generator=generator, device=noise.device)
            noise = (1 - beta**2) ** 0.5 * noise + beta * fresh
        return Batch(self.clean[index], noise, None if self.known is None else self.known[index])

    def annealed(self, share: float) -> "Pairs":
        """The same pairs, slid into during a share of the training."""
        return dataclasses.replace(self, anneal=share)

    def save(self, path: Path) -> None:
        """Writes the pairs atomically, as safetensors."""
        tensors = {"clean": self.clean, "noise": self.noise}
        if self.known is not None:
            tensors["known"] = self.known
        meta = {"teacher": self.teacher, "calls": self.calls, "made": self.made}
        save_tensors(path, tensors, {"kind": "pairs", **meta})


def load_pairs(path: Path, device: torch.device, teacher: str, made: str) -> Pairs:
    """Reads pairs. Raises InputError if they are damaged, another teacher's, or made otherwise."""
    tensors, meta = load_tensors(path)
    if meta.get("kind") != "pairs" or meta.get("teacher") != teacher:
        raise InputError(f"{path} holds no pairs of this teacher; remove it, or name another file")
    if meta["made"] != made:
        raise InputError(
            f"the pairs in {path} were made with {meta['made']}, not with {made}; ask for the "
            "same, or name another file"
        )
    known = tensors.get("known")
    return Pairs(
        clean=tensors["clean"].to(device),
        noise=tensors["noise"].to(device),
        known=None if known is None else known.bool().to(device),
        teacher=teacher,
        calls=meta["calls"],
        made=made,
    )
