"""What observations are believed: those not far outside of what was recorded.

Dimension letters: N windows, L transitions of a window, O observation.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from offdiff.core.types import Trajectories
from offdiff.data.episodes import Episodes


def cut_unbelievable(windows: Trajectories, low: Tensor, high: Tensor) -> Trajectories:
    """Ends every window before its first transition that touches an unbelievable observation.

    low, high: (O,), see `observed_range`. It is no end of the task: the window is truncated. One
    such transition could poison a critic (defect D16 of PGD's code).
    """
    believed = ((windows.obs >= low) & (windows.obs <= high)).all(-1)  # False for NaN, too
    sound = (believed[:, :-1] & believed[:, 1:] & windows.reward.isfinite()).cumprod(1).bool()
    return replace(windows, mask=windows.mask & sound)


def observed_range(episodes: Episodes) -> tuple[Tensor, Tensor]:
    """(O,), (O,): three standard deviations beyond the lowest and highest observation."""
    obs = episodes.obs
    # Where tasks end only the successors show how far states reach.
    low = np.minimum(obs.min(0), episodes.next_obs.min(0))
    high = np.maximum(obs.max(0), episodes.next_obs.max(0))
    # Constant numbers need room for the dynamics' rounding.
    margin = 3 * obs.std(0, dtype=np.float64) + 1e-4
    return (
        torch.from_numpy((low - margin).astype(np.float32)),
        torch.from_numpy((high + margin).astype(np.float32)),
    )
