"""The tables, from made-up records with known means and intervals."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
LOW, HIGH = -20.272305, 3234.3  # Hopper's returns of scores 0 and 100


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("scores", monkeypatch)


@pytest.fixture
def table(scores: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("table", monkeypatch)


@pytest.fixture
def cell(scores: ModuleType) -> Any:
    return scores.Cell(
        learner="cql",
        dataset="hopper-x",
        updates=1000,
        log_every=10,
        eval_every=0,
        hyperparameters={"penalty": 5.0, "hidden": (8, 8)},
    )


def record(seed: int, score: float, **changes: Any) -> dict[str, Any]:
    """Of the cell above, unless changed."""
    algo = {"name": "cql", "n_gradient_steps": 1000} | changes.pop("algo", {})
    return {
        "code": {"git_commit": "0123456789abcdef", "dirty": False},
        "config": {"diff_from_default": {"hidden": [8, 8], "penalty": 5.0}},
        "data": {
            "dataset_id": "hopper-x",
            "file_sha256": "f" * 64,
            "behaviour": {"return_mean": 500.0, "score_mean": 16.04},
        },
        "algo": algo,
        "seeds": {"train": seed},
        "eval": {
            "env_id": "Hopper-v4",
            "simulator_version": "MuJoCo 3.3",
            "constants_source": "d4rl_infos",
            "returns": [0.0] * 50,
            "scores": [score] * 50,
            "score_mean": score,
        },
    } | changes


def peer(seed: int, score: float) -> dict[str, Any]:
    returns = [LOW + (score + d) / 100 * (HIGH - LOW) for d in (-10.0, 10.0)]
    return {"data": "hopper-x.hdf5", "algo": "cql", "updates": 1000, "seed": seed,
            "returns": returns}  # fmt: skip


def test_mean_spread_interval_and_missing_runs(table: ModuleType, cell: Any) -> None:
    (line,) = table.learner_lines([record(2, 50.0), record(0, 40.0)], [cell])
    assert (line.mean, line.missing) == (45.0, (1,))
    assert line.std == pytest.approx(50**0.5)
    # t = 12.7062 at one degree of freedom: half width 12.7062 * sqrt(50) / sqrt(2) = 63.531
    assert line.interval == pytest.approx((-18.531, 108.531))


def test_records_outside_the_grid_are_lines_of_their_own(table: ModuleType, cell: Any) -> None:
    longer = record(0, 1.0, algo={"n_gradient_steps": 2000})
    other = record(0, 2.0, config={"diff_from_default": {}})
    lines = table.learner_lines([longer, other], [cell])
    assert [(line.key[2:], len(line.seed_scores), line.missing) for line in lines] == [
        ((1000, "hidden=[8,8] penalty=5.0"), 0, (0, 1, 2)),
        ((1000, ""), 1, ()),
        ((2000, "hidden=[8,8] penalty=5.0"), 1, ()),
    ]


def test_two_records_of_one_seed_are_refused(table: ModuleType, cell: Any) -> None:
    with pytest.raises(SystemExit, match="two records for one seed of hopper-x cql 1000"):
        table.learner_lines([record(0, 1.0), record(0, 2.0)], [cell])


@pytest.mark.parametrize(
    ("peer_scores", "expected"),
    [((40, 41, 42), "overlap"), ((10, 11, 12), "ours higher"), ((80, 81, 82), "ours lower"),
     ((40, 41), "incomplete")],
)  # fmt: skip
def test_parity_verdicts(
    table: ModuleType, cell: Any, peer_scores: tuple[float, ...], expected: str
) -> None:
    ours = [record(seed, 40.0 + seed) for seed in range(3)]
    peers = [peer(seed, score) for seed, score in enumerate(peer_scores)]
    ((mine, theirs),) = table.parity_lines(ours, peers, [cell])
    assert list(theirs.seed_scores.values()) == pytest.approx(peer_scores)
    assert table.verdict(mine, theirs) == expected


def test_the_pages_are_exactly_these_and_the_same_again(
    table: ModuleType, cell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "SCORES", ())
    monkeypatch.setattr(table, "PARITY", (cell,))
    monkeypatch.setattr(sys, "argv", ["table.py", "--results", str(tmp_path)])
    for seed in (2, 0, 1):
        path = tmp_path / f"runs/any/{seed}/run.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(record(seed, 40.0 + 2 * seed)))
    no_simulator = record(9, 0.0) | {"eval": {}}
    (tmp_path / "runs/run.json").write_text(json.dumps(no_simulator))
    (tmp_path / "peer").mkdir()
    for seed in range(2):
        (tmp_path / f"peer/{seed}.json").write_text(json.dumps(peer(seed, 30.0 + seed)))

    table.main()
    caption = (
        "Score of the last checkpoint, mean action: mean ± standard deviation (ddof 1) over "
        "training seeds of each seed's mean over its final episodes; 95 % intervals by Student's "
        "t. Simulator: Hopper-v4 (MuJoCo 3.3); data (SHA-256): hopper-x ffffffffffff; score "
        "constants: d4rl_infos; offdiff: 01234567."
    )
    # std 2, t = 4.3027 at two degrees of freedom: half width 4.3027 * 2 / sqrt(3) = 4.968
    name = "hopper-x | cql (hidden=[8,8] penalty=5.0) | 1,000"
    ours = "42.0 ± 2.0 | [37.0, 47.0] | 16.0 | 40.0, 42.0, 44.0 | 50 | 3"
    assert (tmp_path / "tables/learners.md").read_text() == (
        f"# Scores of the learners\n\n{caption}\n\n"
        "| dataset | learner | updates | score | 95 % | behaviour | seeds' scores | episodes "
        "| runs |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        f"| {name} | {ours} |\n"
    )
    theirs = "30.5 ± 0.7 | [24.1, 36.9] | - | 30.0, 31.0 | 2 | 2, 1 missing"
    assert (tmp_path / "tables/parity.md").read_text().endswith(
        f"| {name} | offdiff | {ours} | incomplete |\n"
        f"| {name} | d3rlpy 2.8.1 | {theirs} |  |\n"
    )  # fmt: skip
    assert (tmp_path / "tables/learners.csv").read_text() == (
        "dataset,learner,updates,hyperparameters,library,mean,std,low,high,behaviour,seeds,scores,"
        'missing_seeds,episodes\nhopper-x,cql,1000,"hidden=[8,8] penalty=5.0",offdiff,42.0,2.0,'
        "37.03166999351559,46.96833000648441,16.04,0 1 2,40.0 42.0 44.0,,50\n"
    )

    before = {path: path.read_bytes() for path in (tmp_path / "tables").iterdir()}
    table.main()
    assert {path: path.read_bytes() for path in (tmp_path / "tables").iterdir()} == before
    assert len(before) == 6
