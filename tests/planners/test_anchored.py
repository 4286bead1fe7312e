"""Anchored planning: what its candidates are, who chooses among them, what a plan costs."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from value_choice import check_highest_value_is_followed

from offdiff.core.planning import Plan, Situation
from offdiff.data.dataset import Dataset
from offdiff.planners.anchored_planner import Anchored, AnchoredConfig
from offdiff.planners.base import PlannerModule
from offdiff.planners.fit import PlannerFit, fit_planner
from offdiff.planners.task import Task

H = 4
CONFIG = AnchoredConfig(
    horizon=H, anchors=8, candidates=4, network="mlp-128", hidden=(64, 64), ema=0.98,
    batch_size=64, learning_rate=2e-3,
)  # fmt: skip


def start(config: AnchoredConfig, data: Dataset, updates: int) -> PlannerFit:
    return PlannerFit.start(
        config, Task.of(data), data.episodes, updates=updates, seed=0, device=torch.device("cpu")
    )


@pytest.fixture(scope="module")
def planner(two_modes: Dataset) -> PlannerModule:
    return fit_planner(
        start(CONFIG, two_modes, 250),
        Path(),
        "",
        log=lambda *_: None,
        log_every=250,
        checkpoint_seconds=math.inf,
    )


def altered(planner: PlannerModule, **settings: object) -> Anchored:
    """The same weights under other settings."""
    assert isinstance(planner, Anchored)
    made = replace(CONFIG, **settings).build(planner.task)  # type: ignore[arg-type]
    made.load_state_dict(planner.state_dict())
    return made.eval().requires_grad_(False)


def somewhere(n: int = 8) -> Situation:
    obs = torch.stack((torch.zeros(n), torch.linspace(-1, 1, n)), dim=-1)
    return Situation.at(obs, 1)


def ask(planner: PlannerModule, situation: Situation) -> Plan:
    with torch.no_grad():
        return planner.plan(situation, generator=torch.Generator().manual_seed(0))


def test_a_plan_costs_two_network_calls(planner: PlannerModule) -> None:
    made, seen = altered(planner), list[int]()
    for stage in made.refiner.stages:
        stage.register_forward_hook(lambda *_: seen.append(1))
    assert ask(made, somewhere()).calls == len(seen) == 2


def test_candidates_are_of_both_behaviours_and_each_is_one_of_them(planner: PlannerModule) -> None:
    """The data move by 0.3 in three steps, up or down, give or take 0.035; nothing stays."""
    plan = ask(planner, somewhere())
    assert plan.candidates is not None
    assert plan.candidates.shape == (8, 4, H, 2)
    moved = plan.candidates[:, :, -1, 0]
    assert (moved.abs() > 0.2).all()
    assert (moved.abs() < 0.4).all()
    assert (moved > 0).any()
    assert (moved < 0).any()


def test_scores_are_the_shares_of_the_behaviours(planner: PlannerModule) -> None:
    """Half of the episodes go up, and where they start says nothing."""
    made, situation = altered(planner), somewhere()
    decided = situation.obs[:, None].repeat(1, H, 1)
    with torch.no_grad():
        refined = made.refiner.refine(
            made.frame.encode(decided),
            made.refiner.start.expand_as(decided),
            generator=torch.Generator().manual_seed(0),
        )
    up = (refined.scores * (refined.plans[:, :, -1, 0] > 0)).sum(1)
    assert float(up.mean()) == pytest.approx(0.5, abs=0.1)


def test_the_candidate_of_highest_value_is_followed(planner: PlannerModule) -> None:
    check_highest_value_is_followed(altered(planner), somewhere())


def test_by_score_the_likeliest_candidate_is_followed(planner: PlannerModule) -> None:
    plan = ask(altered(planner, choose="score"), somewhere())
    assert plan.candidates is not None
    assert torch.equal(plan.obs, plan.candidates[:, 0])  # type: ignore[arg-type]
    alone = ask(altered(planner, candidates=1), somewhere())
    assert torch.equal(alone.obs, plan.obs)  # type: ignore[arg-type]


def test_environments_at_once_are_planned_for_as_each_alone(planner: PlannerModule) -> None:
    """With the same noise: 8 anchors x 4 x 2 numbers of an environment are one draw."""
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


def test_anchors_are_futures_relative_to_the_present(two_modes: Dataset) -> None:
    """Moving all data elsewhere leaves them where they are."""
    episodes = two_modes.episodes
    moved = replace(two_modes, episodes=replace(
        episodes, obs=episodes.obs + 8, next_obs=episodes.next_obs + 8
    ))  # fmt: skip
    here, there = (start(CONFIG, data, 1).module for data in (two_modes, moved))
    assert isinstance(here, Anchored)
    assert isinstance(there, Anchored)
    torch.testing.assert_close(here.refiner.anchors, there.refiner.anchors, atol=1e-2, rtol=0)
    assert here.refiner.anchors[:, 0].eq(0).all()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"anchors": 0}, "anchors must lie in"), ({"noise": 1.0}, "noise must lie")],
)
def test_bad_settings_are_refused(wrong: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(CONFIG, **wrong)  # type: ignore[arg-type]
