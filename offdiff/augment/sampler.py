"""Sampling windows from a world model: in chunks, counted, and stopped where numbers break.

Dimension letters: B windows, T rows, D columns.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from offdiff.augment.believable import cut_unbelievable
from offdiff.core.errors import InputError
from offdiff.core.numerics import threads
from offdiff.core.protocols import Policy
from offdiff.core.types import Trajectories, join
from offdiff.diffusion.denoiser import Denoise
from offdiff.diffusion.networks import forward_flops
from offdiff.diffusion.world_model import WorldModel

Draw = Callable[[Denoise, int, torch.Generator], Tensor]
"""(denoiser, number of windows, generator) -> clean rows (B, T, D)."""
Prepare = Callable[[Policy | None, torch.Generator], Draw]
"""Called once per generation: how to draw windows near this policy."""


@dataclass
class Watch:
    """A denoiser that counts its calls and remembers when its output first broke, on the device."""

    denoise: Denoise
    calls: int = 0
    levels: list[Tensor] = field(default_factory=list)
    finite: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, sigma: Tensor, /) -> Tensor:
        """As the denoiser."""
        estimate = self.denoise(x, sigma)
        self.calls += 1
        self.levels.append(sigma.max())
        self.finite.append(estimate.isfinite().all())
        return estimate

    def require_finite(self, what: str) -> None:
        """Raises InputError that names the call and its noise level, should any have broken."""
        finite = torch.stack(self.finite).tolist()
        if not all(finite):
            k = finite.index(False)
            raise InputError(
                f"{what} made numbers that are not finite at network call {k + 1} of {self.calls} "
                f"(noise level {float(self.levels[k]):.3g}); lower the guidance strength, or train "
                "the model longer (the last checkpoint is kept)"
            )


class DiffusionAugmenter:
    """An `Augmenter` that samples windows from a world model."""

    def __init__(
        self,
        model: WorldModel,
        prepare: Prepare,
        *,
        chunk: int,
        cpu_threads: int,
        bounds: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """bounds: (O,) lowest and highest observation that is believed, see `observed_range`.

        chunk: windows per network call. cpu_threads: 0 for all cores.
        """
        self.model = model
        self._prepare = prepare
        self._bounds = bounds and tuple(bound.to(model.device) for bound in bounds)
        self._chunk = chunk
        self._threads = cpu_threads
        self.calls_per_window = 0
        """Network calls that a window of the last generation took."""

    @property
    def window(self) -> int:
        """Transitions of a window: those the model was trained on."""
        return self.model.codec.horizon

    def generate(
        self, n: int, policy: Policy | None, *, generator: torch.Generator
    ) -> Trajectories:
        """n windows; guided by the policy unless it is None.

        Raises InputError for a policy of another action size and for numbers that break.
        """
        if policy is not None:
            require_action_size(policy, self.model)
        parts = []
        with torch.no_grad(), threads(self._threads):
            draw = self._prepare(policy, generator)
            for start in range(0, n, self._chunk):
                watch = Watch(self.model.denoiser)
                size = min(self._chunk, n - start)
                rows = draw(watch, size, generator)
                watch.require_finite("sampling")
                self.calls_per_window = watch.calls
                made = self.model.codec.decode(rows)
                parts.append(cut_unbelievable(made, *self._bounds) if self._bounds else made)
        return join(parts)

    def provenance(self) -> dict[str, Any]:
        """What the synthetic data were made with, for the record."""
        codec, config = self.model.codec, self.model.config
        flops = forward_flops(config.network, codec.columns, codec.horizon + 1, widths=codec.widths)
        return {
            "model_hash": config.hash,
            "model_data_hash": self.model.data_hash,
            "validation_loss": self.model.validation[-1][1],
            "network_calls_per_window": self.calls_per_window,
            "flops_per_network_call": flops,
        }


def require_action_size(policy: Policy, model: WorldModel) -> None:
    """Raises InputError if a policy cannot act on the model's windows."""
    spec = model.codec.spec
    try:
        action = policy.act(torch.zeros(1, spec.obs_dim, device=model.device))
    except RuntimeError as error:
        raise InputError(
            f"the policy does not take the model's {spec.obs_dim} observation numbers on "
            f"{model.device} ({' '.join(str(error).split())}); guide with a policy of the same "
            "environment"
        ) from error
    if action.shape != (1, spec.action_dim):
        raise InputError(
            f"the policy gives {action.shape[-1]} action numbers, the model's data have "
            f"{spec.action_dim}; guide with a policy of the same environment"
        )
