"""What planners share that choose among candidates by a state value."""

import torch
from torch import Tensor, nn

from offdiff.core.planning import Situation
from offdiff.planners.base import PlannerModule


class Low(nn.Module):
    """The lower the first number of an observation, the better."""

    def forward(self, obs: Tensor) -> Tensor:
        """(..., O) -> (...)."""
        return -obs[..., 0]


def check_highest_value_is_followed(made: PlannerModule, situation: Situation) -> None:
    """Whatever the planner has learned to value; `made` is altered."""
    made.value = Low()
    with torch.no_grad():
        plan = made.plan(situation, generator=torch.Generator().manual_seed(0))
    assert plan.candidates is not None
    assert plan.obs is not None
    worth = plan.candidates[:, :, 1:, 0].mean(-1)
    assert torch.equal(plan.obs[:, 1:, 0].mean(-1), worth.amin(1))
