"""How records become the lines of a table."""

from typing import Any

import pytest

from offdiff.core.errors import InputError
from offdiff.lines import Method, lines_of
from offdiff.records import Failure, RunRecord


def record(seed: int = 0, dataset: str = "d", **changes: Any) -> RunRecord:
    values: dict[str, Any] = {
        "status": "finished",
        "code": {},
        "config": {"diff_from_default": {}},
        "data": {"dataset_id": dataset, "behaviour": {"return_mean": 5.0, "score_mean": 1.5}},
        "seeds": {"train": seed},
        "algo": {"name": "bc", "n_gradient_steps": 10},
        "eval": {"env_id": "Hopper-v4", "mean": 7.0 + seed, "score_mean": 2.0 + seed},
        "curve": [],
        "system": {},
        "cost": {},
    }
    return RunRecord(run_id=f"{dataset}/bc/{seed}", **(values | changes))


def failure(seeds: list[int]) -> Failure:
    return Failure(dataset="d", method="bc", changes={}, updates=10, seeds=seeds, attempts=1,
                   command="", exit_code=1, reason="", log="")  # fmt: skip


BC = Method("bc", "", 10)


def test_seeds_are_found_failed_or_missing_and_nothing_else() -> None:
    records = [record(2), record(0)]
    (line,) = lines_of(records, [failure([0, 1])], {("d", BC): (0, 1, 2, 3)})
    assert [run.seed for run in line.runs] == [0, 2]
    assert line.values == [2.0, 4.0]
    assert line.failed == (1,)  # seed 0 was run again and has a record
    assert line.missing == (3,)
    assert (line.unit, line.behaviour, line.family) == ("score", 1.5, "locomotion")


def test_a_line_that_was_only_asked_for_is_there() -> None:
    (line,) = lines_of([], (), {("hopper-medium-v2", BC): (0, 1)})
    assert line.missing == (0, 1)
    assert line.values == []
    assert line.family == "locomotion"


def test_without_constants_the_unit_is_the_return() -> None:
    maze = {"env_id": "PointMaze_UMaze-v3", "mean": 220.0}
    (line,) = lines_of([record(eval=maze)])
    assert (line.unit, line.values, line.behaviour) == ("return", [220.0], 5.0)
    assert line.family == "maze2d"


def test_hyperparameters_and_updates_tell_lines_apart() -> None:
    wide = record(1, config={"diff_from_default": {"hidden": [64, 64], "dropout": 0.1}})
    longer = record(2, algo={"name": "bc", "n_gradient_steps": 20})
    labels = [line.method.label for line in lines_of([record(), wide, longer])]
    assert labels == ["bc, 10 updates", "bc, 20 updates",
                      "bc (dropout=0.1 hidden=[64,64]), 10 updates"]  # fmt: skip


def test_two_records_of_one_seed_are_refused() -> None:
    with pytest.raises(InputError, match="has two records"):
        lines_of([record(), record(dataset="d", cost={"train_seconds": 1})])
