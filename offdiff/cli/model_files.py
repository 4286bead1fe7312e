"""World models named on a command line, with the data that they model."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from offdiff.core.errors import InputError
from offdiff.core.files import require_writable
from offdiff.core.numerics import use_fastest_exact_matmul

if TYPE_CHECKING:
    import torch

    from offdiff.augment.base import Source
    from offdiff.diffusion.world_model import WorldModel

File = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
Files = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]


def load(file: Path, dataset: str, device: str) -> "tuple[Source, WorldModel]":
    """The data, and a model of them."""
    from offdiff.augment.base import Source
    from offdiff.core.numerics import choose_device
    from offdiff.data.load import load_dataset
    from offdiff.data.places import cache_dir

    place: torch.device = choose_device(device)
    data = load_dataset(dataset)
    source = Source(
        episodes=data.episodes, info=data.info, device=place, cache=cache_dir(),
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    if place.type == "cpu":
        use_fastest_exact_matmul()
    return source, load_of(file, source)


def load_of(file: Path, source: "Source") -> "WorldModel":
    """A model of the same data. Raises InputError for any other."""
    from offdiff.data.windows import episodes_hash
    from offdiff.diffusion.world_model import load_model

    return load_model(file.expanduser(), source.device, data_hash=episodes_hash(source.episodes))


def require_free(out: Path, overwrite: bool) -> None:
    """Raises InputError unless a new file can be written there."""
    if out.is_dir():
        raise InputError(f"{out} is a folder; name a file in it, such as {out}/model.safetensors")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists already; choose another name, or pass --overwrite")
    require_writable(out.parent)
