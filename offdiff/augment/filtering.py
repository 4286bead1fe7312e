"""Synthetic transitions that learned dynamics do not believe are dropped.

Dimension letters: N windows, L transitions of a window.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from offdiff.augment.dynamics import DynamicsEnsemble
from offdiff.core.protocols import Augmenter, Policy
from offdiff.core.types import Trajectories


@dataclass(frozen=True)
class Filtered:
    """An augmenter whose least believable transitions are masked out."""

    augmenter: Augmenter
    ensemble: DynamicsEnsemble
    share: float
    """Of the transitions, in [0, 1)"""

    @property
    def window(self) -> int:
        """Transitions of a generated window."""
        return self.augmenter.window

    def generate(
        self, n: int, policy: Policy | None, *, generator: torch.Generator
    ) -> Trajectories:
        """n windows of the augmenter, filtered."""
        made = self.augmenter.generate(n, policy, generator=generator)
        return drop_implausible(made, self.ensemble, self.share)

    def provenance(self) -> dict[str, Any]:
        """That of the augmenter, and of the filter."""
        used = {"dropped_share": self.share, **self.ensemble.provenance()}
        return {**self.augmenter.provenance(), "filter": used}


def drop_implausible(
    trajectories: Trajectories, ensemble: DynamicsEnsemble, share: float
) -> Trajectories:
    """Masks out the `share` in [0, 1) of the transitions inside the mask that are least believable.

    They are ranked by `DynamicsEnsemble.implausibility`: likelihood punishes small errors where
    little is left to chance, and disagreement does not look at the outcome.

    The number dropped is rounded down; a score that is not a number counts as the worst. Windows
    are not cut: transitions after a dropped one stay, each still has its own successor.
    Raises ValueError for another share.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share of dropped transitions must lie in [0, 1), got {share}")
    batch = trajectories.transitions()
    score = ensemble.implausibility(batch.obs, batch.action, batch.next_obs, batch.reward)
    order = score.nan_to_num(nan=torch.inf, posinf=torch.inf).argsort(descending=True, stable=True)
    worst = order[: int(share * len(score))]
    kept = torch.ones_like(score, dtype=torch.bool)
    kept[worst] = False
    mask = trajectories.mask.clone()
    mask[trajectories.mask] = kept
    return replace(trajectories, mask=mask)
