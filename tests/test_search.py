"""Searches: what may be chosen, on which seeds; the same trials after a kill; episodes counted."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from offdiff.algos.iql import IQLConfig
from offdiff.algos.td3bc import TD3BCConfig
from offdiff.cli import main
from offdiff.config import RunConfig
from offdiff.core.errors import DivergedError, InputError
from offdiff.records import RunRecord
from offdiff.search import Found, Search, Trial, search
from offdiff.search_space import apply, grid, options, read_space

pytest.importorskip("optuna", exc_type=ImportError)

IQL = RunConfig(algo=IQLConfig())


def score_of(config: RunConfig) -> float:
    """Highest, 100, at an expectile of 0.8."""
    return 100 - 1e3 * (config.algo.expectile - 0.8) ** 2  # type: ignore[attr-defined]


class Pretended:
    """Runs nothing: records with the score of `score_of`; may stop like a kill."""

    def __init__(self, stop_at: int = -1) -> None:
        self.configs: list[RunConfig] = []
        self.stop_at = stop_at

    def __call__(self, config: RunConfig) -> list[RunRecord]:
        if len(self.configs) == self.stop_at:
            raise KeyboardInterrupt
        self.configs.append(config)
        if config.algo.expectile > 0.95:  # type: ignore[attr-defined]
            raise DivergedError("the loss is NaN")
        outcome = {"score_mean": score_of(config), "mean": 1.0, "n_episodes": 4}
        return [
            RunRecord(run_id=str(seed), status="finished", code={}, config={}, data={}, seeds={},
                      algo={}, eval=outcome, curve=[], system={}, cost={})
            for seed in config.seeds
        ]  # fmt: skip


def wanted(folder: Path, *space: str, **changes: Any) -> Search:
    return Search(
        config=IQL, space=read_space(space or ("algo.expectile=0.5:0.9",), IQL), folder=folder,
        **({"tuning_seeds": (1000, 1001)} | changes),
    )  # fmt: skip


def test_it_finds_the_optimum_on_tuning_seeds_and_counts_the_episodes(tmp_path: Path) -> None:
    runs = Pretended()
    found = search(wanted(tmp_path / "s", trials=25), carry_out=runs)
    assert found.best is not None
    assert found.best.values["algo.expectile"] == pytest.approx(0.8, abs=0.04)
    assert found.best.score == max(trial.score or 0 for trial in found.trials)
    assert found.online_episodes == 25 * 2 * 4
    for config in runs.configs:
        assert config.seeds == (1000, 1001)
        assert config.eval_seed == 500_000 != IQL.eval_seed
        assert config.eval_every == 0
    kept = json.loads((tmp_path / "s" / "search.json").read_text())
    assert kept["online_episodes"] == 200
    assert kept["provenance"] == "search of 25 trials with 200 online episodes (tpe seed 0)"
    assert kept["best"]["values"] == found.best.values
    assert len(kept["trials"]) == 25


@pytest.mark.parametrize("stop", [1, 7, 11])
def test_a_search_that_was_stopped_goes_on_to_the_same_trials(tmp_path: Path, stop: int) -> None:
    whole = search(wanted(tmp_path / "a", trials=14), carry_out=Pretended())
    with pytest.raises(KeyboardInterrupt):
        search(wanted(tmp_path / "b", trials=14), carry_out=Pretended(stop_at=stop))
    told: list[Trial] = []
    runs = Pretended()
    parts = search(wanted(tmp_path / "b", trials=14), carry_out=runs, tell=told.append)
    assert [t.values for t in parts.trials] == [t.values for t in whole.trials]
    assert [t.score for t in parts.trials] == [t.score for t in whole.trials]
    assert told == parts.trials
    assert len(runs.configs) == 14 - stop
    more = search(wanted(tmp_path / "b", trials=16), carry_out=runs)
    assert more.trials[:14] == parts.trials
    other = search(wanted(tmp_path / "c", trials=14, sampler_seed=1), carry_out=Pretended())
    assert [t.values for t in other.trials] != [t.values for t in whole.trials]


def test_a_grid_is_all_combinations_and_equal_ones_cost_nothing(tmp_path: Path) -> None:
    space = ("algo.expectile=0.5,0.75,0.9", "algo.inverse_temperature=1,3")
    runs = Pretended()
    found = search(wanted(tmp_path / "g", *space, sampler="grid"), carry_out=runs)
    assert [tuple(trial.values.values()) for trial in found.trials] == [
        (e, t) for e in (0.5, 0.75, 0.9) for t in (1.0, 3.0)
    ]
    assert found.best is not None
    assert found.best.values == {"algo.expectile": 0.75, "algo.inverse_temperature": 1.0}
    runs = Pretended()
    again = search(wanted(tmp_path / "t", "algo.expectile=0.7", trials=3), carry_out=runs)
    assert len(runs.configs) == 1
    assert [trial.online_episodes for trial in again.trials] == [8, 0, 0]


def test_a_trial_that_diverges_is_kept_without_a_score(tmp_path: Path) -> None:
    found = search(wanted(tmp_path / "d", "algo.expectile=0.97,0.5", sampler="grid"),
                   carry_out=Pretended())  # fmt: skip
    first, second = found.trials
    assert (first.score, first.reason, first.online_episodes) == (None, "the loss is NaN", 0)
    assert found.best == second
    assert Found([first]).best is None


def test_seeds_and_episodes_of_the_report_are_not_for_tuning(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"seeds \[3, 4\] are for tuning and for the report"):
        wanted(tmp_path, tuning_seeds=(3, 4, 5))
    with pytest.raises(InputError, match="the report needs other episodes"):
        wanted(tmp_path, tuning_eval_seed=IQL.eval_seed)


def test_another_search_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    search(wanted(tmp_path / "s", trials=1), carry_out=Pretended())
    with pytest.raises(InputError, match="holds a search with other sampler_seed;"):
        search(wanted(tmp_path / "s", trials=2, sampler_seed=5), carry_out=Pretended())
    with pytest.raises(InputError, match=r"holds a search with other .*space"):
        search(wanted(tmp_path / "s", "algo.expectile=0.6:0.7"), carry_out=Pretended())
    changed = dataclasses.replace(wanted(tmp_path / "s"), config=RunConfig(updates=5))
    with pytest.raises(InputError, match="holds a search with other updates"):
        search(changed, carry_out=Pretended())


def test_data_without_a_simulator_cannot_be_scored(tmp_path: Path, toy_file: Path) -> None:
    blind = dataclasses.replace(wanted(tmp_path / "s"), config=RunConfig(dataset=str(toy_file)))
    with pytest.raises(InputError, match="has no simulator"):
        search(blind, carry_out=Pretended())
    assert not (tmp_path / "s").exists()


def test_spaces_are_read_from_texts_and_files(tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text('[algo]\nexpectile = "0.5:0.9"\nbatch_size = [64, 256]\n')
    space = read_space((str(file), "algo.learning-rate=1e-4:1e-3:log"), IQL)
    assert [str(p) for p in space] == [
        "algo.expectile=0.5:0.9", "algo.batch_size=64,256", "algo.learning_rate=0.0001:0.001:log",
    ]  # fmt: skip
    assert space[1].choices == (64, 256)
    assert space[2].log
    config = apply(IQL, {"algo.expectile": 0.8, "algo.batch_size": 64})
    assert config == RunConfig(algo=IQLConfig(expectile=0.8, batch_size=64))
    assert options({"algo.expectile": 0.8, "algo.scale_observations": False}) == [
        "--algo.expectile", "0.8", "--algo.no-scale-observations",
    ]  # fmt: skip


@pytest.mark.parametrize(("algo", "size"), [(IQLConfig(), 9), (TD3BCConfig(), 5)])
def test_published_grids_are_the_default(algo: Any, size: int) -> None:
    space = read_space((), RunConfig(algo=algo))
    assert len(list(grid(space))) == size == math.prod(len(p.choices) for p in space)


def test_everything_wrong_with_a_space_is_told_at_once() -> None:
    with pytest.raises(InputError) as told:
        read_space(
            ("algo.expectil=1", "algo.expectile=1.5:2", "algo.batch_size=a", "algo.dropout=0.2:0.1",
             "algo.learning_rate=0:1:log", "algo.discount", "algo.discount=0.9,0.99",
             "algo.discount=0.9"), IQL,
        )  # fmt: skip
    for words in ("'algo.expectil'; did you mean 'algo.expectile'", "expectile", "whole numbers",
                  "to a greater one", "whose logarithm", "NAME=LOW:HIGH",
                  "algo.discount is named twice"):  # fmt: skip
        assert words in str(told.value)
    with pytest.raises(InputError, match="a grid has no ranges"):
        list(grid(read_space(("algo.expectile=0.5:0.9",), IQL)))


def test_the_command_searches_and_tells_how_to_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["search", "--algo", "bc", "--updates", "20", "--final-episodes", "1",
               "--space", "algo.batch_size=16,32", "--sampler", "grid",
               "--tuning-seeds", "7", "--report-seeds", "0", "1"]  # fmt: skip
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "2 trials, 2 online episodes used for choosing; tuning seeds 7" in said
    report = said.splitlines()[-1]
    assert report.startswith("offdiff run --algo bc --updates 20 --final-episodes 1")
    assert "--seeds 0 1 --provenance 'search of 2 trials with 2 online episodes" in report
    records = list(Path("results/search/sample-bc/runs").rglob("run.json"))
    assert len(records) == 2
    before = [path.stat().st_mtime_ns for path in records]
    assert main(command) == 0  # nothing is run again
    assert [path.stat().st_mtime_ns for path in records] == before


@pytest.mark.parametrize("option", ["--seeds", "--eval-every", "--resume"])
def test_options_that_a_search_sets_itself_are_refused(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "--algo", "bc", option, "1"]) == 2
    assert f"not an option of a search: {option}" in capsys.readouterr().err
