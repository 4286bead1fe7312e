"""Acting by plans: memory, replanning, steering, and what is said about broken plans."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from offdiff.core.errors import InputError
from offdiff.core.planning import Plan, Planner, Situation
from offdiff.core.types import Spec
from offdiff.planners.policy import PlannerPolicy

SPEC = Spec(2, 1)
CPU = torch.device("cpu")


@dataclass
class Counting:
    """Plans whose k-th action is 0.1 (k + 1) and whose observations go up by one a row."""

    horizon: int = 4
    asked: list[Situation] = field(default_factory=list)

    def plan(self, situation: Situation, /, *, generator: torch.Generator) -> Plan:
        self.asked.append(situation)
        n = len(situation)
        steps = torch.arange(self.horizon, dtype=torch.float32)
        action = (0.1 * (steps[1:] + 0))[None, :, None].expand(n, -1, 1).clone()
        return Plan(
            action=action, obs=situation.obs[:, None] + steps[None, :, None], stride=1, calls=3
        )


class Steering(Counting):
    """The same, that also steers: its action is a hundredth of where the plan will be."""

    def follow(self, obs: Tensor, ahead: Tensor, /) -> Tensor:
        return ahead[:, 1, :1] / 100


def policy(
    planner: Planner, *, every: int = 1, history: int = 3, open_loop: bool = False, stride: int = 1
) -> PlannerPolicy:
    return PlannerPolicy(
        planner, SPEC, name="mine", history=history, replan_every=every, open_loop=open_loop,
        wanted=10.0, stride=stride, device=CPU, seed=0,
    )  # fmt: skip


def everybody(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.bool)


def test_history_wanted_returns_and_time() -> None:
    planner = Counting()
    acting = policy(planner)
    acting.reset(everybody(2))
    for t in range(4):
        acting.act(torch.full((2, 2), float(t)))
        acting.observe(torch.tensor([1.0, 2.0]))
    last = planner.asked[-1]
    assert last.history[0, :, 0].tolist() == [1, 2, 3]
    assert last.actions[0, :, 0].tolist() == pytest.approx([0.1, 0.1, 0.0])
    assert last.wanted.tolist() == [[9, 8, 7], [8, 6, 4]]
    assert last.time.tolist() == [3, 3]
    assert planner.asked[0].remembered[0].tolist() == [False, False, True]


def test_a_reset_touches_no_other_environment() -> None:
    planner = Counting()
    acting = policy(planner)
    acting.reset(everybody(2))
    for t in range(3):
        acting.act(torch.full((2, 2), float(t)))
        acting.observe(torch.ones(2))
    acting.reset(torch.tensor([True, False]))
    acting.act(torch.full((2, 2), 7.0))
    last = planner.asked[-1]
    assert last.remembered.tolist() == [[False, False, True], [True, True, True]]
    assert last.wanted.tolist() == [[0, 0, 10], [9, 8, 7]]
    assert last.time.tolist() == [0, 3]
    assert last.history[0, :, 0].tolist() == [0, 0, 7]
    assert last.follows is not None
    assert last.follows.tolist() == [False, True]


def test_open_loop_takes_the_planned_actions_and_plans_again_when_they_are_used_up() -> None:
    planner = Steering()
    acting = policy(planner, every=3, open_loop=True)
    acting.reset(everybody(1))
    actions = [acting.act(torch.zeros(1, 2)).item() for _ in range(4)]
    assert actions == pytest.approx([0.1, 0.2, 0.3, 0.1])
    assert len(planner.asked) == 2


def test_an_environment_that_began_anew_is_planned_for_alone() -> None:
    planner = Counting()
    acting = policy(planner, every=3)
    acting.reset(everybody(2))
    acting.act(torch.zeros(2, 2))
    acting.reset(torch.tensor([False, True]))
    action = acting.act(torch.zeros(2, 2))
    assert action.squeeze(1).tolist() == pytest.approx([0.2, 0.1])
    assert [len(s) for s in planner.asked] == [2, 1]


def test_between_plans_it_steers_towards_where_the_plan_will_be() -> None:
    planner = Steering()
    acting = policy(planner, every=3)
    acting.reset(everybody(1))
    actions = [acting.act(torch.full((1, 2), 5.0)).item() for _ in range(3)]
    assert actions == pytest.approx([0.1, 0.07, 0.08])  # rows 2 and 3 of a plan from 5 on
    strided = policy(Steering(), every=3, stride=2)
    strided.reset(everybody(1))
    actions = [strided.act(torch.full((1, 2), 5.0)).item() for _ in range(3)]
    assert actions == pytest.approx([0.1, 0.065, 0.07])  # half a row a step


def test_the_plan_before_is_moved_on() -> None:
    planner = Counting()
    acting = policy(planner)
    acting.reset(everybody(1))
    acting.act(torch.zeros(1, 2))
    acting.act(torch.zeros(1, 2))
    previous = planner.asked[1].previous
    assert previous is not None
    assert previous[0, :, 0].tolist() == [1, 2, 3, 3]


def test_calls_and_decisions_are_counted() -> None:
    acting = policy(Counting(), every=2)
    acting.reset(everybody(2))
    for _ in range(4):
        acting.act(torch.zeros(2, 2))
    assert (acting.decisions, acting.calls) == (4, 12)


def _broken(plan: Plan) -> Planner:
    class Broken:
        def plan(self, situation: Situation, /, *, generator: torch.Generator) -> Plan:
            return plan

    return Broken()


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(action=torch.zeros(2, 1)), r"mine gave actions of shape \(2, 1\), expected"),
        (Plan(action=torch.zeros(2, 3, 4)), r"shape \(2, 3, 4\), expected \(2, K, 1\)"),
        (Plan(action=torch.zeros(2, 0, 1)), "gave no action"),
        (
            Plan(action=torch.zeros(2, 1, 1), obs=torch.zeros(2, 5, 3)),
            r"imagined observations of shape \(2, 5, 3\), expected \(2, H, 2\)",
        ),
        (Plan(action=torch.full((2, 1, 1), torch.nan)), "not finite"),
    ],
)  # fmt: skip
def test_a_plan_that_breaks_the_contract_is_named(plan: Plan, message: str) -> None:
    acting = policy(_broken(plan))
    acting.reset(everybody(2))
    with pytest.raises(InputError, match=message):
        acting.act(torch.zeros(2, 2))
