"""What a denoiser's training makes small: a target, a metric, and the terminal's cross-entropy."""

import torch
from torch import Tensor, nn

from offdiff.diffusion.config import Metric, Objective
from offdiff.diffusion.denoiser import Denoiser
from offdiff.diffusion.paths import error_scale
from offdiff.diffusion.premetric import Premetric, flow_time

HUBER = 0.00054
"""Knee of the pseudo-Huber metric per entry of a window (arXiv 2405.20320's code)."""


class Loss(nn.Module):
    """The denoiser's mean loss as a module, which is what DDP wraps."""

    premetric: Premetric | None = None
    """For the combination of arXiv 2405.20320's code, (1 - t) Huber + premetric / t, with t on
    rectified flow's clock; goes with the metric huber. At t = 1 the premetric alone is left, which
    says little of where a window lies: a single call then makes consistent windows of little
    variety."""

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
        raw = error
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
            huber = (error.square().sum((1, 2)) + knee**2).sqrt() - knee
            if self.premetric is not None:
                huber = huber * (1 - flow_time(sigma))
            total = huber.sum()
        loss = (total + bits.sum()) / counted.sum().clamp(min=1)
        if self.premetric is None:
            return loss
        return loss + self._premetric(raw, clean, sigma, counted)

    def _premetric(self, error: Tensor, clean: Tensor, sigma: Tensor, counted: Tensor) -> Tensor:
        """Mean of premetric / t, 0-d. error: of EDM's F, (B, T, D - 1)."""
        assert self.premetric is not None
        s = self.denoiser.per_element(sigma, clean)
        # The estimate is c_skip x + c_out F; bits have no part in the premetric.
        c_out = (s * (s**2 + 1) ** -0.5).expand_as(clean)[..., self.denoiser.continuous]
        estimate = clean.clone()
        estimate[..., self.denoiser.continuous] += c_out * error
        return (self.premetric(estimate, clean, counted) / flow_time(sigma)).mean()


def at_levels(sigma: Tensor, known: Tensor | None) -> Tensor:
    """Levels with 0 at observed groups: (B,) -> (B, T, G) if any group is known (B, T, G)."""
    if known is None:
        return sigma
    level = sigma if sigma.ndim == 3 else sigma[:, None, None]
    return torch.where(known, torch.zeros_like(level), level)
