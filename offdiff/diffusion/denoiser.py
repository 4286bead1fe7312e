"""EDM's denoiser around a network: preconditioning, loss, noise levels (arXiv 2206.00364, table 1).

Dimension letters: B windows, T rows of a window, D columns, G channel groups.
Data are standardised, sigma_data = 1. A noise level is a standard deviation, given per window (B,),
per row (B, T) or per row and group (B, T, G); 0 means observed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from offdiff.core.errors import InputError
from offdiff.data.codec import GROUPS

if TYPE_CHECKING:
    from offdiff.diffusion.quantize import Quantised

LevelMode = Literal["shared", "mixed"]
SIGMA_MAX = 80.0
"""The level at which nothing of the data is left: "absent"."""


@runtime_checkable
class Denoise(Protocol):
    """What samplers call: (B, T, D) at levels sigma -> the expected clean window, (B, T, D)."""

    def __call__(self, x: Tensor, sigma: Tensor, /) -> Tensor:
        """The estimate; a smooth function of both."""
        ...


def level_of_all(x: Tensor, sigma: float) -> Tensor:
    """(B,) the same level for every window of x (B, T, D)."""
    return torch.full(x.shape[:1], sigma, device=x.device, dtype=x.dtype)


class Levels(Protocol):
    """A law of training levels."""

    def sample(self, *shape: int, generator: torch.Generator) -> Tensor:
        """Levels of the given shape, on the generator's device."""
        ...


@dataclass(frozen=True, kw_only=True)
class LevelLaw:
    """ln sigma ~ Normal(mean, std), EDM's law of training levels."""

    mean: float = -1.2
    std: float = 1.2

    def sample(self, *shape: int, generator: torch.Generator) -> Tensor:
        """Levels of the given shape, on the generator's device."""
        normal = torch.randn(shape, generator=generator, device=generator.device)
        return (normal * self.std + self.mean).exp()


def draw_levels(
    mode: LevelMode, law: Levels, n: int, rows: int, *, generator: torch.Generator
) -> Tensor:
    """Training levels: (B,) if shared, else (B, T, G).

    mixed (denoiser_architectures section 1): half the windows share one level; a quarter have one
    per group; the last quarter are queries, blocks of (row, group) observed or absent, the rest
    shared. One model then answers joint, conditional and in-painting questions.
    """
    shared = law.sample(n, generator=generator)
    if mode == "shared":
        return shared
    device, groups = generator.device, len(GROUPS)
    per_group = law.sample(n, 1, groups, generator=generator).expand(n, rows, groups)
    kind = torch.rand(n, rows, groups, generator=generator, device=device)
    level = shared[:, None, None].expand(n, rows, groups)
    query = torch.where(kind < 1 / 3, 0.0, torch.where(kind < 2 / 3, SIGMA_MAX, level))
    which = torch.rand(n, 1, 1, generator=generator, device=device)
    return torch.where(which < 0.5, level, torch.where(which < 0.75, per_group, query))


