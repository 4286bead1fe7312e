"""Records as lines of a table: one per dataset, method, hyperparameters and number of updates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offdiff.core.errors import InputError
from offdiff.data.catalogue import family_of, family_of_name
from offdiff.records import Failure, RunRecord


@dataclass(frozen=True, order=True)
class Method:
    """What was run, but for the data and the seed."""

    name: str
    """Learner or planner, and its augmenter: "iql+pgd"."""
    changes: str
    """Hyperparameters that are not the defaults, as "expectile=0.9 hidden=[64]"; may be empty."""
    updates: int

    @property
    def label(self) -> str:
        """For people: "iql (expectile=0.9), 100,000 updates"."""
        changed = f" ({self.changes})" if self.changes else ""
        return f"{self.name}{changed}, {self.updates:,} updates"


@dataclass(frozen=True)
class Line:
    """The runs of one method on one dataset that differ in their training seed alone."""

    dataset: str
    method: Method
    runs: tuple[RunRecord, ...]
    """Sorted by seed."""
    failed: tuple[int, ...] = ()
    """Seeds of runs that failed."""
    missing: tuple[int, ...] = ()
    """Seeds that were asked for and have neither record nor note of failure."""

    @property
    def family(self) -> str:
        """locomotion, maze2d, antmaze, adroit, kitchen or other."""
        env_id = next((run.eval["env_id"] for run in self.runs if run.eval), None)
        return family_of(env_id) if env_id else family_of_name(self.dataset)

    @property
    def unit(self) -> str:
        """Of `values`: "score" (D4RL's, 0 random, 100 expert), "return" without its constants."""
        played = [run.eval for run in self.runs if run.eval]
        return "score" if all("score_mean" in outcome for outcome in played) else "return"

    @property
    def values(self) -> list[float]:
        """Per seed, the mean over its final episodes; runs without a simulator have none."""
        name = "score_mean" if self.unit == "score" else "mean"
        return [float(run.eval[name]) for run in self.runs if run.eval]

    @property
    def behaviour(self) -> float | None:
        """What the data themselves score, in `unit`."""
        name = "score_mean" if self.unit == "score" else "return_mean"
        found = {run.data.get("behaviour", {}).get(name) for run in self.runs}
        return found.pop() if len(found) == 1 else None


def lines_of(
    records: Sequence[RunRecord],
    failures: Sequence[Failure] = (),
    wanted: Mapping[tuple[str, Method], Sequence[int]] | None = None,
) -> list[Line]:
    """The lines of some records, sorted by dataset and method.

    wanted: seeds that a grid asks for, by dataset and method; those that have neither record nor
    failure are missing. Raises InputError if one seed of a line has two records, or its
    runs are not of the same data, evaluation and simulator.
    """
    groups: dict[tuple[str, Method], list[RunRecord]] = {}
    for record in records:
        groups.setdefault((record.dataset, method_of(record)), []).append(record)
    lost: dict[tuple[str, Method], set[int]] = {}
    for failure in failures:
        method = Method(failure.method, text_of(failure.changes), failure.updates)
        lost.setdefault((failure.dataset, method), set()).update(failure.seeds)
    asked = wanted or {}
    return [
        _line(key, groups.get(key, []), lost.get(key, set()), asked.get(key, ()))
        for key in sorted({*groups, *lost, *asked})
    ]


def method_of(record: RunRecord) -> Method:
    """What a record is of."""
    return Method(record.method, text_of(record.changes), record.updates)


def text_of(changes: Mapping[str, Any]) -> str:
    """Hyperparameters in one order: the same for a configuration and, after JSON, its record."""
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in changes.items()}
    return " ".join(f"{name}={values[name]}".replace(" ", "") for name in sorted(values))


def _line(
    key: tuple[str, Method], group: Sequence[RunRecord], lost: set[int], asked: Sequence[int]
) -> Line:
    by_seed = {record.seed: record for record in group}
    if len(by_seed) < len(group):
        ids = ", ".join(sorted(record.run_id for record in group))
        raise InputError(
            f"a seed of {key[1].label} on {key[0]} has two records, among {ids}; remove one, or "
            "tabulate their folders apart"
        )
    kinds = {(run.config.get("config_hash"), run.eval.get("simulator_version")) for run in group}
    if len(kinds) > 1:
        told = ", ".join(sorted(" ".join(map(str, kind)) for kind in kinds))
        raise InputError(
            f"runs of {key[1].label} on {key[0]} differ in data, evaluation or simulator ({told}): "
            "they have no common mean; tabulate their folders apart"
        )
    failed = lost - by_seed.keys()
    return Line(
        dataset=key[0],
        method=key[1],
        runs=tuple(by_seed[seed] for seed in sorted(by_seed)),
        failed=tuple(sorted(failed)),
        missing=tuple(seed for seed in asked if seed not in by_seed and seed not in failed),
    )
