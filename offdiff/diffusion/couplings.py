"""How clean windows and noise are paired in training: all that reflow and distillation change.

Dimension letters: N pairs, B batch, T rows, D columns, G channel groups.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from offdiff.core.errors import InputError
from offdiff.core.tensors import load_tensors, save_tensors
from offdiff.data.codec import Codec
from offdiff.data.windows import Windows
from offdiff.diffusion.denoiser import SIGMA_MAX, Denoise

Leg = Literal["student", "guide"]
LEG = (0.2, 0.8)
"""Shares of the way from noise to window at which a guide takes over."""


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


@dataclass(frozen=True, kw_only=True)
class FlowGuided:
    """Pairs in one half of a batch; in the other, fresh noise and where a flow would take it.

    SlimFlow's flow-guided distillation (arXiv 2407.12718): the way from noise begins along the
    student's velocity, as in their code, or the guide's, as in their text; at a random time the
    guide takes over and goes on to the end in one Euler step. In EDM's coordinates that step is
    the guide's estimate. The guide should be more accurate than the pairs make the student.
    """

    pairs: Pairs
    student: Denoise
    """The network in training: it is asked as it is."""
    guide: Denoise
    """A nearly straight flow: reflowed"""
    leg: Leg = "student"
    """Whose velocity the way begins with"""

    def draw(self, n: int, progress: float, *, generator: torch.Generator) -> Batch:
        """(n + 1) // 2 pairs, then n // 2 windows that the guide has finished."""
        clean, noise, known = self.pairs.draw(n - n // 2, progress, generator=generator)
        fresh = torch.randn(
            n // 2, *noise.shape[1:], generator=generator, device=noise.device, dtype=noise.dtype
        )
        share = torch.rand(n // 2, generator=generator, device=noise.device, dtype=noise.dtype)
        finished = self._finish(fresh, LEG[0] + (LEG[1] - LEG[0]) * share)
        if known is not None:
            known = torch.cat((known, known.new_zeros(n // 2, *known.shape[1:])))
        return Batch(torch.cat((clean, finished)), torch.cat((noise, fresh)), known)

    @torch.no_grad()
    def _finish(self, noise: Tensor, share: Tensor) -> Tensor:
        """Windows from noise (B, T, D), with the first share (B,) of the way by the first leg."""
        begin = self.student if self.leg == "student" else self.guide
        start = begin(SIGMA_MAX * noise, torch.full_like(share, SIGMA_MAX))
        sigma = (1 - share) / share  # rectified flow's time is 1 - share
        return self.guide(start + sigma[:, None, None] * noise, sigma)


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
