"""Where a run is shown besides its own folder: TensorBoard and Weights & Biases."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from offdiff.config import RunConfig
from offdiff.folder import RunFolder
from offdiff.records import RunRecord
from offdiff.results import plain
from offdiff.tensorboard_logger import TensorBoardLogger
from offdiff.wandb_logger import WandbLogger

MEDIA = ("*.png", "*.mp4")


class Tracker(Protocol):
    """A logger that is also told how the run ended."""

    def log(self, update: int, rows: Sequence[Mapping[str, float]]) -> None:
        """Takes one mapping of metrics per seed."""
        ...

    def finish(self, records: Sequence[RunRecord], media: Sequence[Path]) -> None:
        """Takes the records, and pictures and films below the run folder."""
        ...

    def close(self) -> None:
        """Flushes."""
        ...


class Trackers:
    """Those that a configuration asks for, of the seeds in one folder; none by default."""

    def __init__(
        self,
        config: RunConfig,
        run: RunFolder,
        folder: Path,
        seeds: Sequence[int],
        resume_from: int = 0,
    ) -> None:
        """folder: the run's, or that of a seed that trains by itself.

        resume_from: updates that an earlier process has made and logged.
        """
        self.folder = folder
        self.each: list[Tracker] = []
        settings = plain(config) | {"config_hash": run.hash}
        name = folder.relative_to(run.path.parents[2]).as_posix()
        if config.tensorboard:
            self.each.append(TensorBoardLogger(folder, seeds, settings, resume_from))
        if config.wandb:
            wandb = WandbLogger(
                folder,
                seeds,
                settings,
                name=name,
                tags=run.path.parts[-3:-1],
                group=config.wandb_group,
                default_group=f"{'/'.join(run.path.parts[-3:-1])}/{run.hash}",
            )
            self.each.append(wandb)

    def finish(self, records: Sequence[RunRecord]) -> None:
        """Shows the final evaluation, the media and the records of these seeds."""
        found = sorted(path for pattern in MEDIA for path in self.folder.rglob(pattern))
        # W&B keeps copies of its own in its folder.
        media = [path for path in found if "wandb" not in path.relative_to(self.folder).parts]
        for tracker in self.each:
            tracker.finish(records, media)

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for tracker in self.each:
            tracker.close()
