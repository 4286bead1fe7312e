"""What an augmenter is told and made from: the door for augmenters of other packages."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import torch

from offdiff.core.protocols import Augmenter
from offdiff.data.dataset import DatasetInfo
from offdiff.data.episodes import Episodes


@dataclass(frozen=True, kw_only=True)
class Source:
    """What an augmenter learns from, and where it may work."""

    episodes: Episodes
    """Observations and rewards in the environment's units, actions in [-1, 1]."""
    info: DatasetInfo
    device: torch.device
    cache: Path
    """Folder in which trained models are kept for later runs."""
    progress: bool = False
    """Show progress bars on stderr."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(ABC):
    """When a learner gets synthetic experience and how much. Subclasses say of what kind."""

    needs_policy: ClassVar[bool] = False
    """True if nothing can be generated before a policy has been trained."""

    share: float = 0.5
    """Share of synthetic transitions in every batch, in (0, 1]."""
    start: int = 0
    """Learner update before which synthetic experience is generated for the first time."""
    every: int = 2_500
    """Learner updates between two generations."""
    transitions: int = 16_000
    """Synthetic transitions per seed and generation, before windows are cut at terminals."""
    pools: int = 2
    """Generations that are kept; each supplies the same share, the oldest is replaced."""
    policy_std: float = 1.0
    """Spread that a deterministic policy is taken to have, in action units: for guidance and
    diagnostics."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(
                f"share must lie in (0, 1], got {self.share}; use --augment none for 0"
            )
        for name, low in {"start": 0, "every": 1, "transitions": 1, "pools": 1}.items():
            if not low <= getattr(self, name) < 2**40:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if not 0 < self.policy_std <= 10:
            raise ValueError(f"policy_std must lie in (0, 10], got {self.policy_std}")
        if self.needs_policy and self.start == 0:
            raise ValueError("start must be at least 1: this augmenter needs a trained policy")

    def at_paper_size(self) -> Self:
        """The same at the size of the paper it comes from: `--preset paper`."""
        return replace(self, start=10_000 if self.needs_policy else 0, every=10_000,
                       transitions=256_000)  # fmt: skip

    @abstractmethod
    def build(self, source: Source) -> Augmenter:
        """Trains or loads what it needs. Raises InputError for data it cannot work with."""
