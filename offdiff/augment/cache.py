"""Trained world models, kept for later runs: one folder per data and configuration."""

from pathlib import Path

from offdiff.augment.base import Source
from offdiff.core.files import require_writable
from offdiff.core.numerics import threads
from offdiff.data.windows import episodes_hash
from offdiff.diffusion.config import ModelConfig
from offdiff.diffusion.distributed import agree, rank
from offdiff.diffusion.fit import CHECKPOINT, train_model
from offdiff.diffusion.world_model import MODEL, WorldModel, load_model


def model_folder(cache: Path, data_hash: str, config: ModelConfig) -> Path:
    """Where the model of some data and configuration is kept."""
    return cache / "models" / f"{data_hash[:16]}-{config.hash}"


def world_model(source: Source, config: ModelConfig, *, cpu_threads: int = 0) -> WorldModel:
    """The model of this data and configuration: from the cache, or trained and put there.

    Raises InputError for data it cannot be trained on and a cache that cannot be written.
    """
    data_hash = episodes_hash(source.episodes)
    folder = model_folder(source.cache, data_hash, config)
    with threads(cpu_threads):
        ensure_model(source, config, folder)
    # Read back even when just trained: a first run must not differ from a later one.
    return load_model(folder / MODEL, source.device, data_hash=data_hash)


def ensure_model(
    source: Source, config: ModelConfig, folder: Path, *, overwrite: bool = False
) -> bool:
    """Trains the model into its folder unless it is there; whether it was trained.

    A training that was killed goes on where its last checkpoint left it. Two runs that need the
    same model at the same time train it once: the second one waits. Under torchrun every process
    calls this; the first one alone takes the lock and looks, and its answer holds for all: if each
    waited for the lock, none would come to the training.
    Raises InputError as `world_model`.
    """
    from filelock import FileLock

    def train() -> WorldModel:
        return train_model(source.episodes, config, source.device, folder, progress=source.progress)

    if rank() > 0:
        if absent := agree(None):
            train()
        return absent
    file, checkpoint = folder / MODEL, folder / CHECKPOINT
    require_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if overwrite and file.exists():  # else an unfinished training goes on
            file.unlink()
            checkpoint.unlink(missing_ok=True)
        absent = agree(not file.exists())
        if absent:
            train().save(file)
            checkpoint.unlink(missing_ok=True)
    return absent
