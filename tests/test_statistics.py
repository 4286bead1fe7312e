"""Aggregates and tuning curves against the ReBRAC study's golden numbers and closed forms."""

import csv
import json
from collections import defaultdict
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offdiff import statistics
from offdiff.core.errors import InputError
from offdiff.statistics import FloatArray

GOLDEN = Path(__file__).parent / "golden"
METHODS = ("ReBRAC", "TD3+BC", "IQL")
DRAWS = 2_000


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads((GOLDEN / "statistics_golden.json").read_text())


@pytest.fixture(scope="module")
def runs(golden: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {m: defaultdict(list) for m in METHODS}
    with (GOLDEN / "rebrac_runs.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["method"] in METHODS and row["dataset"] in golden["tasks"]:
                found[row["method"]][row["dataset"]].append(float(row["score"]))
    return found


@pytest.fixture(scope="module")
def scores(runs: dict[str, dict[str, list[float]]]) -> dict[str, FloatArray]:
    return {method: statistics.stack_runs(tasks) for method, tasks in runs.items()}


@pytest.mark.parametrize("method", METHODS)
def test_golden_aggregates_and_intervals(
    method: str, golden: dict[str, Any], scores: dict[str, FloatArray]
) -> None:
    want = golden["methods"][method]
    assert scores[method].shape == (10, 28)
    ours = statistics.aggregates(scores[method], random=rng(), draws=DRAWS)
    for name, point, interval in [
        ("mean", "mean", "ci95_mean"),
        ("median", "median", "ci95_median"),
        ("iqm", "iqm", "ci95_iqm"),
        ("optimality_gap", "optimality_gap_100", "ci95_og"),
    ]:
        assert ours[name].value == pytest.approx(want[point], abs=1e-6)
        assert [ours[name].low, ours[name].high] == pytest.approx(want[interval], abs=0.5)
    profile = statistics.performance_profile(scores[method], [0, 25, 50, 75, 100])
    np.testing.assert_allclose(profile, list(want["profile"].values()), atol=1e-6)


def test_golden_probability_of_improvement(
    golden: dict[str, Any], scores: dict[str, FloatArray]
) -> None:
    for pair, want in golden["poi"].items():
        ours, theirs = pair.split(">")
        estimate = statistics.bootstrap(
            statistics.probability_of_improvement,
            scores[ours],
            scores[theirs],
            random=rng(),
            draws=200,
        )
        assert estimate.value == pytest.approx(want, abs=1e-6)
        assert estimate.low < want < estimate.high


@pytest.mark.parametrize(
    ("family", "prefixes"),
    [("locomotion18", ("hopper", "halfcheetah", "walker2d")), ("antmaze6", ("antmaze",))],
)
def test_golden_families(
    family: str,
    prefixes: tuple[str, ...],
    golden: dict[str, Any],
    runs: dict[str, dict[str, list[float]]],
) -> None:
    for method in METHODS:
        part = {task: v for task, v in runs[method].items() if task.startswith(prefixes)}
        matrix, want = statistics.stack_runs(part), golden[family][method]
        assert matrix.shape[1] == want["n_tasks"]
        assert statistics.iqm(matrix) == pytest.approx(want["iqm"], abs=1e-6)
        assert statistics.mean(matrix) == pytest.approx(want["mean"], abs=1e-6)


def test_golden_expected_online_performance() -> None:
    data = json.loads((GOLDEN / "eop_golden.json").read_text())["data"]
    checked = 0
    for methods in data.values():
        for study in methods.values():
            budgets = [int(k) for k in study["k"]]
            ours = statistics.expected_online_performance(
                study["values"], budgets, replacement=True
            )
            # values and results are stored with four decimals
            np.testing.assert_allclose(ours, list(study["k"].values()), atol=2e-4)
            checked += len(budgets)
    assert checked > 300


@given(st.lists(st.floats(-100, 200), min_size=1, max_size=5))
def test_expected_online_performance_is_the_mean_best_of_all_draws(values: list[float]) -> None:
    for k in range(1, len(values) + 1):
        without, with_ = (
            statistics.expected_online_performance(values, [k], replacement=r)[0]
            for r in (False, True)
        )
        assert without == pytest.approx(np.mean([max(c) for c in combinations(values, k)]))
        assert with_ == pytest.approx(np.mean([max(c) for c in product(values, repeat=k)]))


def test_iqm_drops_a_quarter_at_each_end() -> None:
    scores = np.array([[-1e9, 1, 2], [3, 4, 1e9]])
    assert statistics.iqm(scores) == 2.5
    assert statistics.iqm(np.arange(8.0).reshape(4, 2)) == np.mean([2, 3, 4, 5])
    assert statistics.optimality_gap(np.array([[50.0, 170.0]])) == 25
    assert statistics.median(np.array([[0.0, 5, 90], [2, 7, 92]])) == 6


def test_probability_of_improvement_by_hand() -> None:
    ours = np.array([[1.0, 5.0], [2.0, 5.0]])
    theirs = np.array([[1.0, 5.0], [0.0, 6.0], [3.0, 4.0]])
    # task 1: wins of 1: tie, win, loss; of 2: win, win, loss. task 2: tie, loss, win, twice
    assert statistics.probability_of_improvement(ours, theirs) == pytest.approx(
        ((0.5 + 1 + 0 + 1 + 1 + 0) / 6 + 0.5) / 2
    )
    both = statistics.probability_of_improvement(ours, theirs)
    assert both + statistics.probability_of_improvement(theirs, ours) == pytest.approx(1)


def test_bootstrap_is_seeded_stratified_and_shaped() -> None:
    # no spread within a task: resampling runs changes nothing, resampling tasks would
    flat = np.tile([0.0, 50.0, 100.0], (5, 1))
    estimate = statistics.bootstrap(statistics.mean, flat, random=rng(), draws=50)
    assert estimate.value == estimate.low == estimate.high == 50
    noisy = rng(1).normal(size=(6, 4))
    first, again, other = (
        statistics.bootstrap(statistics.iqm, noisy, random=rng(s), draws=1_500) for s in (3, 3, 4)
    )
    assert (first.low, first.high) == (again.low, again.high) != (other.low, other.high)
    profile = statistics.bootstrap(
        lambda s: statistics.performance_profile(s, [-1, 0, 1]), noisy, random=rng(), draws=100
    )
    assert profile.value.shape == profile.low.shape == profile.high.shape == (3,)
    assert (profile.low <= profile.high).all()


def test_bootstrap_interval_of_a_mean_has_the_normal_width() -> None:
    sample = rng(2).normal(size=(400, 1))
    estimate = statistics.bootstrap(statistics.mean, sample, random=rng(), draws=20_000)
    half = 1.96 * sample.std() / 20
    assert estimate.high - estimate.value == pytest.approx(half, rel=0.05)
    assert estimate.value - estimate.low == pytest.approx(half, rel=0.05)


def test_missing_and_broken_runs_are_errors() -> None:
    with pytest.raises(InputError, match=r"'b' has 1 runs, others 2"):
        statistics.stack_runs({"a": [1, 2], "b": [1]})
    with pytest.raises(InputError, match="'b' has a score that is not finite"):
        statistics.stack_runs({"a": [1, 2], "b": [1, float("nan")]})
    with pytest.raises(InputError, match="no runs"):
        statistics.stack_runs({})
    np.testing.assert_array_equal(
        statistics.stack_runs({"a": [1, 2], "b": [3, 4]}), [[1, 3], [2, 4]]
    )
    with pytest.raises(InputError, match=r"1\.\.2"):
        statistics.expected_online_performance([1, 2], [3], replacement=False)
    with pytest.raises(InputError, match="3 of 2 policies"):
        statistics.selection_curve([[1.0], [2.0]], random=rng(), policies=3)


def test_selection_among_noiseless_policies_is_expected_online_performance() -> None:
    means = [-40.0, -3.0, 7.0, 50.0, 90.0]
    episodes = [[m] * (k + 1) for k, m in enumerate(means)]
    curve = statistics.selection_curve(episodes, random=rng(), policies=5, pulls=9, trials=5_000)
    want = statistics.expected_online_performance(means, [1, 2, 3, 4, 5], replacement=False)
    np.testing.assert_allclose(curve.value[:5], want, atol=1.2)
    np.testing.assert_array_equal(curve.value[4:], 90)
    assert (curve.low <= curve.value).all()
    assert (curve.value <= curve.high).all()
    assert list(curve.at([1, 9, 200])) == [1, 9]
    assert curve.value[0] < curve.area < 90


def test_unpulled_policies_of_the_released_code_count_as_zero() -> None:
    mixed, counted = (
        statistics.selection_curve(
            [[-10.0], [5.0]],
            random=rng(),
            policies=2,
            pulls=1,
            trials=4_000,
            draws=100,
            count_unpulled_as_zero=f,
        ).value[0]
        for f in (False, True)
    )
    assert mixed == pytest.approx(-2.5, abs=0.6)  # deploys what it tried: half the time the worse
    assert counted == 5  # a loss tried means the other, "zero", is deployed


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.floats(-50, 50), st.floats(0.1, 3))
def test_aggregates_follow_shift_and_scale(
    runs: int, tasks: int, shift: float, scale: float
) -> None:
    scores = rng(runs * 10 + tasks).normal(50, 30, size=(runs, tasks))
    for statistic in (statistics.mean, statistics.median, statistics.iqm):
        moved = statistic(shift + scale * scores)
        assert moved == pytest.approx(shift + scale * float(statistic(scores)))
        assert scores.min() <= statistic(scores) <= scores.max()


def test_rliable_agrees(scores: dict[str, FloatArray]) -> None:
    metrics = pytest.importorskip("rliable.metrics", reason="rliable is not installed")
    for matrix in scores.values():
        assert statistics.iqm(matrix) == pytest.approx(metrics.aggregate_iqm(matrix))
        assert statistics.median(matrix) == pytest.approx(metrics.aggregate_median(matrix))
        assert statistics.optimality_gap(matrix) == pytest.approx(
            metrics.aggregate_optimality_gap(matrix, gamma=100)
        )
    ours, theirs = scores["ReBRAC"], scores["IQL"]
    assert statistics.probability_of_improvement(ours, theirs) == pytest.approx(
        metrics.probability_of_improvement(ours, theirs)
    )
