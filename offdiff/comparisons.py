"""Which methods can be compared, and on which tasks: those that they have in common."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from offdiff import statistics
from offdiff.lines import Line
from offdiff.statistics import FloatArray


@dataclass(frozen=True)
class Comparison:
    """Methods that have runs on the same tasks."""

    family: str
    """"all" where the tasks are of more than one."""
    tasks: tuple[str, ...]
    scores: Mapping[str, FloatArray]
    """Method -> (R, M) scores, tasks in order."""
    left_out: tuple[str, ...]
    """Methods that have these tasks, but not the same number of runs of each."""


def comparisons(lines: Sequence[Line]) -> list[Comparison]:
    """Per family, and over all of them, every set of tasks that two methods have in common.

    One without scores has fewer than two methods with equal numbers of runs. Hyperparameters that
    differ between datasets, as published ones do, are one method where each dataset has one line.
    Lines without D4RL scores take no part.
    """
    scored = [line for line in lines if line.unit == "score" and line.values]
    families = sorted({line.family for line in scored})
    found: list[Comparison] = []
    for family in [*families, *(["all"] if len(families) > 1 else [])]:
        chosen = [line for line in scored if family in (line.family, "all")]
        values = _by_method(chosen)
        shared = {
            tuple(sorted(one.keys() & other.keys()))
            for one, other in itertools.combinations(values.values(), 2)
        }
        for tasks in sorted(shared - {()}):
            if family == "all" and len({x.family for x in chosen if x.dataset in tasks}) < 2:
                continue
            able = {name: runs for name, runs in values.items() if set(tasks) <= set(runs)}
            even = {
                name: statistics.stack_runs({task: runs[task] for task in tasks})
                for name, runs in able.items()
                if len({len(runs[task]) for task in tasks}) == 1
            }
            left = tuple(name for name in able if name not in even)
            found.append(Comparison(family, tasks, even if len(even) > 1 else {}, left))
    return found


def _by_method(lines: Sequence[Line]) -> dict[str, dict[str, list[float]]]:
    """Method -> dataset -> values."""
    plain = [(line.dataset, line.method.name, line.method.updates) for line in lines]
    several = {key[1:] for key in plain if plain.count(key) > 1}
    changes: dict[tuple[str, int], set[str]] = {}
    for line in lines:
        key = (line.method.name, line.method.updates)
        changes.setdefault(key, set()).add(line.method.changes)
    values: dict[str, dict[str, list[float]]] = {}
    for line in lines:
        method = line.method
        key = (method.name, method.updates)
        own = key not in several and len(changes[key]) > 1
        joint = f"{method.name} (settings per dataset), {method.updates:,} updates"
        name = joint if own else method.label
        values.setdefault(name, {})[line.dataset] = line.values
    return values
