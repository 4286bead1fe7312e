"""What many runs on many tasks say together: aggregates, intervals, profiles, tuning curves.

Dimension letters: R runs, M tasks, D bootstrap draws, K policies or configurations, T pulls.
Scores are arrays (..., R, M); aggregates reduce the last two axes, so that they take bootstrap
draws (D, R, M) at once. Agarwal et al. 2021 (aggregates, intervals), Tarasov et al. 2023 (expected
online performance), Jackson et al. 2025 (selection curve).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from offdiff.core.errors import InputError

FloatArray = NDArray[np.float64]
Statistic = Callable[..., FloatArray]
"""Scores of one or more methods, each (..., R, M) -> (...) or (..., more)."""

CHUNK = 10_000_000
"""Numbers of a bootstrap sample held in memory at once."""


@dataclass(frozen=True)
class Estimate:
    """A statistic and its percentile bootstrap interval; three arrays of the statistic's shape."""

    value: FloatArray
    low: FloatArray
    high: FloatArray


def stack_runs(runs: Mapping[str, Sequence[float]]) -> FloatArray:
    """Task -> scores of its runs, as (R, M) in the mapping's order.

    Raises InputError where a task misses runs or a score is not finite: neither counts as zero.
    """
    count = max((len(scores) for scores in runs.values()), default=0)
    for task, scores in runs.items():
        if len(scores) != count:
            raise InputError(
                f"task {task!r} has {len(scores)} runs, others {count}; finish or drop the task"
            )
        if not np.isfinite(scores).all():
            raise InputError(f"task {task!r} has a score that is not finite: {list(scores)}")
    if count == 0:
        raise InputError("there are no runs to aggregate; give at least one task with one run")
    return np.array(list(runs.values()), dtype=np.float64).T


def mean(scores: FloatArray) -> FloatArray:
    """Mean over all runs and tasks."""
    return np.asarray(scores.mean(axis=(-2, -1)))


def median(scores: FloatArray) -> FloatArray:
    """Median over tasks of the mean over runs."""
    return np.asarray(np.median(scores.mean(axis=-2), axis=-1))