class Denoiser(nn.Module):
    """D(x; sigma): the network's output F as an estimate of the clean window.

    State, action and reward: D = c_skip x + c_out F. The terminal column is a bit, -1 or 1, whose
    expected value is 2 P(terminal) - 1 = tanh(F / 2): a classifier, trained by cross-entropy.
    Entries outside the slots do not exist: they enter as 0 and leave as 0.
    """

    slots: Tensor
    column_group: Tensor

    def __init__(
        self, network: nn.Module, slots: Tensor, widths: Sequence[int], *, level_channels: bool
    ) -> None:
        """network: (B, T, D or D + G), (B,) -> (B, T, D). slots: (T, D) bool. widths: of GROUPS.

        level_channels: tell the network the level of every row and group beside the data; without
        it only one level per window is possible.
        """
        super().__init__()
        self.network = network
        self.level_channels = level_channels
        self.half_precision = False
        self.quantised: Quantised | None = None
        """Set by `offdiff.diffusion.quantize`."""
        self.register_buffer("slots", slots, persistent=False)
        group = torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(widths))
        self.register_buffer("column_group", group.to(slots.device), persistent=False)
        # Ranges, not masks: slicing by them costs nothing.
        self.continuous = slice(0, sum(widths[:-1]))
        self.terminal = slice(sum(widths[:-1]), sum(widths))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """(B, T, D) at levels sigma -> estimate of the clean window; observed entries unchanged.

        Raises InputError for gradients by x through a quantised network.
        """
        if self.quantised and x.requires_grad and torch.is_grad_enabled():
            # Its layers would drop their part without an error; a wrong gradient would be left.
            raise InputError(
                "gradients do not pass through a quantised model: guide jointly, or by anything "
                "else that differentiates the denoiser, with the float model it was made of"
            )
        s = self.per_element(sigma, x)
        output = self._network(x, sigma, s)
        c_skip, c_out = 1 / (s**2 + 1), s * (s**2 + 1) ** -0.5
        columns = self.continuous
        estimate = torch.empty_like(x)
        estimate[..., columns] = (
            _columns(c_skip, columns) * x[..., columns]
            + _columns(c_out, columns) * output[..., columns]
        )
        bit = _columns(s, self.terminal)
        estimate[..., self.terminal] = torch.where(
            bit > 0, torch.tanh(output[..., self.terminal] / 2), x[..., self.terminal]
        )
        return estimate * self.slots

    def loss(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """(B, T, D) loss per entry, 0 outside the slots and where an entry was observed.

        Squared error of F, which is EDM's weight (sigma^2 + 1) / sigma^2 on the squared error of D;
        cross-entropy of the terminal bit. clean, noise: (B, T, D).
        """
        error, bits = self.errors(clean, noise, sigma)
        return torch.cat((error.square(), bits), dim=-1) * self.counted(clean, sigma)

    def errors(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Errors of F (B, T, D - 1), cross-entropy of the bits (B, T, 1); all entries counted."""
        s = self.per_element(sigma, clean)
        output = self._network(clean + s * noise, sigma, s)
        # (clean - c_skip x) / c_out, written so that nothing is divided by sigma.
        target = (s * clean - noise) * (s**2 + 1) ** -0.5
        bits = binary_cross_entropy_with_logits(
            output[..., self.terminal], (clean[..., self.terminal] + 1) / 2, reduction="none"
        )
        return (output - target)[..., self.continuous], bits

    def counted(self, x: Tensor, sigma: Tensor) -> Tensor:
        """(B, T, D) bool: entries that carry a loss, those in the slots that are not observed."""
        return (self.slots & (self.per_element(sigma, x) > 0)).expand_as(x)

    def _network(self, x: Tensor, sigma: Tensor, s: Tensor) -> Tensor:
        scaled = x * (s**2 + 1) ** -0.5 * self.slots
        if self.level_channels:
            # ln of an observed entry's level would be -inf: 1e-4 is below every level of sampling.
            levels = _groups(sigma, x).clamp(min=1e-4).log() / 4
            scaled, c_noise = torch.cat((scaled, levels), dim=-1), levels.mean((1, 2))
        else:
            c_noise = sigma.log() / 4
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half_precision):
            output: Tensor = self.network(scaled, c_noise)
        return output.float() if self.half_precision else output

    def per_element(self, sigma: Tensor, x: Tensor) -> Tensor:
        """Levels that broadcast over (B, T, D)."""
        if sigma.ndim == 1:
            return sigma[:, None, None]
        if not self.level_channels:
            raise ValueError(
                "this denoiser was trained with one level per window; train with levels='mixed' "
                "for levels per row and group"
            )
        return _groups(sigma, x)[..., self.column_group]


def _groups(sigma: Tensor, x: Tensor) -> Tensor:
    """Levels of any allowed shape as (B, T, G)."""
    while sigma.ndim < 3:
        sigma = sigma[..., None]
    return sigma.expand(*x.shape[:2], len(GROUPS))


def _columns(value: Tensor, columns: slice) -> Tensor:
    """Some columns of a (B, T, D) tensor, or all of one that broadcasts over them."""
    return value if value.shape[-1] == 1 else value[..., columns]
