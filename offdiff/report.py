"""Records -> one HTML page that opens anywhere: scores, figures, pictures, provenance."""

import base64
import dataclasses
import json
import math
import mimetypes
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from offdiff import tables
from offdiff.core.errors import InputError, MissingExtraError
from offdiff.core.files import write_text
from offdiff.lines import Line
from offdiff.records import UNSEALED, Records, RunRecord
from offdiff.report_figures import figures, method_names

PARTS = files("offdiff") / "report_page"
COLUMNS = (
    *(("dataset", "text"), ("method", "text"), ("score", "number"), ("seeds", "")),
    *(("behaviour", "number"), ("success", "number"), ("updates", "number"), ("runs", "number")),
    *(("training", "number"), ("ms / decision", "number")),
)
"""Of the table: heading, and how it is sorted."""
PUBLISHED = (("published", ""),)
MEDIA = ("*.png", "*.gif", "*.mp4")
"""Pictures and films that lie beside a run's record, or in the run's folder."""


@dataclasses.dataclass(frozen=True)
class Medium:
    """A picture or film of a run."""

    title: str
    film: bool
    source: str
    """A data URI; empty if it was too large to be taken into the page."""
    name: str


def write_report(
    out: Path,
    title: str,
    lines: Sequence[Line],
    found: Records,
    places: Sequence[Path],
    *,
    draws: int = 2_000,
    megabytes: float = 30.0,
) -> int:
    """Writes the page and gives its bytes. The same records and media give the same bytes.

    places: where media are looked for, by the run_id of the records. megabytes: of media that the
    page takes in; those beyond are named, not shown. Raises InputError if there is nothing to show
    or `out` cannot be written, MissingExtraError without the extra `report`.
    """
    if not any(line.runs for line in lines):
        raise InputError(
            "there are no finished runs to report; make some with `offdiff run` or `offdiff bench`"
        )
    try:
        import jinja2
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingExtraError("a report", "report") from error
    drawn = figures(lines, draws)
    rows = [row_of(line, number) for number, line in enumerate(lines)]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    text = environment.from_string(_part("page.html")).render(
        title=title,
        style=_part("style.css"),
        script=_part("page.js"),
        plotly=get_plotlyjs(),
        rows=rows,
        columns=COLUMNS + PUBLISHED * any(row["published"] for row in rows),
        families=sorted({line.family for line in lines}),
        datasets=sorted({line.dataset for line in lines}),
        methods=method_names(lines),
        figures=drawn,
        media=list(_media(lines, places, megabytes * 1e6)),
        counts=counts(lines, found),
        refused=[_public(reason) for reason in found.refused],
        failures=[failure for failure in found.failed if _concerns(lines, failure.dataset)],
        data=_json(
            {
                "methods": method_names(lines),
                "figures": {figure["id"]: figure for figure in drawn},
                "lines": [[provenance(run) for run in line.runs] for line in lines],
            }
        ),
    )
    write_text(out, text)
    return len(text.encode())


def row_of(line: Line, number: int) -> dict[str, Any]:
    """A row of the table of scores: what is shown, and the numbers that it is sorted by."""
    cells = tables.score_row(line)
    span = _span(line)
    return cells | {
        "number": number,
        "label": line.method.name,
        "points": [_place(value, span) for value in line.values],
        "bar": _bar(cells, span),
        "lost": ", ".join(f"{cells[key]} {key}" for key in ("failed", "missing") if cells[key]),
        "has": {key: not (isinstance(v, float) and math.isnan(v)) for key, v in cells.items()},
    }


def counts(line_list: Sequence[Line], found: Records) -> dict[str, int]:
    """How many runs there are, and how many are not."""
    runs = [run for line in line_list for run in line.runs]
    return {
        "runs": len(runs),
        "lines": len(line_list),
        "failed": sum(len(line.failed) for line in line_list),
        "missing": sum(len(line.missing) for line in line_list),
        "refused": len(found.refused),
        "without digest": sum(run.digest == UNSEALED for run in runs),
    }


def provenance(run: RunRecord) -> dict[str, Any]:
    """Everything that a click on a row shows of one run."""
    outcome = run.eval
    return {
        "run_id": run.run_id,
        "seed": run.seed,
        "command": run.code.get("command", ""),
        "facts": {
            "commit": str(run.code.get("git_commit")) + (" + changes" * bool(run.code["dirty"])),
            "data": f"{run.dataset}, SHA-256 {run.data['file_sha256']}",
            "environment": str(outcome.get("env_id")),
            "fidelity": str(outcome.get("fidelity")),
            "simulator": str(outcome.get("simulator_version")),
            "actions": str(outcome.get("action_mode")),
            "constants": str(outcome.get("constants_source", "none")),
            "hyperparameters": str(run.algo.get("hyperparameter_provenance")),
            "machine": f"{run.system.get('cpu')}, {run.system.get('device')}",
            "versions": f"torch {run.system.get('torch')}, Python {run.system.get('python')}",
            "record": run.digest,
        },
        "values": outcome.get("scores", outcome.get("returns", [])),
        "unit": "score" if "scores" in outcome else "return",
        "config": run.config,
        "cost": run.cost,
    }


def _span(line: Line) -> tuple[float, float]:
    """What the strip beside a score reaches from and to."""
    return (0.0, 120.0) if line.unit == "score" else (0.0, max([*line.values, 1.0]) * 1.1)


def _place(value: float, span: tuple[float, float]) -> float:
    """Per cent of the strip's width."""
    return round(min(max(100 * (value - span[0]) / (span[1] - span[0]), 0.0), 100.0), 2)


def _bar(cells: dict[str, Any], span: tuple[float, float]) -> tuple[float, float] | None:
    """Where the interval begins, and how wide it is."""
    if math.isnan(cells["low"]):
        return None
    low, high = _place(cells["low"], span), _place(cells["high"], span)
    return low, round(high - low, 2)


def _media(lines: Sequence[Line], places: Sequence[Path], budget: float) -> Iterator[Medium]:
    for line in lines:
        for run in line.runs:
            roots = [place for place in places if _within(place, run.run_id)]
            for folder in [root / part for root in roots for part in _folders(run, line)]:
                for path in sorted(path for kind in MEDIA for path in folder.glob(kind)):
                    size = path.stat().st_size
                    source = ""
                    if size <= budget:
                        budget -= size
                        kind = mimetypes.guess_type(path.name)[0]
                        code = base64.b64encode(path.read_bytes()).decode()
                        source = f"data:{kind};base64,{code}"
                    title = f"{path.stem}: {line.method.name} on {line.dataset}, seed {run.seed}"
                    yield Medium(title, path.suffix == ".mp4", source, f"{run.run_id}/{path.name}")


def _within(place: Path, run_id: str) -> bool:
    """Whether the run's folder is there, and where it says: a record may come from anywhere."""
    folder = (place / run_id).resolve()
    return folder.is_dir() and folder.parent.is_relative_to(place.resolve())


def _folders(run: RunRecord, line: Line) -> list[Path]:
    """The seed's folder, and with the first seed that of the run."""
    own = Path(run.run_id)
    return [own, own.parent] if run is line.runs[0] else [own]


def _concerns(lines: Sequence[Line], dataset: str) -> bool:
    return any(line.dataset == dataset for line in lines)


def _public(reason: str) -> str:
    """Without the folders of this machine: a page may be published."""
    head, *words = reason.split(" ")
    return " ".join(["/".join(Path(head).parts[-5:]), *words])


def _json(values: Any) -> str:
    """JSON that may stand in a script element, whatever names it holds."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")
