"""`offdiff table`: records -> benchmark tables."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from offdiff.cli.options import parse_options
from offdiff.core.errors import InputError

if TYPE_CHECKING:
    from offdiff.lines import Line, Method
    from offdiff.records import Records


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Benchmark tables from run records alone, with intervals.

    Means, interquartile means, probabilities of improvement, performance profiles and scores under
    a tuning budget, each with what it was computed from. Failed and missing runs are counted,
    edited records refused. The same records give the same bytes.

    Examples:
      offdiff table                                   all runs in results/runs
      offdiff table --grid mine.toml                  the lines of a grid, what is missing counted
      offdiff table my-runs other-runs --out tables --name joint --formats md csv latex
      offdiff table --baseline td3bc                  probabilities of improvement over TD3+BC
      offdiff table --cards results/cards             a card for every line, too
    """

    runs: Positional[tuple[Path, ...]] = ()
    """Folders of runs (default results/runs)."""
    out: Path = Path("results/tables")
    """Folder of the tables."""
    name: str = ""
    """Of the files; default: that of the grid, or `scores`."""
    grid: tuple[str, ...] = ()
    """Only the lines of these grids (as of `offdiff bench`), whether they have runs or not."""
    formats: tuple[Literal["md", "csv", "latex"], ...] = ("md", "csv")
    """What to write."""
    baseline: str = ""
    """Beginning of a method's name, e.g. `td3bc`; default: the method with the highest mean."""
    cards: Path | None = None
    """Also write a card of every line into this folder: data, training, evaluation, limits."""
    wandb: bool = False
    """Also log the scores and the files to Weights & Biases, as one run."""
    draws: int = 50_000
    """Bootstrap samples of every interval."""

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise InputError(f"--draws must be at least 1, got {self.draws}")
        if not self.formats:
            raise InputError("--formats names nothing to write; choose of md, csv, latex")
        if Path(self.name).name != self.name:
            raise InputError(
                f"--name is a file's name without folders, got {self.name!r}; see --out"
            )


def main(command: str, args: list[str]) -> int:
    """Parses, computes, prints; the exit code."""
    options = parse_options(TableOptions, args, command)
    from offdiff.records import read_records
    from offdiff.table_pages import write_tables

    places = options.runs or (Path("results/runs"),)
    found = read_records(places)
    for reason in found.refused:
        print(f"offdiff: refused: {reason}", file=sys.stderr)
    lines, name = chosen_lines(found, options.grid)
    if not lines:
        raise InputError(
            f"there is no record in {', '.join(map(str, places))}; make some with `offdiff run` or "
            "`offdiff bench`, or name another folder"
        )
    name = options.name or name or "scores"
    paths = write_tables(
        name,
        lines,
        found.refused,
        options.out,
        options.formats,
        baseline=options.baseline or None,
        draws=options.draws,
    )
    if options.cards is not None:
        from offdiff.cards import write_cards

        paths += write_cards(lines, options.cards)
    for line in lines:
        for what, seeds in (("failed", line.failed), ("missing", line.missing)):
            if seeds:
                text = f"{line.method.label} on {line.dataset}, seeds {' '.join(map(str, seeds))}"
                print(f"offdiff: {what}: {text}", file=sys.stderr)
    if options.wandb:
        from offdiff import tables
        from offdiff.wandb_logger import log_tables

        log_tables({"scores": tables.scores(lines)}, name=name, folder=options.out, files=paths)
    _print(lines)
    for path in paths:
        print(path)
    return 0


def chosen_lines(found: "Records", specs: tuple[str, ...]) -> "tuple[list[Line], str]":
    """The lines of all records, or those that grids ask for, and the grids' names."""
    from offdiff.cli.run import parse
    from offdiff.grid import read_grid
    from offdiff.grid_plan import wanted
    from offdiff.lines import lines_of

    asked: dict[tuple[str, Method], tuple[int, ...]] = {}
    grids = [read_grid(spec) for spec in specs]
    for grid in grids:
        for key, seeds in wanted(grid, parse).items():
            asked[key] = tuple(sorted({*asked.get(key, ()), *seeds}))
    lines = lines_of(found.finished, found.failed, asked)
    if specs:
        lines = [line for line in lines if (line.dataset, line.method) in asked]
    return lines, "-".join(grid.name for grid in grids)


def _print(lines: "list[Line]") -> None:
    from rich.console import Console
    from rich.table import Table

    from offdiff import tables
    from offdiff.table_pages import score_text

    # Off a terminal rich would cut everything to 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 160)
    frame = tables.scores(lines)
    for family in sorted(set(frame["family"])):
        head, *rows = score_text(frame[frame["family"] == family])
        keep = [i for i, name in enumerate(head) if name != "published"]
        table = Table(*(head[i] for i in keep), title=family)
        for row in rows:
            table.add_row(*(row[i] for i in keep))
        console.print(table)
