"""Trained world models, kept for later runs: one folder per data and configuration."""

from pathlib import Path

from offdiff.augment.base import Source
from offdiff.core.files import require_writable
from offdiff.core.numerics import threads
from offdiff.data.windows import episodes_hash
from offdiff.diffusion.config import ModelConfig
from offdiff.diffusion.fit import CHECKPOINT, train_model
from offdiff.diffusion.world_model import MODEL, WorldModel, load_model


def model_folder(cache: Path, data_hash: str, config: ModelConfig) -> Path:
    """Where the model of some data and configuration is kept."""
    return cache / "models" / f"{data_hash[:16]}-{config.hash}"


def world_model(source: Source, config: ModelConfig, *, cpu_threads: int = 0) -> WorldModel:
    """The model of this data and configuration: from the cache, or trained and put there.

    A training that was killed goes on where its last checkpoint left it. Two runs that need the
    same model at the same time train it once: the second one waits.
    Raises InputError for data it cannot be trained on and a cache that cannot be written.
    """
    from filelock import FileLock

    data_hash = episodes_hash(source.episodes)
    folder = model_folder(source.cache, data_hash, config)
    require_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"), threads(cpu_threads):
        if not (folder / MODEL).exists():
            model = train_model(
                source.episodes, config, source.device, folder, progress=source.progress
            )
            model.save(folder / MODEL)
            (folder / CHECKPOINT).unlink(missing_ok=True)
        # Read back even when just trained: a first run must not differ from a later one.
        return load_model(folder / MODEL, source.device, data_hash=data_hash)
