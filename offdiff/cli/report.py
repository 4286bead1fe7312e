"""`offdiff report`: records -> one HTML page."""

import sys
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from offdiff.cli.options import parse_options
from offdiff.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """One HTML page of run records that opens anywhere, without a network.

    A table that can be sorted and searched, with everything behind a row at a click; learning
    curves, aggregates, performance profiles, cost, diagnostics of synthetic data, and the pictures
    and films that lie beside the records.

    Examples:
      offdiff report                                  results/runs -> report.html
      offdiff report --grid mine.toml --open          a grid's lines, missing ones too; show it
      offdiff report my-runs other-runs --out page.html --title "Our paper"
    """

    runs: Positional[tuple[Path, ...]] = ()
    """Folders of runs (default results/runs)."""
    out: Path = Path("report.html")
    """The page."""
    title: str = "offdiff report"
    """Its title."""
    grid: tuple[str, ...] = ()
    """Only the lines of these grids (as of `offdiff bench`), whether they have runs or not."""
    draws: int = 2_000
    """Bootstrap samples of every interval."""
    media_mb: float = 30.0
    """Megabytes of pictures and films taken into the page; those beyond are named, not shown."""
    open: bool = False
    """Show it in the web browser."""

    def __post_init__(self) -> None:
        if self.draws < 1 or not self.media_mb >= 0:
            raise InputError("--draws must be at least 1 and --media-mb at least 0")


def main(command: str, args: list[str]) -> int:
    """Parses, writes, prints; the exit code."""
    options = parse_options(ReportOptions, args, command)
    from offdiff.cli.table import chosen_lines
    from offdiff.records import read_records
    from offdiff.report import write_report

    places = options.runs or (Path("results/runs"),)
    found = read_records(places)
    for reason in found.refused:
        print(f"offdiff: refused: {reason}", file=sys.stderr)
    lines, _ = chosen_lines(found, options.grid)
    size = write_report(
        options.out,
        options.title,
        lines,
        found,
        places,
        draws=options.draws,
        megabytes=options.media_mb,
    )
    runs = sum(len(line.runs) for line in lines)
    print(f"{options.out}: {runs} runs in {len(lines)} lines, {size / 1e6:.1f} MB")
    if options.open:
        import webbrowser

        webbrowser.open(options.out.resolve().as_uri())
    return 0
