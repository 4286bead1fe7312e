"""Consistency distillation: a student that sends any point of a path to where the path ends.

Song et al. 2023, arXiv 2303.01469, algorithm 2, with the student itself as the target (Song and
Dhariwal 2024, arXiv 2310.14189) in place of its average, whose lag grows with every level. No pairs
are needed: the teacher makes one step from a noisy window of the data, and what the student says
before and after it must agree. Dimension letters: B windows, T rows, D columns, N levels.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from offdiff.core.errors import InputError
from offdiff.data.episodes import Episodes
from offdiff.data.windows import episodes_hash
from offdiff.diffusion.config import ModelConfig
from offdiff.diffusion.couplings import Independent
from offdiff.diffusion.denoiser import Denoise, Denoiser
from offdiff.diffusion.distributed import distributed
from offdiff.diffusion.fit import CHECKPOINT, run_fit, split
from offdiff.diffusion.losses import Loss
from offdiff.diffusion.reflow import require_kin, require_teacher, student_fit
from offdiff.diffusion.sampling import karras_sigmas
from offdiff.diffusion.world_model import Lineage, WorldModel

LEVELS = 10
"""Of the path that the teacher steps along. On a toy 8 did as well as 18 in as many steps."""
HUBER = 0.00054
"""Knee of the pseudo-Huber metric per square root of a window's entries (arXiv 2310.14189)."""


@dataclass(frozen=True)
class OneOf:
    """One of some levels, all equally often."""

    levels: Tensor
    """(N,)"""

    def sample(self, *shape: int, generator: torch.Generator) -> Tensor:
        """Levels of the given shape, on the generator's device."""
        device = generator.device
        which = torch.randint(len(self.levels), shape, generator=generator, device=device)
        return self.levels.to(device)[which]


class ConsistencyLoss(Loss):
    """How far the student's estimates before and after a step of the teacher are apart."""

    def __init__(self, denoiser: Denoiser, teacher: Denoise, levels: Tensor) -> None:
        """levels: (N,) falling, all above 0; training draws all but the last."""
        super().__init__(denoiser)
        self.levels = levels
        # In a tuple: a module would be trained, averaged and saved with the student.
        self._teacher = (teacher,)

    def forward(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Mean over the entries in the slots, 0-d. clean, noise (B, T, D); sigma (B,) of levels."""
        x = clean + sigma[:, None, None] * noise
        with torch.no_grad():
            goal = self._goal(x, sigma)
        counted = self.denoiser.counted(clean, sigma)
        error = (self.denoiser(x, sigma) - goal) * counted
        entries = counted.sum((1, 2))
        knee = HUBER * entries.sqrt()
        distance = (error.square().sum((1, 2)) + knee**2).sqrt() - knee
        # What is true spreads from the low levels; without more weight on them all collapses.
        weight = 1 / (sigma - self.levels[self._following(sigma)])
        loss: Tensor = (weight * distance).sum() / entries.sum().clamp(min=1)
        return loss

    def _goal(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The estimate one level lower: the student's, and on the last level the teacher's."""
        (teacher,) = self._teacher
        following = self._following(sigma)
        lower = self.levels[following]
        at, step = sigma[:, None, None], (lower - sigma)[:, None, None]
        slope = (x - teacher(x, sigma)) / at
        ahead = x + step * slope
        ended = teacher(ahead, lower)
        x = x + step * (slope + (ahead - ended) / lower[:, None, None]) / 2
        last = (following == len(self.levels) - 1)[:, None, None]
        return torch.where(last, ended, self.denoiser(x, lower))

    def _following(self, sigma: Tensor) -> Tensor:
        """(B,) number of the level below each."""
        return (self.levels[:, None] == sigma).int().argmax(0) + 1


def distil_consistency(
    teacher: WorldModel,
    episodes: Episodes,
    config: ModelConfig,
    folder: Path,
    *,
    levels: int = LEVELS,
    progress: bool = False,
) -> WorldModel:
    """A student of one call; continues from the checkpoint in `folder` if there is one.

    It starts from the teacher's weights where the networks are the same, and keeps its error curve.
    Several calls, with fresh noise between them, are left out. Raises InputError for a model that
    cannot be a teacher, one that in-paints among them, or a loss that stops being finite.
    """
    require_teacher(teacher)
    require_kin(teacher, config)
    if teacher.denoiser.level_channels:
        raise InputError("a model of mixed levels has no single path; distil it from pairs")
    windows, held = split(episodes, teacher.config, teacher.device)
    grid = karras_sigmas(levels)[:-1].float().to(teacher.device)
    with distributed(teacher.device) as group:
        coupling = Independent(windows, teacher.codec)
        fit = student_fit(teacher, config, coupling, held, group)
        fit.loss = ConsistencyLoss(fit.loss.denoiser, teacher.denoiser, grid)
        fit.law = OneOf(grid[:-1])
        identity = f"{episodes_hash(episodes)} {teacher.hash} consistency {levels}"
        run_fit(fit, folder / CHECKPOINT, identity, title="consistency", progress=progress)
        return dataclasses.replace(
            fit.model(teacher.data_hash),
            errors=teacher.errors,
            lineage=Lineage(recipe="consistency", teacher=teacher.hash, max_calls=1),
        )
