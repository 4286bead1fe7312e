"""Timings count exactly, take turns, and say how much slower one planner is than another."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from straight_planner import CALLS, Straight, StraightConfig, record_drift

from offdiff import planner_speed
from offdiff.checkpoint import SavedPlanner, save_planner
from offdiff.core.errors import InputError
from offdiff.core.planning import Plan, Situation
from offdiff.data.dataset import Dataset
from offdiff.data.load import load_dataset
from offdiff.planner_speed import Setting, contender, measure
from offdiff.planners.base import PlannerConfig
from offdiff.planners.task import Task

CPU = torch.device("cpu")
ONE, MANY = Setting(), Setting(environments=64)


class Clock:
    """Goes on only where a planner works."""

    def __init__(self) -> None:
        self.now = 0.0
        self.turns: list[str] = []
        self.seen: list[Situation] = []

    def perf_counter(self) -> float:
        return self.now


CLOCK = Clock()


@dataclass(frozen=True, kw_only=True)
class PacedConfig(StraightConfig):
    """Takes `ms` for a decision and `ms_each` more for every environment and candidate."""

    name: str = "paced"
    ms: float = 1.0
    ms_each: float = 0.1
    candidates: int = 1

    def build(self, task: Task, /) -> "Paced":
        return Paced(self, task)


class Paced(Straight):
    def plan(self, situation: Situation, /, *, generator: torch.Generator) -> Plan:
        config = self.config
        assert isinstance(config, PacedConfig)
        CLOCK.now += (config.ms + config.ms_each * len(situation) * config.candidates) / 1e3
        CLOCK.turns.append(config.name)
        CLOCK.seen.append(situation)
        return super().plan(situation, generator=generator)


@dataclass(frozen=True, kw_only=True)
class SingleConfig(PlannerConfig):
    """A planner that knows no candidates."""

    def build(self, task: Task, /) -> Paced:
        return Paced(PacedConfig(horizon=self.horizon), task)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    monkeypatch.setattr(planner_speed, "time", CLOCK)
    monkeypatch.setattr(planner_speed, "DRAWS", 200)
    CLOCK.__init__()  # type: ignore[misc]  # as new
    return CLOCK


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    record_drift(tmp_path / "drift.hdf5")
    return load_dataset(str(tmp_path / "drift.hdf5"))


def saved(config: PlannerConfig, dataset: Dataset, name: str = "paced") -> SavedPlanner:
    task = Task.of(dataset)
    return SavedPlanner(name=name, config=config, task=task, planner=config.build(task), device=CPU)


def test_latencies_ratios_and_calls_are_exact(clock: Clock, dataset: Dataset) -> None:
    quick, slow = PacedConfig(ms=0.9), PacedConfig(ms=2.9)
    many_candidates = Setting(candidates=64)
    found = measure(
        [saved(quick, dataset, "quick"), saved(slow, dataset, "slow")],
        dataset,
        [ONE, many_candidates, MANY],
        repeats=5,
        warmup=2,
        seed=0,
    )
    assert [one.planner for one in found] == ["quick", "slow"]
    expected = {"quick": [1.0, 7.3, 7.3], "slow": [3.0, 9.3, 9.3]}
    for one in found:
        assert one.parameters == 7
        assert one.config == {"horizon": 16, "stride": 1, "history": 1, "candidates": 1}
        for timing, ms in zip(one.timings, expected[one.planner], strict=True):
            for value in (timing.mean_ms, timing.p50_ms, timing.p95_ms, timing.first_ms):
                assert value == pytest.approx(ms)
            assert timing.calls == CALLS
        names = ["1 environment", "1 environment, 64 candidates", "64 environments"]
        assert [timing.setting for timing in one.timings] == names
    for timing, ratio in zip(found[1].timings, (3.0, 9.3 / 7.3, 9.3 / 7.3), strict=True):
        assert (timing.ratio, timing.ratio_low, timing.ratio_high) == pytest.approx((ratio,) * 3)
    assert [t.ratio for t in found[0].timings] == [1.0, 1.0, 1.0]
    assert found[0].timings[2].plans_per_second == pytest.approx(64 / 7.3e-3)


def test_environments_at_50_hz(clock: Clock, dataset: Dataset) -> None:
    # 1 + 0.1 B ms: 64 environments take 7.4 ms, 256 take 26.6
    paces = [PacedConfig(), PacedConfig(ms_each=0.01), PacedConfig(ms=25), PacedConfig(ms_each=2)]
    found = measure([saved(c, dataset) for c in paces], dataset, [], repeats=1, warmup=0, seed=0)
    assert [one.served for one in found] == [64, 256, 0, 8]


def test_planners_take_turns_back_and_forth(clock: Clock, dataset: Dataset) -> None:
    names = ["a", "b"]
    contenders = [saved(PacedConfig(name=name, history=3), dataset) for name in names]
    measure(contenders, dataset, [ONE], repeats=4, warmup=1, seed=0)
    first, warm = clock.turns[:2], clock.turns[2:8]
    assert first == ["a", "b"]
    assert warm == ["a"] * 3 + ["b"] * 3, "until everything that is remembered is there"
    assert "".join(clock.turns[8:16]) == "abbaabba"
    timed = clock.seen[8:16]
    assert all(situation.remembered.all() for situation in timed), "the full history"


def test_observations_are_the_datasets_in_their_order(clock: Clock, dataset: Dataset) -> None:
    measure([saved(PacedConfig(), dataset)], dataset, [MANY], repeats=3, warmup=0, seed=0)
    obs = dataset.episodes.obs
    for situation, later in zip(clock.seen[:3], clock.seen[1:4], strict=True):
        rows = [int(np.flatnonzero((obs == row).all(1))[0]) for row in situation.obs.numpy()]
        following = [int(np.flatnonzero((obs == row).all(1))[0]) for row in later.obs.numpy()]
        # All episodes begin at the origin: the first such row stands for all of them.
        for row, after in zip(rows, following, strict=True):
            assert row == 0 or after in (0, row + 1)
    assert len(clock.seen[0].obs) == 64


def test_every_step_is_a_decision_whatever_the_planner_does_between(
    clock: Clock, dataset: Dataset
) -> None:
    rare = saved(PacedConfig(replan_every=10, open_loop=True), dataset)
    (found,) = measure([rare], dataset, [ONE], repeats=6, warmup=0, seed=0)
    assert found.timings[0].p50_ms == pytest.approx(1.1)


def test_without_candidates_a_planner_makes_as_many_plans_of_copies(
    clock: Clock, dataset: Dataset
) -> None:
    both = [saved(SingleConfig(), dataset, "single"), saved(PacedConfig(ms=0.4), dataset)]
    found = measure(both, dataset, [ONE, Setting(candidates=4)], repeats=2, warmup=0, seed=0)
    assert "candidates" not in found[0].config
    assert [one.timings[1].p50_ms for one in found] == pytest.approx([1.4, 0.8])
    assert found[1].timings[1].ratio == pytest.approx(0.8 / 1.4)
    assert found[0].timings[1].plans_per_second == pytest.approx(1 / 1.4e-3), "environments count"
    single, other = clock.seen[8:10]  # the first decisions with 4 candidates
    assert (len(single), len(other)) == (4, 1)
    assert (single.obs == other.obs).all()


def test_contenders_by_name_and_from_a_run(dataset: Dataset, tmp_path: Path) -> None:
    named = contender("straight_planner:StraightConfig", dataset, CPU)
    assert (named.name, named.config) == ("straight_planner:StraightConfig", StraightConfig())
    run = tmp_path / "seed-0"
    config = StraightConfig(horizon=7)
    task = Task.of(dataset)
    file = run / "policy.safetensors"
    run.mkdir()
    save_planner(file, config.build(task), "straight_planner:StraightConfig", config, task)
    assert contender(run, dataset, CPU).config.horizon == 7
    wider = replace(task, spec=replace(task.spec, obs_dim=5))
    save_planner(file, config.build(wider), "straight_planner:StraightConfig", config, wider)
    with pytest.raises(InputError, match="5 observation and 2 action numbers, dataset drift has 2"):
        contender(run, dataset, CPU)
    with pytest.raises(InputError, match="unknown planner 'trajectory-difuser'; did you mean"):
        contender("trajectory-difuser", dataset, CPU)


def test_nothing_to_measure(dataset: Dataset) -> None:
    with pytest.raises(InputError, match="at least one planner and one repeat"):
        measure([], dataset, [ONE], repeats=1, warmup=0, seed=0)
