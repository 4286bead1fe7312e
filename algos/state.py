"""A learner's state as one flat dictionary of tensors, made of its parts' dictionaries."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor


class Part(Protocol):
    """A network, an optimiser or a counter."""

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors to keep."""
        ...

    def load_state_dict(self, state: dict[str, Tensor], /) -> None:
        """Restores what `state_dict` gave."""
        ...


class Leaf:
    """A trained tensor that is no network: a log standard deviation, a temperature."""

    def __init__(self, value: Tensor) -> None:
        self.tensor = value.requires_grad_(True)

    def state_dict(self) -> dict[str, Tensor]:
        """The tensor."""
        return {"tensor": self.tensor.detach()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` gave."""
        with torch.no_grad():
            self.tensor.copy_(state["tensor"])


def gather(parts: Mapping[str, Part]) -> dict[str, Tensor]:
    """{"critic.flat": ..., "critic_optimiser.mean": ...}."""
    return {
        f"{name}.{key}": tensor
        for name, part in parts.items()
        for key, tensor in part.state_dict().items()
    }


def scatter(parts: Mapping[str, Part], state: Mapping[str, Tensor]) -> None:
    """The inverse of `gather`."""
    for name, part in parts.items():
        prefix = f"{name}."
        own = {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}
        part.load_state_dict(own)
