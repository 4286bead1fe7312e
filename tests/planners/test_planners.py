"""What all planners that learn to imagine have in common, seen on data of two behaviours."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from offdiff.checkpoint import load_planner, save_planner
from offdiff.core.errors import InputError
from offdiff.core.planning import Pins, Plan, Situation, check_plan
from offdiff.data.dataset import Dataset
from offdiff.planners.anchored_planner import AnchoredConfig
from offdiff.planners.base import PlannerConfig, PlannerModule
from offdiff.planners.decision_diffuser import DecisionDiffuserConfig
from offdiff.planners.diffuser import DiffuserConfig
from offdiff.planners.fit import PlannerFit, fit_planner
from offdiff.planners.task import Task
from offdiff.planners.trajectory_diffuser import TrajectoryDiffuserConfig
from offdiff.planners.veteran import VeteranConfig

CPU = torch.device("cpu")
H = 4
SMALL = {"horizon": H, "network": "mlp-128", "ema": 0.98, "batch_size": 64, "learning_rate": 2e-3}
CONFIGS: dict[str, PlannerConfig] = {
    "trajectory-diffuser": TrajectoryDiffuserConfig(
        **SMALL, generator_width=32, hidden=(64, 64), history=2, guidance=1.5, levels=4,
        start="noise",
    ),
    "diffuser": DiffuserConfig(**SMALL, guide_network="mlp-128", levels=6, scale=0.5),
    "decision-diffuser": DecisionDiffuserConfig(**SMALL, hidden=(64, 64), levels=6),
    "veteran": VeteranConfig(**SMALL, hidden=(64, 64), levels=6),
    "anchored": AnchoredConfig(**SMALL, hidden=(64, 64), anchors=8, candidates=4),
    "veteran-window": VeteranConfig(**SMALL, hidden=(64, 64), levels=6, rank_by="window"),
}  # fmt: skip


def start(config: PlannerConfig, data: Dataset, updates: int = 250) -> PlannerFit:
    return PlannerFit.start(
        config, Task.of(data), data.episodes, updates=updates, seed=0, device=CPU
    )


def quietly(fit: PlannerFit, log_every: int) -> PlannerModule:
    """Trains without a checkpoint and without a word."""
    return fit_planner(
        fit, Path(), "", log=lambda *_: None, log_every=log_every, checkpoint_seconds=math.inf
    )


def trained(config: PlannerConfig, data: Dataset, updates: int = 250) -> PlannerModule:
    fit = start(config, data, updates)
    return quietly(fit, log_every=updates)


@pytest.fixture(scope="module")
def planners(two_modes: Dataset) -> dict[str, PlannerModule]:
    return {name: trained(config, two_modes) for name, config in CONFIGS.items()}


def ask(planner: PlannerModule, situation: Situation, seed: int = 0) -> Plan:
    with torch.no_grad():
        return planner.plan(situation, generator=torch.Generator().manual_seed(seed))


def somewhere(n: int = 16, wanted: float = 20.0) -> Situation:
    obs = torch.stack((torch.zeros(n), torch.linspace(-1, 1, n)), dim=-1)
    return Situation.at(obs, 1, wanted=wanted)


@pytest.mark.parametrize("name", CONFIGS)
def test_plans_keep_the_contract_and_begin_at_the_present(
    name: str, planners: dict[str, PlannerModule], two_modes: Dataset
) -> None:
    situation = somewhere()
    plan = ask(planners[name], situation)
    check_plan(plan, situation, two_modes.episodes.spec, name)
    assert plan.obs is not None
    assert plan.obs.shape == (16, H, 2)
    assert torch.equal(plan.obs[:, 0], situation.obs)  # bit for bit
    assert torch.equal(ask(planners[name], situation).action, plan.action)
    assert not torch.equal(ask(planners[name], situation, seed=1).action, plan.action)


@pytest.mark.parametrize("name", CONFIGS)
def test_plans_follow_the_behaviour_that_is_rewarded(
    name: str, planners: dict[str, PlannerModule]
) -> None:
    """The best of two modes, by guidance, by condition or by choice; each moves 0.1 a step."""
    plan = ask(planners[name], somewhere())
    assert plan.obs is not None
    moved = plan.obs[:, -1, 0] - plan.obs[:, 0, 0]
    assert moved.median() > 0.2
    assert plan.action[:, 0].median() > 0.25
    constant = plan.obs[..., 1] - plan.obs[:, :1, 1]
    assert constant.abs().max() < 0.1


@pytest.mark.parametrize("name", ["trajectory-diffuser", "decision-diffuser"])
def test_a_lower_wanted_return_gives_the_other_behaviour(
    name: str, planners: dict[str, PlannerModule]
) -> None:
    plan = ask(planners[name], somewhere(wanted=0.0))
    assert plan.action[:, 0].median() < -0.25


@pytest.mark.parametrize("name", CONFIGS)
def test_way_points_are_kept_exactly(name: str, planners: dict[str, PlannerModule]) -> None:
    situation = somewhere()
    values = torch.zeros(16, H, 2)
    values[:, -1, 0] = 0.21
    which = torch.zeros(16, H, 2, dtype=torch.bool)
    which[:, -1, 0] = True
    pinned = replace(situation, pins=Pins(values=values, which=which))
    plan = ask(planners[name], pinned)
    assert plan.obs is not None
    assert (plan.obs[:, -1, 0] == values[:, -1, 0]).all()
    middle = plan.obs[:, 1, 0]
    assert middle.median().item() == pytest.approx(0.07, abs=0.06)  # a third of the way


@pytest.mark.parametrize("name", CONFIGS)
def test_pins_of_another_size_are_refused(name: str, planners: dict[str, PlannerModule]) -> None:
    wrong = Pins(
        values=torch.zeros(16, H + 1, 2), which=torch.zeros(16, H + 1, 2, dtype=torch.bool)
    )
    with pytest.raises(InputError, match="way-points are given for"):
        ask(planners[name], replace(somewhere(), pins=wrong))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_planner_plans_the_same(
    name: str, planners: dict[str, PlannerModule], two_modes: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "policy.safetensors"
    kind = name.removesuffix("-window")
    save_planner(path, planners[name], kind, CONFIGS[name], Task.of(two_modes))
    again = load_planner(path)
    assert again.config == CONFIGS[name]
    assert torch.equal(
        ask(again.planner, somewhere()).action, ask(planners[name], somewhere()).action
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_a_stopped_training_goes_on_to_the_same_bits(
    name: str, two_modes: Dataset, tmp_path: Path
) -> None:
    whole = start(CONFIGS[name], two_modes, updates=6)
    for _ in range(6):
        whole.step()
    stopped = start(CONFIGS[name], two_modes, updates=6)
    for _ in range(3):
        stopped.step()
    stopped.save(tmp_path / "state", "mine")
    resumed = start(CONFIGS[name], two_modes, updates=6)
    resumed.load(tmp_path / "state", "mine")
    for _ in range(3):
        resumed.step()
    for a, b in ((whole.module, resumed.module), (whole.average, resumed.average)):
        for key, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[key]), key
    with pytest.raises(InputError, match="belongs to another training"):
        resumed.load(tmp_path / "state", "yours")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_horizon_beyond_the_data_is_refused(name: str, two_modes: Dataset) -> None:
    config = replace(CONFIGS[name], horizon=12, stride=2)
    with pytest.raises(InputError, match="steps ahead, and the longest episode has 20"):
        start(config, two_modes)


def test_a_loss_that_is_not_finite_stops_the_training(two_modes: Dataset) -> None:
    fit = start(CONFIGS["veteran"], two_modes, updates=4)
    with torch.no_grad():
        next(fit.module.parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match="loss denoiser became nan before step 2"):
        quietly(fit, log_every=2)
