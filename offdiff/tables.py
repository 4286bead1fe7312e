"""Lines -> benchmark tables, as data frames; the only importer of pandas.

The protocol: mean and standard deviation (ddof 1) over training seeds of each seed's mean over its
final episodes; aggregates over tasks that every method of a comparison has, with stratified
bootstrap intervals (Agarwal et al. 2021); scores under a tuning budget (Tarasov et al. 2023,
Jackson et al. 2025). Frames hold unrounded numbers. The same lines give the same numbers: every
bootstrap begins with the same seed.
"""

import math
import statistics as stdlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from offdiff import reference, statistics
from offdiff.comparisons import Comparison
from offdiff.core.errors import InputError, MissingExtraError
from offdiff.lines import Line

if TYPE_CHECKING:
    import pandas

SEED = 0
"""Of every bootstrap."""
THRESHOLDS = tuple(range(-10, 151, 5))
"""Of performance profiles, in scores."""
PULLS = (1, 8, 32, 100, 200)
"""Episodes after which the selection curve is read."""
T_975 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
)
"""97.5 % quantiles of Student's t for 1 to 20 degrees of freedom; beyond, the last is used."""


def frame(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = ()) -> "pandas.DataFrame":
    """A data frame; `columns` are there even without rows."""
    try:
        import pandas
    except ImportError as error:
        raise MissingExtraError("a table", "tables") from error
    made = pandas.DataFrame(list(rows))
    return made if len(made) else pandas.DataFrame(columns=list(columns))


def scores(lines: Sequence[Line]) -> "pandas.DataFrame":
    """One row per line: what it scored, what it cost, what is missing, what others published."""
    return frame((score_row(line) for line in lines), ["family", "dataset", "method"])


def runs(lines: Sequence[Line]) -> "pandas.DataFrame":
    """One row per run: the raw values that everything else is computed from."""
    columns = ["dataset", "method", "unit", "seed", "value"]
    return frame((row for line in lines for row in _run_rows(line)), columns)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean by Student's t; NaN below two values."""
    if len(values) < 2:
        return math.nan, math.nan
    half = T_975[min(len(values) - 2, len(T_975) - 1)] * stdlib.stdev(values)
    half /= math.sqrt(len(values))
    return stdlib.mean(values) - half, stdlib.mean(values) + half


def score_row(line: Line) -> dict[str, Any]:
    """What `scores` says of one line; NaN where there is nothing to say."""
    values = line.values
    low, high = interval(values) if len(values) != 1 else _episode_interval(line)
    cost = [run.cost for run in line.runs]
    success = [s for run in line.runs for s in (run.eval.get("success") or [])]
    return {
        "family": line.family,
        "dataset": line.dataset,
        "method": line.method.name,
        "changes": line.method.changes,
        "updates": line.method.updates,
        "unit": line.unit,
        "mean": stdlib.mean(values) if values else math.nan,
        "std": stdlib.stdev(values) if len(values) > 1 else math.nan,
        "low": low,
        "high": high,
        "values": " ".join(f"{value:.1f}" for value in values),
        "runs": len(line.runs),
        "failed": len(line.failed),
        "missing": len(line.missing),
        "episodes": _one_or_many(run.eval["n_episodes"] for run in line.runs if run.eval),
        "success": stdlib.mean(success) if success else math.nan,
        "behaviour": math.nan if line.behaviour is None else line.behaviour,
        "calls": _mean(one.get("calls_per_decision") for one in cost),
        "decision_ms": 1e3 * _mean(one.get("decision_seconds") for one in cost),
        "train_seconds": _mean(one["train_seconds"] for one in cost),
        "memory_mb": _mean(one.get("peak_memory_mb") for one in cost),
        "published": "; ".join(map(str, reference.published(line.method.name, line.dataset))),
    }


def _episode_interval(line: Line) -> tuple[float, float]:
    """95 % interval of one run's mean over its episodes (normal approximation)."""
    (outcome,) = (run.eval for run in line.runs if run.eval)
    episodes = outcome["scores" if line.unit == "score" else "returns"]
    if len(episodes) < 2:
        return math.nan, math.nan
    half = 1.96 * stdlib.stdev(episodes) / math.sqrt(len(episodes))
    return stdlib.mean(episodes) - half, stdlib.mean(episodes) + half


def _run_rows(line: Line) -> Iterator[dict[str, Any]]:
    for run, value in zip((run for run in line.runs if run.eval), line.values, strict=True):
        yield {
            "dataset": line.dataset,
            "method": line.method.name,
            "changes": line.method.changes,
            "updates": line.method.updates,
            "unit": line.unit,
            "seed": run.seed,
            "value": value,
            "episodes": run.eval["n_episodes"],
            "config_hash": run.config["config_hash"],
            "run_id": run.run_id,
            "digest": run.digest,
        }


