"""Diffusion over sequences of which some entries are known and that may depend on a number.

Dimension letters: B windows, T rows, D columns. Coordinates are EDM's, x = clean + sigma * noise,
of standardised columns (sigma_data = 1).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from offdiff.diffusion.denoiser import Denoise, LevelLaw
from offdiff.diffusion.networks import build_network


class SequenceDenoiser(nn.Module):
    """D(x; sigma | known entries, condition): preconditioning and loss of EDM (table 1).

    Known entries enter clean, beside a mask, and leave unchanged: in-painting is what the model was
    trained for, start, goals and way-points are conditions like any other. The condition is a
    number per window and a flag beside it; flag 0 is the null condition.
    """

    def __init__(self, network: str, columns: int, rows: int, *, conditional: bool) -> None:
        """network: a name of `offdiff.diffusion.networks`."""
        super().__init__()
        self.columns, self.conditional = columns, conditional
        self.network = build_network(network, 2 * columns + 2 * conditional, columns, rows=rows)

    def forward(self, x: Tensor, sigma: Tensor, known: Tensor, condition: Tensor | None) -> Tensor:
        """x (B, T, D), sigma (B,), known (B, T, D) bool, condition (B, 2) or None -> (B, T, D)."""
        s = sigma[:, None, None]
        estimate = x / (s**2 + 1) + s * (s**2 + 1) ** -0.5 * self._output(x, s, known, condition)
        return torch.where(known, x, estimate)

    def loss(
        self, clean: Tensor, noise: Tensor, sigma: Tensor, known: Tensor, condition: Tensor | None
    ) -> Tensor:
        """(B, T, D) squared error of the network's output, 0 where an entry is known."""
        s = sigma[:, None, None]
        x = torch.where(known, clean, clean + s * noise)
        target = (s * clean - noise) * (s**2 + 1) ** -0.5
        return (self._output(x, s, known, condition) - target).square() * ~known

    def _output(self, x: Tensor, s: Tensor, known: Tensor, condition: Tensor | None) -> Tensor:
        rows = [torch.where(known, x, x * (s**2 + 1) ** -0.5), known.to(x.dtype)]
        if self.conditional:
            if condition is None:
                condition = x.new_zeros(len(x), 2)
            rows.append(condition[:, None].expand(-1, x.shape[1], -1))
        output: Tensor = self.network(torch.cat(rows, dim=-1), s[:, 0, 0].log() / 4)
        return output

    def given(
        self,
        values: Tensor,
        known: Tensor,
        condition: Tensor | None = None,
        *,
        weight: float = 1.0,
    ) -> Denoise:
        """The denoiser given the values (B, T, D) of the known entries: what samplers call.

        condition: (B,). weight: of classifier-free guidance, D = D_null + weight (D_cond - D_null)
        (arXiv 2207.12598); 0 ignores the condition, 1 takes it as it is, and otherwise both are
        evaluated in one batch.
        """

        def denoise(x: Tensor, sigma: Tensor, /) -> Tensor:
            x = torch.where(known, values, x)
            if condition is None or weight == 0:
                out: Tensor = self(x, sigma, known, None)
                return out
            flagged = torch.stack((condition, torch.ones_like(condition)), dim=-1)
            if weight == 1:
                out = self(x, sigma, known, flagged)
                return out
            twice = [torch.cat((t, t)) for t in (x, sigma, known)]
            null, conditional = self(*twice, torch.cat((torch.zeros_like(flagged), flagged))).chunk(
                2
            )
            out = null + weight * (conditional - null)
            return out

        return denoise


@dataclass(frozen=True, kw_only=True)
class SequenceLaw:
    """What a sequence denoiser is trained on."""

    levels: LevelLaw = field(default_factory=LevelLaw)
    drop_condition: float = 0.25
    """Share of windows without condition (Decision Diffuser's)."""
    fill: float = 0.25
    """Share of windows in which parts of a later row are known too."""


def sequence_loss(
    denoiser: SequenceDenoiser,
    clean: Tensor,
    start: Tensor,
    counts: Tensor,
    condition: Tensor | None,
    law: SequenceLaw,
    *,
    generator: torch.Generator,
) -> Tensor:
    """Mean loss of a batch, 0-d.

    clean: (B, T, D). start: (T, D) bool, entries that are always known. counts: (B, T, D) weight of
    every entry, 0 where there is nothing to learn. condition: (B,).
    """
    n, device = len(clean), clean.device
    sigma = law.levels.sample(n, generator=generator)
    noise = torch.randn(clean.shape, generator=generator, device=device)
    known = start | later_row(clean, law.fill, generator)
    flagged = None
    if condition is not None:
        kept = torch.rand(n, generator=generator, device=device) >= law.drop_condition
        flagged = torch.stack((condition * kept, kept.to(clean.dtype)), dim=-1)
    loss = denoiser.loss(clean, noise, sigma, known, flagged)
    counted = counts * ~known
    return (loss * counted).sum() / counted.sum().clamp(min=1)


def later_row(clean: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """(B, T, D) bool: in some windows one row, half of the time the last, wholly or in columns."""
    n, rows, columns = clean.shape
    device = clean.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    row = torch.where(uniform(n) < 0.5, rows - 1, (uniform(n) * rows).long())
    whole = uniform(n, 1) < 0.5
    chosen = whole | (uniform(n, columns) < 0.5)
    filled = (uniform(n) < share)[:, None] & (torch.arange(rows, device=device) == row[:, None])
    return filled[..., None] & chosen[:, None]


def sample_given(
    sampler: Callable[[Denoise, Tensor], Tensor],
    denoise: Denoise,
    start: Tensor,
    values: Tensor,
    known: Tensor,
) -> Tensor:
    """(B, T, D) rows sampled from a noisy start, known entries exactly as given."""
    return torch.where(known, values, sampler(denoise, torch.where(known, values, start)))
