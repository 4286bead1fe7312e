"""Records -> one self-contained HTML page. The same records give the same bytes."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from offdiff import tables
from offdiff.core.errors import MissingExtraError
from offdiff.core.files import write_text
from offdiff.lines import Line
from offdiff.records import Records
from offdiff.reporting import figures
from offdiff.reporting.media import Medium, media_of, record_folders
from offdiff.reporting.metrics import metrics_of
from offdiff.reporting.publishable import below, publishable
from offdiff.reporting.rows import provenance, score_rows
from offdiff.reporting.styles import styles_of

TEMPLATES = "offdiff.reporting"


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that the page shows."""

    title: str
    facts: dict[str, str]
    rows: list[dict[str, Any]]
    refused: list[str]
    sections: dict[str, list[figures.Figure]]
    """By the name of the page's section."""
    aggregates: list[figures.Aggregate]
    media: list[Medium]
    details: list[dict[str, Any]]
    """Provenance, one per row."""
    training: dict[int, figures.Figure]
    """What was logged in training, by row."""
    megabytes: float


def make_report(
    records: Records,
    lines: Sequence[Line],
    places: Sequence[Path],
    out: Path,
    *,
    title: str = "offdiff report",
    draws: int = 2_000,
    megabytes: float = 20.0,
) -> Report:
    """Computes what the page shows; nothing is written.

    places: where the records were read, for pictures, films and metrics beside them. out: of the
    page, from which files that it does not hold are linked.
    """
    styles = styles_of(lines)
    rows = score_rows(lines, styles)
    found = tables.comparisons(lines)
    runs = [run for line in lines for run in line.runs]
    folders = record_folders(places, runs)
    metrics = {number: metrics_of(line, folders) for number, line in enumerate(lines)}
    return Report(
        title=title,
        facts=_facts(lines, records),
        rows=rows,
        refused=[below(reason, places) for reason in records.refused],
        sections={
            "curves": figures.learning_curves(lines, styles),
            "profiles": figures.profiles(found, styles, draws),
            "cost": figures.costs(rows, lines, styles),
            "synthetic": figures.diagnostics(lines, styles),
        },
        aggregates=figures.aggregates(found, styles, draws),
        media=media_of(runs, folders, out, megabytes),
        details=[provenance(line, records.failed) for line in lines],
        training={
            number: figures.training_metrics(columns, lines[number], styles)
            for number, columns in metrics.items()
            if columns
        },
        megabytes=megabytes,
    )


def write_report(report: Report, out: Path) -> None:
    """Writes the page, whole or not at all. Raises InputError if it cannot be written."""
    write_text(out, render(report))


def render(report: Report) -> str:
    """The page. Raises MissingExtraError without jinja2 or plotly."""
    try:
        import jinja2
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingExtraError("a report", "report") from error
    folder = files(TEMPLATES)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number_text
    environment.filters["seconds"] = seconds_text
    scripts = {
        "plotly": get_plotlyjs(),
        "plots": (folder / "plots.js").read_text(encoding="utf-8"),
        "page": (folder / "page.js").read_text(encoding="utf-8"),
    }
    return environment.get_template("page.html.j2").render(
        report=report,
        # The page runs our own scripts, whose digests it names, and loads nothing from elsewhere.
        policy=_policy(scripts.values()),
        style=(folder / "page.css").read_text(encoding="utf-8"),
        scripts=scripts,
        data=_script_json(_data(report)),
        aggregate_names=[name for _, name in figures.AGGREGATES],
    )


def _data(report: Report) -> dict[str, Any]:
    """What the page's scripts read."""
    cards = {
        f"{section}-{number}": figure
        for section, several in report.sections.items()
        for number, figure in enumerate(several)
    }
    cards |= {f"aggregates-{number}": one.figure for number, one in enumerate(report.aggregates)}
    cards |= {f"training-{number}": figure for number, figure in report.training.items()}
    return {
        "figures": {
            name: {"data": figure.traces, "layout": figure.layout}
            for name, figure in cards.items()
        },
        "details": report.details,
        "colours": [row["colour"] for row in report.rows],
    }


def _script_json(values: dict[str, Any]) -> str:
    """JSON that cannot end the script element it stands in, nor begin a comment there."""
    text = json.dumps(publishable(values), separators=(",", ":"), allow_nan=False, sort_keys=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(scripts: Any) -> str:
    """Content security policy."""
    digests = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in scripts
    )
    return (
        f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; "
        "img-src data: blob: 'self' file:; media-src data: 'self' file:; base-uri 'none'; "
        "form-action 'none'"
    )


def _facts(lines: Sequence[Line], records: Records) -> dict[str, str]:
    """Head of the page."""
    runs = [run for line in lines for run in line.runs]
    simulators = {run.eval.get("simulator_version") for run in runs if run.eval}
    versions = {f"offdiff {run.code.get('offdiff_version', 'unknown')}" for run in runs}
    versions |= {f"torch {run.system['torch']}" for run in runs if run.system.get("torch")}
    commits = {str(run.code.get("git_commit") or "unknown")[:9] for run in runs}
    dirty = sum(bool(run.code.get("dirty")) for run in runs)
    devices = {run.system.get("cpu") if run.system.get("device") == "cpu"
               else run.system.get("device_name") or run.system.get("device")
               for run in runs}  # fmt: skip
    told = {
        "versions": ", ".join(sorted(versions)),
        "simulators": "; ".join(sorted(str(name) for name in simulators if name)) or "none",
        "hardware": ", ".join(sorted(str(name) for name in devices if name)) or "unknown",
        "commits": ", ".join(sorted(commits))
        + (f"; {dirty} runs with changes that were not committed" if dirty else ""),
    }
    counts = {
        "runs": len(runs),
        "lines": len(lines),
        "datasets": len({line.dataset for line in lines}),
        "failed": sum(len(line.failed) for line in lines),
        "missing": sum(len(line.missing) for line in lines),
        "refused": len(records.refused),
    }
    facts: dict[str, str] = publishable({k: f"{v:,}" for k, v in counts.items()} | told)
    return facts


def number_text(value: float | None, digits: int = 1) -> str:
    """For people; an unknown number is a dash."""
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")


def seconds_text(value: float | None) -> str:
    """Seconds as "45 s", "12.3 min" or "4.6 h"."""
    if value is None:
        return "–"
    if value < 120:
        return f"{value:.{0 if value >= 10 else 1}f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"
