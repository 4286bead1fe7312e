"""What of a plan is decided before it is made: the present, way-points, the goal.

Dimension letters: B environments, H rows of a plan, O observation.
"""

import torch
from torch import Tensor

from offdiff.core.errors import InputError
from offdiff.core.planning import Situation
from offdiff.planners.task import Goal


def known_rows(situation: Situation, rows: int, goal: Goal | None) -> tuple[Tensor, Tensor]:
    """(B, H, O) values in the environment's units and (B, H, O) bool, where they hold.

    goal: where one is to be in the last row, as the present observation says; None to leave it
    open. What the situation pins holds besides. Raises InputError for pins of another size.
    """
    obs = situation.obs
    values = obs[:, None].repeat(1, rows, 1)
    known = torch.zeros(values.shape, dtype=torch.bool, device=obs.device)
    known[:, 0] = True
    if goal is not None and rows > 1:
        for reached in goal.reached:
            values[:, -1, list(reached)] = obs[:, list(goal.wanted)]
            known[:, -1, list(reached)] = True
        # What is wanted does not change on the way.
        known[:, :, list(goal.wanted)] = True
    pins = situation.pins
    if pins is not None:
        if pins.which.shape != known.shape or pins.values.shape != known.shape:
            raise InputError(
                f"way-points are given for {tuple(pins.which.shape)} numbers, the plan has "
                f"{tuple(known.shape)}: environments, rows, observation numbers"
            )
        later = pins.which.clone()
        later[:, 0] = False  # the present is what it is
        values, known = torch.where(later, pins.values, values), known | later
    return values, known


def start_mask(rows: int, columns: int, observed: int, goal: Goal | None) -> Tensor:
    """(H, D) bool: what is known of every window in training, the present and what is wanted.

    columns: D, of which the first `observed` are the observation's.
    """
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    mask[0, :observed] = True
    if goal is not None:
        mask[:, list(goal.wanted)] = True
    return mask
