"""Trajectory Diffuser: what the proposal gives, what refinement adds, what it costs."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from value_choice import check_highest_value_is_followed

from offdiff.core.planning import Plan, Situation
from offdiff.data.dataset import Dataset
from offdiff.planners.base import PlannerModule
from offdiff.planners.diffuser import Diffuser, DiffuserConfig
from offdiff.planners.fit import PlannerFit, fit_planner
from offdiff.planners.task import Task
from offdiff.planners.trajectory_diffuser import TrajectoryDiffuser, TrajectoryDiffuserConfig

CPU = torch.device("cpu")
H = 8
CONFIG = TrajectoryDiffuserConfig(
    horizon=H, history=2, network="mlp-128", generator_width=32, hidden=(64, 64), ema=0.98,
    batch_size=64, learning_rate=2e-3, candidates=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def planner(two_modes: Dataset) -> PlannerModule:
    fit = PlannerFit.start(
        CONFIG, Task.of(two_modes), two_modes.episodes, updates=300, seed=0, device=CPU
    )
    return fit_planner(
        fit, Path(), "", log=lambda *_: None, log_every=300, checkpoint_seconds=math.inf
    )


def altered(planner: PlannerModule, **settings: object) -> TrajectoryDiffuser:
    """The same weights under other settings."""
    assert isinstance(planner, TrajectoryDiffuser)
    made = replace(CONFIG, **settings).build(planner.task)  # type: ignore[arg-type]
    made.load_state_dict(planner.state_dict())
    return made.eval().requires_grad_(False)


def somewhere(n: int = 8, wanted: float = 20.0) -> Situation:
    obs = torch.stack((torch.zeros(n), torch.linspace(-1, 1, n)), dim=-1)
    return Situation.at(obs, 1, wanted=wanted)


def ask(planner: PlannerModule, situation: Situation, seed: int = 0) -> Plan:
    with torch.no_grad():
        return planner.plan(situation, generator=torch.Generator().manual_seed(seed))


def test_without_levels_the_plan_is_the_proposal(planner: PlannerModule) -> None:
    plan = ask(altered(planner, levels=0), somewhere())
    assert plan.obs is not None
    assert torch.equal(plan.obs, plan.stages["proposal"])
    assert torch.equal(plan.obs[:, 0], somewhere().obs)
    assert plan.calls == H - 1


def test_calls_are_those_of_the_networks(planner: PlannerModule) -> None:
    """Counted where they happen, not where they are written down."""
    for settings in (
        {"levels": 3},
        {"levels": 3, "guidance": 1.5},
        {"levels": 4, "start": "noise"},
    ):
        made, seen = altered(planner, **settings), list[int]()
        for part in (made.denoiser.network, made.generator.head):
            part.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        assert ask(made, somewhere()).calls == len(seen)


def test_the_start_level_is_the_measured_error_of_proposals(
    planner: PlannerModule, two_modes: Dataset
) -> None:
    made = altered(planner)
    assert made.errors[0] == 0
    assert made.start.item() == pytest.approx(made.errors[1:].median().item())
    assert 0.02 <= made.start.item() < 1  # it knows where it goes, but not each step's noise
    assert made.start_sigma() == made.start.item()
    assert altered(planner, start_level=0.3).start_sigma() == 0.3


def test_refinement_keeps_the_behaviour_that_was_proposed(planner: PlannerModule) -> None:
    """It is a local step: it mends a proposal and does not choose another behaviour."""
    for wanted, sign in ((20.0, 1.0), (0.0, -1.0)):
        plan = ask(planner, somewhere(wanted=wanted))
        assert plan.obs is not None
        assert (sign * plan.obs[:, -1, 0] > 0.3).all()
        assert (sign * plan.stages["proposal"][:, -1, 0] > 0.3).all()
        assert plan.candidates is not None
        moved = plan.candidates - plan.stages["proposal"][:, None]
        assert 1e-4 < moved[:, :, -1, 0].abs().median() < 0.3


def test_a_plan_before_that_came_true_is_refined_without_a_new_proposal(
    planner: PlannerModule,
) -> None:
    made = altered(planner, warm_start=True)
    first = somewhere()
    before = ask(made, first).obs
    assert before is not None
    ahead = torch.cat((before[:, 1:], before[:, -1:]), dim=1)
    yes = torch.ones(8, dtype=torch.bool)
    later = replace(first, obs=before[:, 1], history=before[:, 1:2], previous=ahead, follows=yes)
    assert ask(made, later).calls == CONFIG.levels
    lost = replace(later, obs=before[:, 1] + 0.5)
    assert ask(made, lost).calls == CONFIG.levels + H - 1
    anew = replace(later, follows=~yes)
    assert ask(made, anew).calls == CONFIG.levels + H - 1


def test_a_plan_that_failed_is_proposed_anew_without_those_that_came_true(
    planner: PlannerModule,
) -> None:
    warm, cold = altered(planner, warm_start=True), altered(planner)
    first = somewhere()
    before = ask(cold, first).obs
    assert before is not None
    ahead = torch.cat((before[:, 1:], before[:, -1:]), dim=1)
    fine = torch.arange(8) % 2 == 0
    obs = before[:, 1] + 0.5 * ~fine[:, None]
    later = replace(
        first, obs=obs, history=obs[:, None], previous=ahead, follows=torch.ones(8).bool()
    )
    proposal = ask(warm, later).stages["proposal"]
    torch.testing.assert_close(proposal[fine][:, 1:], ahead[fine][:, 1:])
    torch.testing.assert_close(proposal[~fine], ask(cold, later).stages["proposal"][~fine])


def test_environments_at_once_are_planned_for_as_each_alone(planner: PlannerModule) -> None:
    """With the same noise: 4 candidates x 8 x 2 numbers of an environment are one draw."""
    situation = somewhere(4)
    together = ask(planner, situation).obs
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        alone = [
            planner.plan(situation.rows(torch.tensor([i])), generator=generator).obs
            for i in range(4)
        ]
    assert together is not None
    torch.testing.assert_close(together, torch.cat([a for a in alone if a is not None]))


def test_the_candidate_of_highest_value_is_followed(planner: PlannerModule) -> None:
    check_highest_value_is_followed(altered(planner), somewhere())


def test_a_past_that_is_padding_does_not_matter(planner: PlannerModule) -> None:
    short = somewhere()
    padded = replace(
        short,
        history=torch.cat((torch.full((8, 1, 2), 9.0), short.history), dim=1),
        actions=torch.zeros(8, 2, 1),
        wanted=torch.full((8, 2), 20.0),
        remembered=torch.tensor([[False, True]]).expand(8, 2),
    )
    torch.testing.assert_close(ask(planner, padded).obs, ask(planner, short).obs)


def test_diffusers_steps_up_the_gradient_have_a_closed_form(two_modes: Dataset) -> None:
    """J(x) = c x: every guide step moves by strength * variance * c, known entries stay."""
    config = DiffuserConfig(horizon=4, network="mlp-128", guide_network="mlp-128", levels=4)
    planner = Diffuser(config, Task.of(two_modes))
    slope = torch.linspace(-1, 1, 4 * 3).view(4, 3)

    class Linear(torch.nn.Module):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return (x * slope).sum((1, 2))

    planner.guide = Linear()  # type: ignore[assignment]
    sigmas = torch.tensor([2.0, 1.0, 0.5, 0.25, 0.0])
    values, known = torch.zeros(2, 4, 3), torch.zeros(2, 4, 3, dtype=torch.bool)
    known[:, 0] = True
    edit = planner._uphill(sigmas, values, known)
    x = torch.where(known, values, torch.ones(2, 4, 3))
    moved = edit(x, torch.full((2,), 2.0)) - x
    strength = config.scale * planner.task.value_scale(config.discount)
    variance = 1.0**2 * (1 - (1.0 / 2.0) ** 2)
    expected = config.guide_steps * strength * variance * slope * ~known
    torch.testing.assert_close(moved, expected)
    edit(x, torch.full((2,), 1.0))
    assert torch.equal(edit(x, torch.full((2,), 0.5)), x)  # the last two levels are unguided


def test_anchors_are_what_the_data_did_from_here(two_modes: Dataset) -> None:
    """A proposal without a network call, off by what it is measured to be."""
    fit = PlannerFit.start(
        replace(CONFIG, start="anchors", levels=2), Task.of(two_modes), two_modes.episodes,
        updates=100, seed=0, device=CPU,
    )  # fmt: skip
    made = fit_planner(
        fit, Path(), "", log=lambda *_: None, log_every=100, checkpoint_seconds=math.inf
    )
    assert isinstance(made, TrajectoryDiffuser)
    assert 0 < made.start_sigma() < 1
    plan = ask(made, somewhere())
    assert plan.calls == 2
    assert torch.equal(plan.stages["proposal"][:, 0], somewhere().obs)
    # The data go up or down by about as much everywhere.
    x = torch.from_numpy(two_modes.episodes.obs)[:, 0]
    usual = float((x[H - 1 :] - x[: 1 - H])[:4].abs().mean())
    moved = (plan.stages["proposal"][:, -1, 0] - plan.stages["proposal"][:, 0, 0]) / usual
    assert float(moved.abs().median()) == pytest.approx(1.0, abs=0.3)
