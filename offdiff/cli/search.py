"""`offdiff search`: hyperparameters chosen on tuning seeds, for a report on others."""

import inspect
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from offdiff.core.errors import InputError

if TYPE_CHECKING:
    from offdiff.search import Found, Search, Trial

RESERVED = {
    "--seeds": "use --tuning-seeds and --report-seeds",
    "--eval-every": "trials have no learning curve: it would cost episodes",
    "--provenance": "the search writes it",
    "--resume": "a search always goes on where it was",
    "--overwrite": "give another --name, or remove the folder of the search",
}
"""Options of `offdiff run` that a search decides itself."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    r"""Search hyperparameters: trials on tuning seeds, then the command that reports the best.

    Every further option is one of `offdiff run` and holds for all trials: --algo, --planner,
    --dataset, --updates, --final-episodes, --algo.hidden, ...

    A configuration that was chosen by its scores must not be judged by them. So the trials train
    on other seeds, and are evaluated on other episodes, than the report, and the episodes spent
    on choosing are counted: they belong beside the reported score. Stopped in any way, the same
    command goes on: finished trials are kept, and the ones to come are the same.

    Examples:
      offdiff search --algo iql --trials 20
      offdiff search --algo td3bc --dataset hopper-medium-v2 --sampler grid
      offdiff search --algo iql --space "algo.expectile=0.5:0.9" \
          "algo.inverse_temperature=0.5,3,10" "algo.learning_rate=1e-4:1e-3:log"
      offdiff search --algo cql --space mine.toml --updates 50000 --final-episodes 50
      offdiff search --planner diffuser --space "planner.candidates=1,8,32"

    A TOML file of a space:
      [algo]
      expectile = "0.5:0.9"
      inverse_temperature = [0.5, 3, 10]

    Learners with a published grid (Jackson et al. 2025) need no --space: iql, rebrac, td3bc, cql.
    """

    space: tuple[str, ...] = ()
    """NAME=LOW:HIGH, NAME=LOW:HIGH:log, NAME=A,B,C, or TOML files; default: the published grid."""
    trials: int = 20
    """Configurations to try; asking for more later continues. A grid ends when it is through."""
    sampler: Literal["tpe", "grid"] = "tpe"
    """Tree-structured Parzen estimator, or all combinations of listed values in order."""
    sampler_seed: int = 0
    """Equal seeds and scores make equal trials."""
    tuning_seeds: tuple[int, ...] = (1000, 1001, 1002)
    """Training seeds of every trial; its score is their mean."""
    report_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Training seeds of the run that reports; refused if a tuning seed is among them."""
    tuning_eval_seed: int = 500_000
    """Seed of the episodes that trials are scored on; refused if it is --eval-seed."""
    out: Path = Path("results")
    """The search is kept in OUT/search/NAME: search.json, journal.log (Optuna's), runs/."""
    name: str = ""
    """Of the search; default: dataset and method."""


def main(command: str, args: list[str]) -> int:
    """Parses, searches, prints; 1 if no trial has a score."""
    prog = f"offdiff {command}"
    options, rest = tyro.cli(
        SearchOptions, args=args, prog=prog, description=inspect.getdoc(SearchOptions),
        return_unknown_args=True,
    )  # fmt: skip
    _refuse_reserved(rest)
    from offdiff.cli.run import parse
    from offdiff.search import Search
    from offdiff.search_space import read_space

    config = parse(rest)
    name = options.name or f"{Path(config.dataset).stem}-{config.method}".replace("/", "-")
    wanted = Search(
        config=config,
        space=read_space(options.space, config),
        folder=options.out / "search" / name.replace(":", "-"),
        trials=options.trials,
        sampler=options.sampler,
        sampler_seed=options.sampler_seed,
        tuning_seeds=options.tuning_seeds,
        report_seeds=options.report_seeds,
        tuning_eval_seed=options.tuning_eval_seed,
    )
    found = _search(wanted)
    _print(wanted, found, rest)
    return 0 if found.best else 1


def _refuse_reserved(rest: Sequence[str]) -> None:
    given = [word.partition("=")[0].replace("_", "-") for word in rest]
    if wrong := [f"{word} ({RESERVED[word]})" for word in given if word in RESERVED]:
        raise InputError(f"not an option of a search: {'; '.join(wrong)}")


def _search(wanted: "Search") -> "Found":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from offdiff.search import search
    from offdiff.search_space import grid

    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    total = wanted.trials
    if wanted.sampler == "grid":
        total = min(total, sum(1 for _ in grid(wanted.space)))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("trials", total=total)

        def tell(trial: "Trial") -> None:
            bar.advance(task)
            outcome = trial.reason if trial.score is None else f"{trial.score:.1f}"
            console.print(f"trial {trial.number}: {_text(trial)}: {outcome}")

        return search(wanted, tell=tell)


def _text(trial: "Trial") -> str:
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in trial.values.items()
    )


def _print(wanted: "Search", found: "Found", rest: Sequence[str]) -> None:
    """The trials, the best, and the command that reports it."""
    from rich.console import Console
    from rich.table import Table

    from offdiff.search_space import options

    names = [parameter.name for parameter in wanted.space]
    title = f"search {wanted.folder.name}, best first"
    table = Table("trial", *names, found.unit, "of each tuning seed", "episodes", title=title)
    ranked = sorted(found.trials, key=lambda t: (t.score is None, -(t.score or 0.0), t.number))
    for trial in ranked:
        values = [
            f"{value:.4g}" if isinstance(value, float) else str(value)
            for value in trial.values.values()
        ]
        score = "diverged" if trial.score is None else f"{trial.score:.1f}"
        each = " ".join(f"{value:.1f}" for value in trial.scores)
        table.add_row(str(trial.number), *values, score, each, str(trial.online_episodes))
    # Off a terminal rich would cut everything to 80 columns.
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    print(
        f"{len(found.trials)} trials, {found.online_episodes} online episodes used for choosing; "
        f"tuning seeds {' '.join(map(str, wanted.tuning_seeds))}"
    )
    print(f"everything: {wanted.folder / 'search.json'}")
    if found.best is None:
        print("no trial has a score: all of them diverged")
        return
    seeds = ["--seeds", *map(str, wanted.report_seeds)]
    provenance = ["--provenance", found.provenance(wanted)]
    words = ["offdiff", "run", *rest, *options(found.best.values), *seeds, *provenance]
    print(f"best: trial {found.best.number}, {_text(found.best)}; report it on other seeds with")
    print(shlex.join(words))
