"""Runs and tables in Weights & Biases; the only importer of wandb.

A logger is no reason to lose a run: without a key or a network everything is recorded offline, for
`wandb sync` to upload, and what goes wrong later is told once and then left.
"""

import hashlib
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offdiff.core.errors import MissingExtraError
from offdiff.core.files import write_text
from offdiff.outcome import episode_table, final_numbers
from offdiff.records import RECORD, RunRecord

if TYPE_CHECKING:
    import pandas

PROJECT = "offdiff"
"""Unless WANDB_PROJECT names another."""
ANSWER_SECONDS, INIT_SECONDS = 10.0, 60.0
"""How long a server may take to answer, and to begin a run, before it is recorded offline."""
RUN_ID = "wandb-id.txt"
"""In the run folder: which W&B run a resumed run continues."""
LONGEST_TAG, LONGEST_GROUP = 64, 128
"""Characters that W&B takes."""


class WandbLogger:
    """One W&B run for the seeds of a folder."""

    def __init__(
        self,
        folder: Path,
        seeds: Sequence[int],
        config: Mapping[str, Any],
        *,
        name: str,
        tags: Sequence[str],
        group: str,
        default_group: str,
    ) -> None:
        """name: the run folder's, unique; it makes the id.

        group: if empty, WANDB_RUN_GROUP counts, and without it `default_group`.
        """
        self.folder, self.seeds = folder, seeds
        self.id = hashlib.sha256(name.encode()).hexdigest()[:16]
        kept = folder / RUN_ID
        # A run begun anew replaces what W&B has of its id, a resumed one is continued there.
        resume = "allow" if kept.exists() and kept.read_text().strip() == self.id else None
        self._run = _start(
            folder,
            id=self.id,
            resume=resume,
            name=name,
            group=(group or os.environ.get("WANDB_RUN_GROUP") or default_group)[:LONGEST_GROUP],
            tags=[tag[:LONGEST_TAG] for tag in tags],
            job_type="run",
            config=dict(config),
        )
        write_text(kept, self.id + "\n")
        self._lost = False

    def log(self, update: int, rows: Sequence[Mapping[str, float]]) -> None:
        """Logs `seed-N/metric` at step `update`."""
        values = {
            f"seed-{seed}/{name}": value
            for seed, row in zip(self.seeds, rows, strict=True)
            for name, value in row.items()
        }
        self._try(lambda: self._run.log(values, step=update))

    def finish(self, records: Sequence[RunRecord], media: Sequence[Path]) -> None:
        """Writes the summary, the table of final episodes, media, and the artefact of the run.

        media: pictures and films below the run folder.
        """
        self._try(lambda: self._finish(records, media))

    def close(self) -> None:
        """Finishes the W&B run."""
        self._try(self._run.finish)

    def _finish(self, records: Sequence[RunRecord], media: Sequence[Path]) -> None:
        import wandb

        self._run.summary.update(_summary(records))
        shown: dict[str, Any] = {}
        tables = [episode_table(record) for record in records if record.eval]
        if tables:
            rows = [row for _, rows in tables for row in rows]
            shown["final_episodes"] = wandb.Table(columns=[*tables[0][0]], data=rows)
        artefact = wandb.Artifact(f"run-{self.id}", type="run")
        for path in media:
            name = path.relative_to(self.folder).as_posix()
            film = path.suffix == ".mp4"
            shown[name] = wandb.Video(str(path), format="mp4") if film else wandb.Image(str(path))
            artefact.add_file(str(path), name=name)
        for path in sorted(self.folder.rglob(RECORD)):
            artefact.add_file(str(path), name=path.relative_to(self.folder).as_posix())
        if shown:
            self._run.log(shown, step=records[0].updates)
        self._run.log_artifact(artefact)

    def _try(self, action: Callable[[], object]) -> None:
        if self._lost:
            return
        try:
            action()
        except Exception as error:  # W&B's have no common class
            self._lost = True
            reason = _first_line(error)
            print(f"offdiff: W&B logging has stopped ({reason}); the run goes on", file=sys.stderr)


def log_tables(
    tables: "Mapping[str, pandas.DataFrame]", *, name: str, folder: Path, files: Sequence[Path] = ()
) -> None:
    """Logs finished tables as one W&B run of job type "tables", the files as its artefact.

    tables: title -> frame. folder: where an offline recording is kept.
    """
    run = _start(folder, name=name, group=name[:LONGEST_GROUP], tags=["tables"], job_type="tables")
    import wandb

    run.log({title: _table(frame) for title, frame in tables.items()})
    artefact = wandb.Artifact(f"tables-{_plain(name)}", type="tables")
    for path in files:
        artefact.add_file(str(path), name=path.name)
    run.log_artifact(artefact)
    run.finish()


def _require_wandb() -> None:
    """Raises MissingExtraError unless wandb and Pillow are installed."""
    try:
        import PIL.Image  # noqa: F401  wandb needs it for pictures, at the end of a run
        import wandb  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("--wandb", "wandb") from error


def _start(folder: Path, **options: Any) -> Any:
    """A W&B run: online with a key and a network, else offline into `folder`."""
    _require_wandb()
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    start: Callable[..., Any] = partial(
        wandb.init,
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        dir=str(folder.resolve()),
        reinit="create_new",  # never the run of a script that calls offdiff
        # Output is not captured: W&B would take the progress bars for text.
        settings=wandb.Settings(init_timeout=INIT_SECONDS, silent=True, console="off"),
        **options,
    )
    if (mode := os.environ.get("WANDB_MODE")) in ("offline", "disabled"):
        return start(mode=mode)
    try:
        # Asking for a key would stop a run that nobody watches; `wandb sync` uploads it later.
        if not wandb.login(prompt=False, verify=False):
            reason = "no W&B key (`wandb login`)"
        elif not (reason := _unreachable(wandb.setup().settings.base_url)):
            return start()
    except Exception as error:  # W&B's have no common class
        reason = f"W&B has refused ({_first_line(error)})"
        if "id" in options:  # the failed start occupies it for as long as this process lives
            start = partial(start, id=f"{options['id']}-offline")
    print(f"offdiff: {reason}; recording offline", file=sys.stderr)
    return start(mode="offline")


def _unreachable(server: str) -> str:
    """Why the server cannot be reached; empty if it answers, whatever it says.

    Asked before `wandb.init`, whose failed start goes on trying and occupies the run's id.
    """
    try:
        urllib.request.urlopen(server, timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        return ""
    except (OSError, ValueError) as error:
        return f"W&B is not reachable at {server} ({_first_line(error)})"
    return ""


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _summary(records: Sequence[RunRecord]) -> dict[str, float]:
    """Every seed's final numbers, and their means over the seeds."""
    found = [final_numbers(record) for record in records]
    summary = {name: sum(one[name] for one in found) / len(found) for name in found[0]}
    for record, one in zip(records, found, strict=True):
        summary |= {f"seed-{record.seed}/{name}": value for name, value in one.items()}
    return summary


def _table(frame: "pandas.DataFrame") -> Any:
    import wandb

    return wandb.Table(dataframe=frame, allow_mixed_types=True)


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
