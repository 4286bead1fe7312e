"""The Decision Transformer follows the wanted return and reads the past of its own episode."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from offdiff.core.planning import Situation
from offdiff.data.dataset import Dataset
from offdiff.planners.base import PlannerModule
from offdiff.planners.decision_transformer import DecisionTransformerConfig
from offdiff.planners.fit import PlannerFit, fit_planner
from offdiff.planners.policy import PlannerPolicy
from offdiff.planners.task import Task

CPU = torch.device("cpu")
CONFIG = DecisionTransformerConfig(horizon=5, width=32, depth=2, ema=0.98, learning_rate=3e-3)


@pytest.fixture(scope="module")
def planner(two_modes: Dataset) -> PlannerModule:
    fit = PlannerFit.start(
        CONFIG, Task.of(two_modes), two_modes.episodes, updates=250, seed=0, device=CPU
    )
    return fit_planner(
        fit, Path(), "", log=lambda *_: None, log_every=250, checkpoint_seconds=math.inf
    )


def test_training_comes_near_the_noise_of_the_actions(
    planner: PlannerModule, two_modes: Dataset
) -> None:
    """Actions scatter by 0.1 around 0.5 or -0.5: without the return their error is 0.26.

    Below the noise, 0.01, minus three standard errors of the 200 held-out actions there is a leak;
    four seeds ended between 0.010 and 0.0135.
    """
    fit = PlannerFit.start(
        CONFIG, Task.of(two_modes), two_modes.episodes, updates=250, seed=0, device=CPU
    )
    assert fit.validate()["held_action"] > 0.2
    fit.average = planner
    assert 0.007 < fit.validate()["held_action"] < 0.02


def test_a_stopped_training_goes_on_to_the_same_bits(two_modes: Dataset, tmp_path: Path) -> None:
    def start(config: DecisionTransformerConfig = CONFIG) -> PlannerFit:
        return PlannerFit.start(
            config, Task.of(two_modes), two_modes.episodes, updates=6, seed=0, device=CPU
        )

    def steps(fit: PlannerFit, count: int) -> PlannerFit:
        for _ in range(count):
            fit.step()
        return fit

    whole = steps(start(), 6)
    steps(start(), 3).save(tmp_path / "state", "mine")
    resumed = start()
    resumed.load(tmp_path / "state", "mine")
    steps(resumed, 3)
    for a, b in ((whole.module, resumed.module), (whole.average, resumed.average)):
        for key, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[key]), key
    # That dropout took part is what makes this more than the test of the other planners.
    calm = steps(start(replace(CONFIG, dropout=0.0)), 6).module.state_dict()
    assert not torch.equal(calm["head.weight"], whole.module.state_dict()["head.weight"])


@torch.no_grad()
def test_the_wanted_return_decides_the_first_action(planner: PlannerModule) -> None:
    obs = torch.stack((torch.zeros(8), torch.linspace(-1, 1, 8)), dim=-1)
    for wanted, expected in ((20.0, 0.5), (0.0, -0.5)):
        plan = planner.plan(Situation.at(obs, 1, wanted=wanted), generator=torch.Generator())
        assert plan.obs is None
        assert plan.action.shape == (8, 1, 1)
        assert plan.action.mean().item() == pytest.approx(expected, abs=0.1)


def policy(planner: PlannerModule, wanted: float) -> PlannerPolicy:
    return PlannerPolicy(
        planner, planner.task.spec, name="dt", history=CONFIG.history, replan_every=1,
        open_loop=False, wanted=wanted, stride=1, device=CPU, seed=0,
    )  # fmt: skip


def play(acting: PlannerPolicy, start: torch.Tensor, steps: int) -> list[torch.Tensor]:
    """Plays x' = x + 0.2 a from (B, 2); rewards 1 for positive actions."""
    obs, taken = start.clone(), []
    acting.reset(torch.ones(len(obs), dtype=torch.bool))
    for _ in range(steps):
        action = acting.act(obs)
        acting.observe((action[:, 0] > 0).float())
        obs = obs + torch.nn.functional.pad(0.2 * action, (0, 1))
        taken.append(action)
    return taken


def test_it_earns_what_is_wanted(planner: PlannerModule) -> None:
    start = torch.zeros(4, 2)
    for wanted, at_least in ((20.0, 19), (0.0, 0)):
        earned = sum((a[:, 0] > 0).float() for a in play(policy(planner, wanted), start, 20))
        assert isinstance(earned, torch.Tensor)
        assert ((earned - at_least).abs() <= 1).all()


def test_environments_at_once_act_as_each_alone(planner: PlannerModule) -> None:
    start = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    together = torch.stack(play(policy(planner, 20.0), start, 8))
    for i in range(3):
        alone = torch.stack(play(policy(planner, 20.0), start[i : i + 1], 8))
        torch.testing.assert_close(together[:, i : i + 1], alone, rtol=0, atol=1e-5)


def test_a_reset_forgets_one_episode_and_no_other(planner: PlannerModule) -> None:
    both, alone, anew = (policy(planner, 20.0) for _ in range(3))
    obs = torch.tensor([[0.3, -1.0], [-0.2, 0.5]])
    for t in range(8):
        if t == 5:
            both.reset(torch.tensor([True, False]))
        if t >= 5:
            fresh = anew.act(obs[:1] + 0.1 * t)
            anew.observe(torch.tensor([1.0]))
        other = alone.act(obs[1:] + 0.1 * t)
        alone.observe(torch.tensor([0.5]))
        action = both.act(obs + 0.1 * t)
        both.observe(torch.tensor([1.0, 0.5]))
        torch.testing.assert_close(action[1:], other, rtol=0, atol=1e-5)
        if t >= 5:
            torch.testing.assert_close(action[:1], fresh, rtol=0, atol=1e-5)


def test_a_time_beyond_the_data_counts_as_their_end(planner: PlannerModule) -> None:
    acting = policy(planner, 20.0)
    assert torch.stack(play(acting, torch.zeros(1, 2), 30)).isfinite().all()


@pytest.mark.parametrize("setting", ["stride", "replan_every"])
def test_what_one_action_at_a_time_cannot_do_is_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} must be 1"):
        DecisionTransformerConfig(**{setting: 2})


def test_the_memory_is_as_long_as_the_context() -> None:
    assert DecisionTransformerConfig(horizon=7).history == 7
    assert DecisionTransformerConfig().at_paper_size().history == 20
