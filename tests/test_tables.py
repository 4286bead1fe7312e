"""Tables from made-up records with numbers known by hand, and those of this repository."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offdiff import tables
from offdiff.cli import main
from offdiff.comparisons import comparisons
from offdiff.core.errors import InputError
from offdiff.lines import lines_of
from offdiff.records import Failure, RunRecord, write_record
from offdiff.reference import NAMES, published
from offdiff.table_pages import Page, caption, score_text, write_tables

pytest.importorskip("pandas", exc_type=ImportError)

ROOT = Path(__file__).parents[1]


def record(
    dataset: str, method: str, seed: int, scores: list[float], updates: int = 10, **changes: Any
) -> RunRecord:
    mean = sum(scores) / len(scores)
    values: dict[str, Any] = {
        "status": "finished",
        "code": {"git_commit": "0123456789", "dirty": False, "command": "offdiff run"},
        "config": {"diff_from_default": {}, "config_hash": "abcd1234"},
        "data": {"dataset_id": dataset, "file_sha256": "f" * 64,
                 "behaviour": {"return_mean": 1.0, "score_mean": 20.0}},
        "seeds": {"train": seed},
        "algo": {"name": method, "n_gradient_steps": updates},
        "eval": {"env_id": "Hopper-v4" if "hopper" in dataset else "PointMaze_UMaze-v3",
                 "simulator_version": "s", "n_episodes": len(scores), "returns": scores,
                 "mean": mean, "success": None, "scores": scores, "score_mean": mean},
        "curve": [],
        "system": {"cpu": "c", "device": "cpu"},
        "cost": {"train_seconds": 2.0, "peak_memory_mb": 512.4},
    }  # fmt: skip
    return RunRecord(run_id=f"{dataset}/{method}/{updates}/{seed}", **(values | changes))


def grid_of_scores() -> list[RunRecord]:
    """Two tasks, two methods, two seeds; IQL is 10 above BC but for one run."""
    return [
        *(record("hopper-a", "bc", seed, [score, score]) for seed, score in ((0, 10.0), (1, 30.0))),
        *(record("hopper-b", "bc", seed, [score, score]) for seed, score in ((0, 50.0), (1, 70.0))),
        *(record("hopper-a", "iql", seed, [s, s]) for seed, s in ((0, 20.0), (1, 40.0))),
        *(record("hopper-b", "iql", seed, [s, s]) for seed, s in ((0, 60.0), (1, 120.0))),
    ]


def test_mean_spread_interval_and_cost() -> None:
    frame = tables.scores(lines_of(grid_of_scores()))
    row = frame[(frame.dataset == "hopper-a") & (frame.method == "bc")].iloc[0]
    assert (row["mean"], row.runs, row.missing, row.behaviour) == (20.0, 2, 0, 20.0)
    assert row["std"] == pytest.approx(200**0.5)
    # t = 12.7062 at one degree of freedom: 12.7062 * sqrt(200) / sqrt(2) = 127.062
    assert (row.low, row.high) == pytest.approx((20 - 127.062, 20 + 127.062))
    assert (row.family, row.unit, row.train_seconds) == ("locomotion", "score", 2.0)
    head, *rows = score_text(frame)
    assert rows[0][head.index("memory")] == "512 MB"


def test_the_interval_of_a_single_run_is_over_its_episodes() -> None:
    (row,) = tables.scores(lines_of([record("hopper-a", "bc", 0, [10.0, 20.0, 30.0])])).iloc
    half = 1.96 * 10 / 3**0.5
    assert (row.low, row.high) == pytest.approx((20 - half, 20 + half))
    assert math.isnan(row["std"])


def test_aggregates_over_common_tasks() -> None:
    lone = record("hopper-c", "iql", 0, [500.0])  # a task that BC does not have
    found = comparisons(lines_of([*grid_of_scores(), lone]))
    assert [(one.family, one.tasks) for one in found] == [("locomotion", ("hopper-a", "hopper-b"))]
    assert not found[0].left_out
    frame = tables.aggregates(found, draws=200).set_index("method")
    bc, iql = frame.loc["bc, 10 updates"], frame.loc["iql, 10 updates"]
    assert (bc["mean"], bc["median"], bc["iqm"]) == (40.0, 40.0, 40.0)
    # of 20, 40, 60, 120 one value at each end is dropped; the gap counts 120 as 100
    assert (iql["mean"], iql["iqm"], iql["optimality_gap"]) == (60.0, 50.0, 45.0)
    assert bc["mean_low"] <= 40.0 <= bc["mean_high"]
    again = tables.aggregates(found, draws=200).set_index("method")
    assert frame.equals(again)


def test_probability_of_improvement_over_the_best_or_a_named_method() -> None:
    found = comparisons(lines_of(grid_of_scores()))
    (row,) = tables.improvements(found, None, draws=50).iloc
    assert (row.method, row.baseline) == ("bc, 10 updates", "iql, 10 updates")
    # hopper-a: 1 of 4 pairs (30 > 20); hopper-b: 1 of 4 (70 > 60)
    assert row.probability == 0.25
    (row,) = tables.improvements(found, "bc", draws=50).iloc
    assert (row.method, row.probability) == ("iql, 10 updates", 0.75)
    with pytest.raises(InputError, match="'cql' is none of bc, 10 updates; iql"):
        tables.improvements(found, "cql", draws=50)


def test_profiles_are_shares_above_thresholds() -> None:
    frame = tables.profiles(comparisons(lines_of(grid_of_scores())))
    iql = frame[frame.method.str.startswith("iql")].set_index("threshold").share
    assert [iql[t] for t in (0, 20, 40, 60, 100, 120)] == [1.0, 0.75, 0.5, 0.25, 0.25, 0.0]


def test_unequal_runs_are_left_out_and_said(tmp_path: Path) -> None:
    uneven = [
        record(f"hopper-{task}", "cql", seed, [1.0])
        for task, seed in (("a", 0), ("b", 0), ("b", 1))
    ]
    records = [*grid_of_scores(), *uneven]
    found = comparisons(lines_of(records))
    both = next(one for one in found if len(one.tasks) == 2)
    assert both.left_out == ("cql, 10 updates",)
    write_tables("t", lines_of(records), (), tmp_path, ("md",), draws=50)
    said = (tmp_path / "t.md").read_text()
    assert (
        "Not compared for unequal numbers of runs: cql, 10 updates on hopper-a, hopper-b." in said
    )


def test_a_lost_seed_leaves_no_comparison_and_is_told(tmp_path: Path) -> None:
    records = [one for one in grid_of_scores() if one.run_id != "hopper-b/iql/10/1"]
    (found,) = comparisons(lines_of(records))
    assert (found.scores, found.left_out) == ({}, ("iql, 10 updates",))
    write_tables("t", lines_of(records), (), tmp_path, ("md",), draws=50)
    said = (tmp_path / "t.md").read_text()
    assert "Not compared for unequal numbers of runs: iql, 10 updates on hopper-a" in said
    assert "## Aggregates" not in said


def test_tasks_in_common_are_compared_whatever_else_there_is() -> None:
    records = [record(f"hopper-{task}", name, 0, [1.0])
               for name, tasks in (("bc", "ab"), ("iql", "bc")) for task in tasks]  # fmt: skip
    (found,) = comparisons(lines_of(records))
    assert (found.tasks, set(found.scores)) == (
        ("hopper-b",), {"bc, 10 updates", "iql, 10 updates"})  # fmt: skip


def test_a_baseline_is_named_in_full_before_it_is_a_beginning() -> None:
    names = ("iql", "iql+pgd", "iql+x", "bc")
    found = comparisons(lines_of([record("hopper-a", n, 0, [1.0]) for n in names]))
    frame = tables.improvements(found, "iql", draws=20)
    assert set(frame.baseline) == {"iql, 10 updates"}
    with pytest.raises(InputError, match=r"may be iql\+pgd, 10 updates; iql\+x, 10 updates"):
        tables.improvements(found, "iql+", draws=20)


def test_unlike_runs_have_no_common_mean() -> None:
    other = {"diff_from_default": {}, "config_hash": "of other data"}
    with pytest.raises(InputError, match="differ in data, evaluation or simulator"):
        lines_of(
            [record("hopper-a", "bc", 0, [1.0]), record("hopper-a", "bc", 1, [1.0], config=other)]
        )


def test_configurations_of_a_dataset_are_told_apart_others_are_joined() -> None:
    def tuned(dataset: str, value: float, score: float) -> RunRecord:
        config = {"diff_from_default": {"alpha": value}, "config_hash": "x"}
        return record(dataset, "td3bc", 0, [score], config=config, cost={"train_seconds": value})

    published = [tuned("hopper-a", 1.0, 5.0), tuned("hopper-b", 2.0, 6.0)]
    plain = [record(name, "bc", 0, [1.0]) for name in ("hopper-a", "hopper-b")]
    (found,) = comparisons(lines_of([*published, *plain]))
    assert set(found.scores) == {"td3bc (settings per dataset), 10 updates", "bc, 10 updates"}
    several = [*plain[:1], tuned("hopper-a", 1.0, 5.0)]
    several.append(record("hopper-a", "td3bc", 1, [7.0]))
    (found,) = comparisons(lines_of(several))
    assert set(found.scores) == {"td3bc, 10 updates", "td3bc (alpha=1.0), 10 updates",
                                 "bc, 10 updates"}  # fmt: skip


def test_budgets_over_configurations_and_policies() -> None:
    def tuned(value: float, seed: int, score: float) -> RunRecord:
        config = {"diff_from_default": {"alpha": value}, "config_hash": "x"}
        changed = {"config": config, "run_id": f"{value}/{seed}"}
        return dataclass_replace(record("hopper-a", "td3bc", seed, [score]), **changed)

    records = [tuned(1.0, 0, 10.0), tuned(1.0, 1, 20.0), tuned(2.0, 0, 40.0)]
    (row,) = tables.budgets(lines_of([*records, record("hopper-b", "bc", 0, [1.0])])).iloc
    assert (row.configurations, row.policies) == (2, 3)
    # means 15 and 40; with replacement the best of two is 15 with chance 1/4
    assert (row.eop_1, row.eop_2) == (27.5, 0.25 * 15 + 0.75 * 40)
    assert row.pulls_200 == pytest.approx(40.0)


def dataclass_replace(one: RunRecord, **changes: Any) -> RunRecord:
    return RunRecord(**(vars(one) | changes))


def test_failed_missing_and_refused_are_counted(tmp_path: Path) -> None:
    lost = Failure(dataset="hopper-a", method="bc", changes={}, updates=10, seeds=[2], attempts=1,
                   command="", exit_code=1, reason="", log="")  # fmt: skip
    records = grid_of_scores()
    lines = lines_of(records, [lost])
    lines = lines_of(records, [lost], {("hopper-a", lines[0].method): (0, 1, 2, 3, 4)})
    head, *rows = score_text(tables.scores(lines))
    assert rows[0][head.index("runs")] == "2, 1 failed, 2 missing"
    assert "8 runs, 1 failed, 2 missing, 3 files refused" in caption(lines, 3)


def test_published_numbers_are_for_the_very_dataset_and_name_their_source() -> None:
    found = published("td3bc", "hopper-medium-v2")
    assert found
    assert all(row.source and row.method == "TD3+BC" for row in found)
    assert all("best" not in row.notes for row in found if "last" in row.notes)
    assert not any(
        "eye" in one.notes for name in NAMES for one in published(name, "hopper-medium-expert-v2")
    )
    assert published("td3bc", "hopper-medium-zoo") == published("mine", "hopper-medium-v2") == []
    lines = lines_of([record("hopper-medium-v2", "td3bc", 0, [1.0, 2.0])])
    (row,) = tables.scores(lines).iloc
    assert all(f"[{one.source}" in row.published for one in found)
    assert row["mean"] == 1.5


def test_everything_is_written_and_the_same_again(tmp_path: Path) -> None:
    lines = lines_of(grid_of_scores())
    paths = write_tables("all", lines, (), tmp_path, ("md", "csv", "latex"), draws=100)
    names = {"all.md", "all.tex", "all.csv", "all-runs.csv", "all-aggregates.csv",
             "all-improvement.csv", "all-profile.csv", "all-budget.csv"}  # fmt: skip
    assert {path.name for path in paths} == names == {path.name for path in tmp_path.iterdir()}
    before = {path: path.read_bytes() for path in paths}
    write_tables("all", lines_of(grid_of_scores()[::-1]), (), tmp_path, ("md", "csv", "latex"),
                 draws=100)  # fmt: skip
    assert {path: path.read_bytes() for path in paths} == before
    latex = (tmp_path / "all.tex").read_text()
    assert latex.count(r"\begin{table}") == latex.count(r"\toprule") == 5
    assert r"95 \%" in latex
    assert "hopper-a & bc & 10 & 20.0 ± 14.1" in latex


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_any_text_stays_within_its_cell(cells: list[str]) -> None:
    page = Page("t", "c", [("h", "", [["x"] * len(cells), cells])]).markdown()
    *_, row, end = page.split("\n")
    assert not end
    assert row.replace("\\|", "").count("|") == len(cells) + 1


def test_the_command_refuses_an_edited_record_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for one in grid_of_scores():
        write_record(tmp_path / "runs" / one.run_id, one)
    edited = tmp_path / "runs" / "hopper-a" / "bc" / "10" / "0" / "run.json"
    edited.write_text(edited.read_text().replace("10.0", "99.0"))
    command = ["table", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--draws", "50"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "was edited after it was written" in said.err
    assert "99.0" not in said.out
    assert (
        "7 runs, 0 failed, 0 missing, 1 files refused" in (tmp_path / "out/scores.md").read_text()
    )
    (tmp_path / "none").mkdir()
    assert main(["table", str(tmp_path / "none")]) == 2
    assert "there is no record in" in capsys.readouterr().err


def test_only_the_lines_of_a_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for one in grid_of_scores():
        write_record(tmp_path / "runs" / one.run_id, one)
    spec = tmp_path / "g.toml"
    spec.write_text('datasets = ["hopper-a"]\nseeds = [0, 1, 2]\noptions = { updates = 10 }\n'
                    '[[runs]]\nalgos = ["bc", "cql"]')  # fmt: skip
    out = tmp_path / "out"
    assert main(["table", str(tmp_path / "runs"), "--grid", str(spec), "--out", str(out)]) == 0
    text = (out / "g.md").read_text()
    assert "| hopper-a | bc | 10 | 20.0 ± 14.1 |" in text
    assert "2, 1 missing" in text
    assert "| hopper-a | cql | 10 | - |" in text
    assert "iql" not in text


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("scores", []),
        *((grid, ["--grid", str(ROOT / f"results/grids/{grid}.toml"), "--formats", "md"])
          for grid in ("learners", "augmenters", "planners")),
    ],
)  # fmt: skip
def test_the_repositorys_tables_come_from_its_records(
    name: str, arguments: list[str], tmp_path: Path
) -> None:
    assert main(["table", str(ROOT / "results/runs"), "--out", str(tmp_path), *arguments]) == 0
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    committed = ROOT / "results" / "tables"
    assert {file: (committed / file).read_bytes() for file in made} == made
    assert f"{name}.md" in made


def test_one_run_per_task_has_no_interval() -> None:
    found = comparisons(lines_of([one for one in grid_of_scores() if one.seed == 0]))
    frame = tables.aggregates(found, draws=50)
    assert frame["iqm"].notna().all()
    assert frame["iqm_low"].isna().all()
    (row,) = tables.improvements(found, None, draws=50).iloc
    assert (row.probability, math.isnan(row.probability_low)) == (0.0, True)
