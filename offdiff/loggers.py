"""Where metrics go while a run trains: the terminal, CSV."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from offdiff.core.errors import InputError
from offdiff.core.files import replacing

Rows = Sequence[Mapping[str, float]]
"""One mapping of metrics per seed."""


class Logger(Protocol):
    """Takes the metrics of all seeds at one update."""

    def log(self, update: int, rows: Rows) -> None:
        """Records them."""
        ...

    def close(self) -> None:
        """Flushes."""
        ...


class CSVLogger:
    """`metrics.csv`: one line per log and seed, without clock times: resumed runs agree bitwise."""

    def __init__(self, path: Path, seeds: Sequence[int], resume_from: int = 0) -> None:
        """resume_from: keep what was logged up to this update; later lines are dropped."""
        self.path, self.seeds = path, seeds
        self._columns: list[str] = []
        kept = self._lines_up_to(resume_from) if resume_from and path.exists() else []
        with replacing(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept))
        if kept:
            self._columns = kept[0].split(",")
        self._file = path.open("a", newline="")

    def log(self, update: int, rows: Rows) -> None:
        """Appends one line per seed and flushes."""
        try:
            writer = csv.writer(self._file, lineterminator="\n")
            if not self._columns:
                self._columns = ["update", "seed", *rows[0]]
                writer.writerow(self._columns)
            for seed, row in zip(self.seeds, rows, strict=True):
                values = {"update": update, "seed": seed, **row}
                writer.writerow([values.get(column, "") for column in self._columns])
            self._file.flush()
        except OSError as error:
            raise InputError(
                f"cannot write {self.path}: {error.strerror}; make room there"
            ) from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _lines_up_to(self, update: int) -> list[str]:
        # The last line may be cut short by a kill; it is later than the checkpoint and goes anyway.
        header, *lines = self.path.read_text().splitlines() or [""]

        def early(line: str) -> bool:
            first = line.partition(",")[0]
            return first.isdigit() and int(first) <= update

        return [header, *filter(early, lines)] if header.startswith("update,") else []


class ProgressBar:
    """A live line on stderr: updates done, updates per second, time left, the latest losses."""

    def __init__(self, total: int, completed: int, show: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=Console(stderr=True),
            disable=not show,
        )
        self._task = self._progress.add_task(
            "training", total=total, completed=completed, speed="", losses=""
        )

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def advance(self, updates: int) -> None:
        """Shows that `updates` more are done."""
        self._progress.advance(self._task, updates)
        speed = self._progress.tasks[self._task].speed
        if speed:
            self._progress.update(self._task, speed=f"{speed:.0f} updates/s")

    def show(self, rows: Rows) -> None:
        """Shows the mean over seeds of the latest metrics."""
        names = [name for name in rows[0] if name.endswith(("loss", "score"))][:4]
        means = {name: sum(row[name] for row in rows) / len(rows) for name in names}
        text = " ".join(f"{name} {value:.3g}" for name, value in means.items())
        self._progress.update(self._task, losses=text)
