"""What a denoiser's training makes small: a target, a metric, and the terminal's cross-entropy."""

import torch
from torch import Tensor, nn

from offdiff.diffusion.config import Metric, Objective
from offdiff.diffusion.denoiser import Denoiser
from offdiff.diffusion.paths import error_scale

HUBER = 0.00054
"""Knee of the pseudo-Huber metric per entry of a window (arXiv 2405.20320's code)."""


class Loss(nn.Module):
    """The denoiser's mean loss as a module, which is what DDP wraps."""

    def __init__(
        self, denoiser: Denoiser, objective: Objective = "edm", metric: Metric = "l2"
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.objective, self.metric = objective, metric

    def forward(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Mean over the entries that carry a loss, 0-d. clean, noise (B, T, D); sigma (B, ...)."""
        counted = self.denoiser.counted(clean, sigma)
        if self.objective == "edm" and self.metric == "l2":
            loss = self.denoiser.loss(clean, noise, sigma)
            return loss.sum() / counted.sum().clamp(min=1)
        error, bits = self.denoiser.errors(clean, noise, sigma)
        if self.objective != "edm":
            scale = error_scale(self.objective, self.denoiser.per_element(sigma, clean))
            error = error * scale.expand_as(clean)[..., self.denoiser.continuous]
        error = error * counted[..., self.denoiser.continuous]
        bits = bits * counted[..., self.denoiser.terminal]
        if self.metric == "l2":
            total = error.square().sum()
        else:
            # The knee is in the target's units and grows with a window's free entries.
            knee = HUBER * counted.sum((1, 2))
            total = ((error.square().sum((1, 2)) + knee**2).sqrt() - knee).sum()
        return (total + bits.sum()) / counted.sum().clamp(min=1)


def at_levels(sigma: Tensor, known: Tensor | None) -> Tensor:
    """Levels with 0 at observed groups: (B,) -> (B, T, G) if any group is known (B, T, G)."""
    if known is None:
        return sigma
    level = sigma if sigma.ndim == 3 else sigma[:, None, None]
    return torch.where(known, torch.zeros_like(level), level)
