"""The diffusion model of Trajectory Diffuser, as its authors released it.

Dimension letters: B windows, H rows, O observation, K executed levels. Rows are standardised.
"""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from offdiff.diffusion.temporal_unet import TemporalUNet
from offdiff.planners.base import masked_mean

LEVELS = 100
BETA_FIRST, BETA_LAST = 1e-3, 2e-2

FirstRow = Literal["shrunk", "clean"]


@dataclass(frozen=True)
class DiscreteSchedule:
    """Numbers of every level t: x_t = signal_t x_0 + sigma_t eps, and the step from t to t - 1."""

    signal: tuple[float, ...]
    sigma: tuple[float, ...]
    clean_weight: tuple[float, ...]
    """c1 of the posterior mean c1_t x_0 + c2_t x_t"""
    row_weight: tuple[float, ...]
    """c2 of it"""
    posterior_std: tuple[float, ...]

    @classmethod
    def linear(cls) -> Self:
        """LEVELS levels with beta from BETA_FIRST to BETA_LAST (Ho et al. 2020, equation 7).

        The noisiest keeps a third of the data's variance: standard normal noise is not its prior.
        """
        beta = np.linspace(BETA_FIRST, BETA_LAST, LEVELS)
        kept = np.cumprod(1 - beta)
        before = np.concatenate(([1.0], kept[:-1]))
        columns = (
            np.sqrt(kept),
            np.sqrt(1 - kept),
            beta * np.sqrt(before) / (1 - kept),
            (1 - before) * np.sqrt(1 - beta) / (1 - kept),
            np.sqrt(beta * (1 - before) / (1 - kept)),
        )
        return cls(*(tuple(column.tolist()) for column in columns))


class ReleasedOptimiser(nn.Module):
    """Denoises windows of observations, given the return that is still wanted at their first row.

    It predicts the noise. In sampling the first row is overwritten by the present after every step.
    """

    def __init__(
        self,
        obs_dim: int,
        *,
        width: int,
        train_levels: int,
        drop_condition: float,
        first_row: FirstRow,
        loss_on_first_row: bool,
        inject_noise: bool,
        guidance: float,
        cfg_batched: bool,
    ) -> None:
        """width: of the U-Net. The rest: see `ReleasedTrajectoryDiffuserConfig`."""
        super().__init__()
        self.network = TemporalUNet(obs_dim, obs_dim, width=width, conditional=True)
        self.train_levels, self.drop_condition = train_levels, drop_condition
        self.first_row, self.loss_on_first_row = first_row, loss_on_first_row
        self.inject_noise, self.guidance, self.cfg_batched = inject_noise, guidance, cfg_batched
        self.schedule = DiscreteSchedule.linear()
        self.register_buffer("signal", torch.tensor(self.schedule.signal), persistent=False)
        self.register_buffer("sigma", torch.tensor(self.schedule.sigma), persistent=False)
        self.signal: Tensor
        self.sigma: Tensor

    def loss(
        self, clean: Tensor, condition: Tensor, counts: Tensor, *, generator: torch.Generator
    ) -> Tensor:
        """Mean squared error of the noise, 0-d.

        clean: (B, H, O). condition: (B,). counts: (B,) bool, windows to learn from.
        """
        n, device = len(clean), clean.device
        level = torch.randint(self.train_levels, (n,), generator=generator, device=device)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        keep = torch.rand(n, generator=generator, device=device) >= self.drop_condition
        noise, x = self.noisy(clean, noise, level)
        error = (self.network(x, level.to(x.dtype), condition, keep) - noise).square()
        if not self.loss_on_first_row:
            error = error[:, 1:]
        return masked_mean(error, counts[:, None, None])

    def noisy(self, clean: Tensor, noise: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Training's noise, 0 in the first row, and its input: clean, noise (B, H, O), level (B,).

        As released the first row loses its noise but not the shrinking: it is s_0 in sampling and
        signal_t s_0 here.
        """
        noise = torch.cat((torch.zeros_like(noise[:, :1]), noise[:, 1:]), dim=1)
        x = self.signal[level, None, None] * clean + self.sigma[level, None, None] * noise
        if self.first_row == "clean":
            x = torch.cat((clean[:, :1], x[:, 1:]), dim=1)
        return noise, x

    def refine(self, rows: Tensor, condition: Tensor, noise: Tensor) -> Tensor:
        """The last K levels, from a rollout taken for a noisy window; K = 0 changes nothing.

        rows: (B, H, O), the first one the present. condition: (B,). noise: (K, B, H, O) standard
        normal; that of index t > 0 is added after level t, that of 0 on entering if noise is
        injected. Gives (B, H, O).
        """
        steps, table, present = len(noise), self.schedule, rows[:, :1]
        if self.inject_noise and steps:
            rows = table.signal[steps - 1] * rows + table.sigma[steps - 1] * noise[0]
            rows = torch.cat((present, rows[:, 1:]), dim=1)
        for t in reversed(range(steps)):
            signal, sigma = table.signal[t], table.sigma[t]
            clean = rows / signal - sigma / signal * self.predicted_noise(rows, t, condition)
            rows = table.clean_weight[t] * clean + table.row_weight[t] * rows
            if t > 0:
                rows = rows + table.posterior_std[t] * noise[t]
            rows = torch.cat((present, rows[:, 1:]), dim=1)
        return rows

    def predicted_noise(self, rows: Tensor, t: int, condition: Tensor) -> Tensor:
        """null + guidance (conditional - null): rows (B, H, O), condition (B,) -> (B, H, O)."""
        n = len(rows)
        level = torch.full((n,), float(t), dtype=rows.dtype, device=rows.device)
        if self.cfg_batched:
            keep = torch.arange(2 * n, device=rows.device) >= n
            twice = (torch.cat((value, value)) for value in (rows, level, condition))
            null, conditional = self.network(*twice, keep).chunk(2)
        else:
            null = self.network(rows, level)
            conditional = self.network(rows, level, condition)
        noise: Tensor = null + self.guidance * (conditional - null)
        return noise

    def calls(self, steps: int) -> int:
        """Network evaluations of so many levels that wait for one another."""
        return steps if self.cfg_batched else 2 * steps
