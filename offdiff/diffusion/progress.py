"""A progress bar with time left, on stderr."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class StepBar:
    """Counts steps of one piece of work; a context."""

    def __init__(self, title: str, total: int, done: int, shown: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=not shown,
        )
        self._task = self._progress.add_task(title, total=total, completed=done, note="")

    def advance(self, steps: int) -> None:
        """So many more steps are done."""
        self._progress.advance(self._task, steps)

    def show(self, note: str) -> None:
        """A few words beside the bar."""
        self._progress.update(self._task, note=note)

    def __enter__(self) -> "StepBar":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._progress.stop()
