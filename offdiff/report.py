"""Records -> one HTML page that opens anywhere: scores, figures, pictures, provenance."""

import base64
import dataclasses
import hashlib
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
from offdiff.publishable import publishable
from offdiff.records import UNSEALED, Failure, Records, RunRecord
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
    if not lines:
        raise InputError(
            "there are no runs to report; make some with `offdiff run` or `offdiff bench`"
        )
    try:
        import jinja2
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingExtraError("a report", "report") from error
    drawn = figures(lines, draws)
    rows = [row_of(line, number, _span(line, lines)) for number, line in enumerate(lines)]
    plotly, script = get_plotlyjs(), _part("page.js")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    text = environment.from_string(_part("page.html")).render(
        title=title,
        style=_part("style.css"),
        policy=_policy(plotly, script),
        script=script,
        plotly=plotly,
        rows=rows,
        columns=COLUMNS + PUBLISHED * any(row["published"] for row in rows),
        families=sorted({line.family for line in lines}),
        datasets=sorted({line.dataset for line in lines}),
        methods=method_names(lines),
        figures=drawn,
        media=list(_media(lines, places, megabytes * 1e6)),
        counts=counts(lines, found),
        refused=[_from_runs(reason) for reason in found.refused],
        failures=[
            publishable(dataclasses.asdict(failure))
            for failure in found.failed
            if any(_failed(line, failure) for line in lines)
        ],
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


def row_of(line: Line, number: int, span: tuple[float, float]) -> dict[str, Any]:
    """A row of the table of scores: what is shown, and the numbers that it is sorted by.

    span: what the strip beside the score reaches from and to.
    """
    cells = tables.score_row(line)
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
    """Everything that a click on a row shows of one run, without the folders of a machine."""
    outcome = run.eval
    shown = {
        "run_id": run.run_id,
        "seed": run.seed,
        "command": run.code.get("command", ""),
        "facts": {
            "commit": str(run.code.get("git_commit")) + " + changes" * bool(run.code.get("dirty")),
            "data": f"{run.dataset}, SHA-256 {run.data.get('file_sha256')}",
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
    published: dict[str, Any] = publishable(shown)
    return published


def _span(line: Line, lines: Sequence[Line]) -> tuple[float, float]:
    """One axis for all strips of scores, and one for all returns on a dataset."""
    if line.unit == "score":
        return 0.0, 120.0
    same = [value for one in lines if one.dataset == line.dataset for value in one.values]
    return min([0.0, *same]), max([1.0, *same]) * 1.1


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
            own = next((found for place in places if (found := _folder(place, run.run_id))), None)
            # With the first seed, what lies in the run's folder: it is of all seeds.
            folders = [own, own.parent] if run is line.runs[0] and own else [own] if own else []
            for folder in folders:
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


def _folder(place: Path, run_id: str) -> Path | None:
    """The run's folder below a place, which may be a folder of one dataset or method, too."""
    parts = Path(run_id).parts
    for skipped in range(len(parts)):
        folder = place.joinpath(*parts[skipped:]).resolve()
        # A record may come from anywhere: what it names must not lead out of the place.
        if folder.is_dir() and folder.parent.is_relative_to(place.resolve()):
            return folder
    return None


def _failed(line: Line, failure: Failure) -> bool:
    method = (line.method.name, line.method.updates)
    return (line.dataset, *method) == (failure.dataset, failure.method, failure.updates)


def _policy(*scripts: str) -> str:
    """Content security policy: these scripts run and no other, and nothing is fetched."""
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data:; media-src data:; base-uri 'none'; form-action 'none'"
    )


def _from_runs(reason: str) -> str:
    """A reason that begins with a file, which is named from the dataset on."""
    head, *words = reason.split(" ")
    return " ".join(["/".join(Path(head).parts[-5:]), *words])


def _json(values: Any) -> str:
    """JSON that may stand in a script element, whatever names it holds."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")
