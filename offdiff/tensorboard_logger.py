"""Runs in TensorBoard: curves, final scores, hyperparameters, pictures, the episodes' table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offdiff.core.errors import MissingExtraError
from offdiff.outcome import episode_table, final_numbers, flat
from offdiff.records import RunRecord

FOLDER = "tensorboard"


class TensorBoardLogger:
    """Event files in the run folder, one group per seed."""

    def __init__(
        self, folder: Path, seeds: Sequence[int], config: Mapping[str, Any], resume_from: int = 0
    ) -> None:
        """resume_from: keep what was logged up to this update; later points are hidden."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("--tensorboard", "tensorboard") from error
        self.folder, self.seeds, self.config = folder, seeds, config
        purge = resume_from + 1 if resume_from else None
        self._writer = SummaryWriter(str(folder / FOLDER), purge_step=purge)

    def log(self, update: int, rows: Sequence[Mapping[str, float]]) -> None:
        """Writes scalars named `metric/seed`."""
        for seed, row in zip(self.seeds, rows, strict=True):
            for name, value in row.items():
                self._writer.add_scalar(f"{name}/{seed}", value, update)

    def finish(self, records: Sequence[RunRecord], media: Sequence[Path]) -> None:
        """Writes final scores, hyperparameters, the table of episodes and pictures.

        media: files below the run folder. Films are named in the text: event files hold none that
        a browser plays.
        """
        update = records[0].updates
        scores: dict[str, float] = {}
        for record in records:
            for name, value in final_numbers(record).items():
                scores[f"{name}/{record.seed}"] = value
        self._hyperparameters(scores)
        for name, value in scores.items():
            self._writer.add_scalar(name, value, update)
        for record in records:
            self._writer.add_text(f"episodes/{record.seed}", _markdown(record), update)
        films = [path for path in media if path.suffix == ".mp4"]
        if films:
            names = "\n".join(f"* {path.relative_to(self.folder)}" for path in films)
            self._writer.add_text("films in the run folder", names, update)
        for path in media:
            if path.suffix == ".png":
                self._picture(path, update)

    def close(self) -> None:
        """Flushes and closes."""
        self._writer.close()

    def _hyperparameters(self, scores: Mapping[str, float]) -> None:
        # `SummaryWriter.add_hparams` would make a run of its own in a folder named by the clock.
        from torch.utils.tensorboard.summary import hparams

        values = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in flat(self.config).items()
        }
        writer = self._writer._get_file_writer()
        for summary in hparams(values, dict(scores)):
            writer.add_summary(summary)

    def _picture(self, path: Path, update: int) -> None:
        import numpy as np
        from PIL import Image

        name = str(path.relative_to(self.folder))
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self._writer.add_image(name, pixels, update, dataformats="HWC")


def _markdown(record: RunRecord) -> str:
    columns, rows = episode_table(record)
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    return "\n".join([*lines, *(" | ".join(map(str, row)) for row in rows)])