def aggregates(found: Sequence[Comparison], draws: int) -> "pandas.DataFrame":
    """Mean, median, IQM and optimality gap, one row per method.

    Their 95 % intervals are NaN where there is but one run per task.
    """

    def rows() -> Iterator[dict[str, Any]]:
        for comparison in found:
            for method, values in comparison.scores.items():
                row = _heading(comparison, method) | {"runs_per_task": len(values)}
                for name, estimate in statistics.aggregates(
                    values, random=np.random.default_rng(SEED), draws=draws
                ).items():
                    row |= _estimate(name, estimate, len(values))
                yield row

    return frame(rows(), ["family", "tasks", "method"])


def improvements(
    found: Sequence[Comparison], baseline: str | None, draws: int
) -> "pandas.DataFrame":
    """P(a run of the method beats one of the baseline on the same task), with 95 % intervals.

    baseline: beginning of a method's name; None takes the method of highest mean.
    """

    def rows() -> Iterator[dict[str, Any]]:
        for comparison in found:
            base = _baseline(comparison, baseline)
            if base is None:
                continue
            for method, values in comparison.scores.items():
                if method != base:
                    runs = min(len(values), len(comparison.scores[base]))
                    estimate = statistics.bootstrap(
                        statistics.probability_of_improvement,
                        values,
                        comparison.scores[base],
                        random=np.random.default_rng(SEED),
                        draws=min(draws, 2_000),
                    )
                    heading = _heading(comparison, method) | {"baseline": base}
                    yield heading | _estimate("probability", estimate, runs)

    if baseline and all(_baseline(one, baseline) is None for one in found):
        known = sorted({name for one in found for name in one.scores})
        raise InputError(
            f"--baseline {baseline!r} is none of {'; '.join(known) or 'no methods'}; name another"
        )
    return frame(rows(), ["family", "tasks", "method", "baseline", "probability"])


def _baseline(comparison: Comparison, asked: str | None) -> str | None:
    if not comparison.scores:
        return None
    if asked:
        names = [n for n in comparison.scores if n.startswith((f"{asked},", f"{asked} ("))]
        names = names or [name for name in comparison.scores if name.startswith(asked)]
        if len(names) > 1:
            raise InputError(f"--baseline {asked!r} may be {'; '.join(names)}; name one in full")
        return names[0] if names else None
    return max(comparison.scores, key=lambda name: float(comparison.scores[name].mean()))


def profiles(found: Sequence[Comparison]) -> "pandas.DataFrame":
    """Share of runs x tasks above each threshold."""

    def rows() -> Iterator[dict[str, Any]]:
        for comparison in found:
            for method, values in comparison.scores.items():
                shares = statistics.performance_profile(values, THRESHOLDS)
                for threshold, share in zip(THRESHOLDS, shares.tolist(), strict=True):
                    yield _heading(comparison, method) | {"threshold": threshold, "share": share}

    return frame(rows(), ["family", "tasks", "method", "threshold", "share"])


def budgets(lines: Sequence[Line]) -> "pandas.DataFrame":
    """What tuning costs, per dataset and method with at least two policies to choose from.

    eop_k: expected best of k configurations drawn with replacement, their means known. pulls_t:
    score of the policy that a UCB bandit deploys after t episodes, of at most 8 policies.
    """
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        if line.unit == "score" and line.values:
            groups.setdefault((line.dataset, line.method.name), []).append(line)

    def rows() -> Iterator[dict[str, Any]]:
        for (dataset, name), group in sorted(groups.items()):
            episodes = [run.eval["scores"] for line in group for run in line.runs if run.eval]
            if len(episodes) < 2:
                continue
            row: dict[str, Any] = {"dataset": dataset, "method": name, "policies": len(episodes)}
            row["configurations"] = len(group)
            means = [stdlib.mean(line.values) for line in group]
            ks = range(1, len(means) + 1)
            best = statistics.expected_online_performance(means, ks, replacement=True)
            row |= {f"eop_{k}": value for k, value in zip(ks, best.tolist(), strict=True)}
            curve = statistics.selection_curve(
                episodes,
                random=np.random.default_rng(SEED),
                policies=min(8, len(episodes)),
                pulls=max(PULLS),
            )
            row |= {f"pulls_{t}": value for t, value in curve.at(PULLS).items()}
            yield row | {"area": curve.area}

    return frame(rows(), ["dataset", "method", "policies"])


def _heading(comparison: Comparison, method: str) -> dict[str, Any]:
    tasks = " ".join(comparison.tasks)
    return {"family": comparison.family, "tasks": tasks, "method": method}


def _estimate(name: str, estimate: statistics.Estimate, runs: int) -> dict[str, float]:
    # From one run per task the bootstrap draws that run: an interval of no width, and no truth.
    low, high = (estimate.low, estimate.high) if runs > 1 else (math.nan, math.nan)
    return {name: float(estimate.value), f"{name}_low": float(low), f"{name}_high": float(high)}


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return stdlib.mean(known) if known else math.nan


def _one_or_many(values: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(set(values))))
