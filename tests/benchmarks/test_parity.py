"""The table of parity, from made-up scores with known means and intervals."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from offdiff.lines import Line, Method
from offdiff.records import RunRecord

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "parity.py"
LOW, HIGH = -20.272305, 3234.3  # Hopper's returns of scores 0 and 100


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "parity", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def line(scores: tuple[float, ...], missing: tuple[int, ...] = ()) -> Line:
    runs = tuple(
        RunRecord(
            run_id=str(seed), status="finished", code={}, config={"diff_from_default": {}},
            data={"dataset_id": "hopper-x"}, seeds={"train": seed},
            algo={"name": "cql", "n_gradient_steps": 1000}, curve=[], system={}, cost={},
            eval={"env_id": "Hopper-v4", "mean": 0.0, "score_mean": score},
        )
        for seed, score in enumerate(scores)
    )  # fmt: skip
    return Line("hopper-x", Method("cql", "", 1000), runs, missing=missing)


def peer(seed: int, score: float, **changes: Any) -> dict[str, Any]:
    returns = [LOW + (score + d) / 100 * (HIGH - LOW) for d in (-10.0, 10.0)]
    return {"data": "hopper-x.hdf5", "algo": "cql", "updates": 1000, "seed": seed,
            "returns": returns} | changes  # fmt: skip


@pytest.mark.parametrize(
    ("peers", "expected"),
    [((40, 41, 42), "overlap"), ((10, 11, 12), "ours higher"), ((80, 81, 82), "ours lower"),
     ((40, 41), "incomplete")],
)  # fmt: skip
def test_verdicts(parity: ModuleType, peers: tuple[float, ...], expected: str) -> None:
    records = [peer(seed, score) for seed, score in enumerate(peers)]
    records += [peer(0, 0, updates=999), peer(0, 0, algo="iql"), peer(0, 0, data="other.hdf5")]
    (pair,) = parity.pairs_of([line((40.0, 41.0, 42.0))], records)
    assert list(pair.peer.values()) == pytest.approx(peers)
    assert pair.verdict == expected


def test_a_missing_run_of_ours_is_incomplete(parity: ModuleType) -> None:
    records = [peer(0, 40.0), peer(1, 41.0)]
    (pair,) = parity.pairs_of([line((40.0, 41.0), missing=(2,))], records)
    assert pair.verdict == "incomplete"


def test_the_page(parity: ModuleType) -> None:
    records = [peer(0, 30.0), peer(1, 31.0)]
    rows = parity.page(parity.pairs_of([line((40.0, 42.0, 44.0))], records)).splitlines()
    # std 2, t = 4.3027 at two degrees of freedom: half width 4.3027 * 2 / sqrt(3) = 4.968
    name = "| hopper-x | cql, 1,000 updates"
    assert rows[-2:] == [
        f"{name} | offdiff | 42.0 ± 2.0 | [37.0, 47.0] | 40.0, 42.0, 44.0 | incomplete |",
        f"{name} | d3rlpy 2.8.1 | 30.5 ± 0.7 | [24.1, 36.9] | 30.0, 31.0 |  |",
    ]


def test_only_what_has_no_record_is_run(parity: ModuleType, tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nexit 1\n')
    fake.chmod(0o755)
    pairs = parity.pairs_of([line((40.0,))], [peer(1, 30.0)])
    assert parity.run_peer(pairs, {0, 1, 2}, str(fake), tmp_path, tmp_path) == 2
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split("--seed ")[1].split()[0] for call in calls] == ["0", "2"]