def iqm(scores: FloatArray) -> FloatArray:
    """Interquartile mean: the lowest and highest floor(R M / 4) values are dropped."""
    pooled = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    n = pooled.shape[-1]
    return np.asarray(pooled[..., n // 4 : n - n // 4].mean(axis=-1))


def optimality_gap(scores: FloatArray, target: float = 100.0) -> FloatArray:
    """Mean shortfall from `target`; what exceeds the target does not make up for it."""
    return np.asarray(target - np.minimum(scores, target).mean(axis=(-2, -1)))


def probability_of_improvement(ours: FloatArray, theirs: FloatArray) -> FloatArray:
    """Chance that a run of ours beats one of theirs on the same task, mean over tasks; ties 0.5.

    ours: (..., R, M). theirs: (..., R', M).
    """
    left, right = ours[..., :, None, :], theirs[..., None, :, :]
    wins = (left > right) + 0.5 * (left == right)
    return np.asarray(wins.mean(axis=(-3, -2, -1)))


def performance_profile(scores: FloatArray, thresholds: ArrayLike) -> FloatArray:
    """Share of runs x tasks whose score exceeds each threshold, (..., number of thresholds)."""
    pooled = scores.reshape(*scores.shape[:-2], 1, -1)
    above = pooled > np.asarray(thresholds)[:, None]
    return np.asarray(above.mean(axis=-1))


AGGREGATES: Mapping[str, Statistic] = {
    "mean": mean,
    "median": median,
    "iqm": iqm,
    "optimality_gap": optimality_gap,
}


def aggregates(
    scores: FloatArray, *, random: np.random.Generator, draws: int = 50_000
) -> dict[str, Estimate]:
    """Every aggregate of scores (R, M) with its 95 % interval."""
    return {
        name: bootstrap(statistic, scores, random=random, draws=draws)
        for name, statistic in AGGREGATES.items()
    }


def bootstrap(
    statistic: Statistic,
    *scores: FloatArray,
    random: np.random.Generator,
    draws: int = 50_000,
    level: float = 0.95,
) -> Estimate:
    """The statistic of the scores and its stratified bootstrap interval.

    Runs are resampled with replacement within each task and for each method on its own; the tasks
    are fixed. scores: one (R, M) for every argument of the statistic. Percentile interval.
    """
    samples = []
    chunk = max(1, CHUNK // sum(method.size for method in scores))
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        samples.append(statistic(*(_resample(method, size, random) for method in scores)))
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(samples), [tail, 1 - tail], axis=0)
    return Estimate(np.asarray(statistic(*scores)), np.asarray(low), np.asarray(high))


def _resample(scores: FloatArray, draws: int, random: np.random.Generator) -> FloatArray:
    """(R, M) -> (D, R, M)"""
    rows = random.integers(len(scores), size=(draws, *scores.shape))
    return np.take_along_axis(scores[None], rows, axis=1)


def expected_online_performance(
    values: ArrayLike, budgets: Sequence[int], *, replacement: bool
) -> FloatArray:
    """Expected best of k configurations drawn at random, for every k of `budgets`.

    values: (K,) mean score of every configuration tried. replacement: may a draw repeat; without
    it the budgets cannot exceed K. Say which variant a table uses: ReBRAC's is the one with.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    count = len(ordered)
    top = math.inf if replacement else count
    if count == 0 or not all(1 <= k <= top for k in budgets):
        raise InputError(f"budgets must lie in 1..{top} for {count} values, got {list(budgets)}")
    rank = np.arange(1, count + 1)
    if replacement:
        chance = [(rank / count) ** k - ((rank - 1) / count) ** k for k in budgets]
    else:
        chance = [
            np.array([math.comb(i - 1, k - 1) / math.comb(count, k) for i in rank.tolist()])
            for k in budgets
        ]
    return np.asarray(np.array(chance) @ ordered)


@dataclass(frozen=True)
class SelectionCurve(Estimate):
    """Score of the policy that a bandit would deploy after 1, 2, ... T episodes; arrays (T,)."""

    def at(self, pulls: Sequence[int]) -> dict[int, float]:
        """Scores after the given numbers of episodes; those beyond the curve are left out."""
        return {n: float(self.value[n - 1]) for n in pulls if n <= len(self.value)}

    @property
    def area(self) -> float:
        """Mean score over the logarithm of the number of episodes."""
        log_pulls = np.log(np.arange(1, len(self.value) + 1))
        if len(log_pulls) == 1:
            return float(self.value[0])
        return float(np.trapezoid(self.value, log_pulls) / log_pulls[-1])


def selection_curve(
    episode_scores: Sequence[ArrayLike],
    *,
    random: np.random.Generator,
    policies: int = 8,
    pulls: int = 200,
    trials: int = 1_000,
    alpha: float = 2.0,
    count_unpulled_as_zero: bool = False,
    draws: int = 2_000,
) -> SelectionCurve:
    """What choosing among trained policies costs: a UCB bandit over their stored episodes.

    Every trial takes some of the policies, without replacement; a pull draws one stored score of
    the policy of highest mean + sqrt(alpha ln(t) / n), unpulled ones first, ties at random. The
    curve is the true mean of the policy whose drawn scores are best so far. 95 % intervals are
    bootstrapped over trials.
    episode_scores: per trained policy (configuration and seed), its scores of any number.
    count_unpulled_as_zero: as in the released code, a policy never tried counts as scoring 0.
    """
    arms = [np.asarray(scores, dtype=np.float64) for scores in episode_scores]
    if not 1 <= policies <= len(arms) or any(len(scores) == 0 for scores in arms):
        raise InputError(
            f"cannot choose among {policies} of {len(arms)} policies; train more, or set "
            "`policies` lower, and give every policy at least one episode"
        )
    lengths = np.array([len(scores) for scores in arms])
    offsets = np.cumsum(lengths) - lengths
    flat, truth = np.concatenate(arms), np.array([scores.mean() for scores in arms])

    chosen = random.random((trials, len(arms))).argsort(axis=1)[:, :policies]
    trial = np.arange(trials)
    count, total = np.zeros((trials, policies)), np.zeros((trials, policies))
    curve = np.empty((trials, pulls))
    unpulled_mean = 0.0 if count_unpulled_as_zero else -np.inf
    for t in range(1, pulls + 1):
        tried = np.maximum(count, 1)
        bound = np.where(count > 0, total / tried + np.sqrt(alpha * math.log(t) / tried), np.inf)
        arm = _argmax_ties_at_random(bound, random)
        policy = chosen[trial, arm]
        row = offsets[policy] + random.integers(lengths[policy])
        count[trial, arm] += 1
        total[trial, arm] += flat[row]
        seen = np.where(count > 0, total / np.maximum(count, 1), unpulled_mean)
        curve[:, t - 1] = truth[chosen[trial, seen.argmax(axis=1)]]
    times_drawn = random.multinomial(trials, np.full(trials, 1 / trials), size=draws)
    low, high = np.quantile(times_drawn @ curve / trials, [0.025, 0.975], axis=0)
    return SelectionCurve(curve.mean(axis=0), low, high)


def _argmax_ties_at_random(values: FloatArray, random: np.random.Generator) -> NDArray[np.int64]:
    """(N, K) -> (N,)"""
    is_best = values == values.max(axis=1, keepdims=True)
    return np.asarray((is_best * (1 + random.random(values.shape))).argmax(axis=1))
