"""Records are sealed, old ones are read, edited ones are found out, failures are counted."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from offdiff.core.errors import InputError
from offdiff.records import (
    UNSEALED,
    Failure,
    RunRecord,
    read_record,
    read_records,
    write_record,
)

COMMITTED = Path(__file__).parents[1] / "results" / "runs"


def record(run_id: str = "a/iql/0-1234abcd/seed-0", **changes: Any) -> RunRecord:
    """A record of nothing in particular."""
    values: dict[str, Any] = {
        "status": "finished",
        "code": {},
        "config": {"diff_from_default": {"expectile": 0.9}},
        "data": {"dataset_id": "a"},
        "seeds": {"train": 3},
        "algo": {"name": "iql", "n_gradient_steps": 10},
        "eval": {"returns": [1.0, 2.5, 1e-17, 0.1 + 0.2]},
        "curve": [],
        "system": {},
        "cost": {},
    }
    return RunRecord(run_id=run_id, **(values | changes))


def test_a_record_comes_back_as_it_was_sealed(tmp_path: Path) -> None:
    written = write_record(tmp_path, record())
    assert read_record(tmp_path / "run.json") == written
    assert len(written.digest) == 64
    assert written == written.sealed()  # sealing again changes nothing


def test_names_of_a_record() -> None:
    one = record(augment={"name": "pgd", "diff_from_default": {"share": 0.5}})
    assert (one.method, one.dataset, one.seed, one.updates) == ("iql+pgd", "a", 3, 10)
    assert one.changes == {"expectile": 0.9, "augment.share": 0.5}


@pytest.mark.parametrize(
    "change", [("eval", {"returns": [9.0]}), ("run_id", "b"), ("parents", ["x"])]
)
def test_an_edited_record_is_found_out(tmp_path: Path, change: tuple[str, Any]) -> None:
    write_record(tmp_path, record())
    path = tmp_path / "run.json"
    values = json.loads(path.read_text())
    values[change[0]] = change[1]
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="was edited after it was written"):
        read_record(path)
    found = read_records([tmp_path])
    assert not found.finished
    assert "was edited" in found.refused[0]


def test_formatting_is_no_edit(tmp_path: Path) -> None:
    written = write_record(tmp_path, record())
    path = tmp_path / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    assert read_record(path) == written


def test_records_of_schema_1_are_read_without_a_digest(tmp_path: Path) -> None:
    values = dataclasses.asdict(record()) | {"schema_version": 1}
    del values["digest"]
    (tmp_path / "run.json").write_text(json.dumps(values))
    assert read_record(tmp_path / "run.json").digest == UNSEALED


def test_every_file_counts_once_and_none_is_left_out(tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_record(tmp_path / name / "seed-0", record(f"{name}/seed-0"))
    write_record(tmp_path / "copy", record("x/seed-0"))  # the same record is no conflict
    write_record(tmp_path / "other", record("x/seed-0", parents=["another"]))
    failure = Failure(dataset="a", method="bc", changes={}, updates=9, seeds=[0], attempts=2,
                      command="run", exit_code=-9, reason="killed", log="log.txt")  # fmt: skip
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "failure.json").write_text(json.dumps(dataclasses.asdict(failure)))
    found = read_records([tmp_path, tmp_path / "x"])
    assert [one.run_id for one in found.finished] == ["x/seed-0", "y/seed-0"]
    assert found.failed == (failure,)
    assert len(found.refused) == 1
    assert "another record of x/seed-0" in found.refused[0]
    with pytest.raises(InputError, match="does not exist"):
        read_records([tmp_path / "absent"])


def test_the_committed_records_are_all_read() -> None:
    found = read_records([COMMITTED])
    assert found.finished
    assert not found.refused
