"""`offdiff model train | info`: world models by themselves (`model sample` is in cli.augment)."""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from offdiff.cli.options import call_with_options
from offdiff.core.errors import InputError, unknown_name
from offdiff.core.files import require_writable
from offdiff.data.places import cache_dir

if TYPE_CHECKING:
    import torch

    from offdiff.augment.base import Source
    from offdiff.diffusion.config import ModelConfig

TRAIN = """Train a world model of a dataset, and keep it where `offdiff run --augment pgd` finds it.

Examples:
  offdiff model train --dataset hopper-medium-v2
  offdiff model train --dataset my.hdf5 --model.horizon 32 --out my-model.safetensors
  torchrun --nproc-per-node=4 -m offdiff model train --dataset hopper-medium-v2 --preset paper

A training that was stopped goes on when the command is repeated, and ends in the same model.

Chosen before the rest:
  --preset NAME      laptop: minutes on two cores (default); paper: the network of PGD's scripts
  --path NAME        edm: EDM's loss and noise levels (default); rf: rectified flow's, as in SD3
"""

Place = Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[FILE|FOLDER]")]


def main(command: str, args: list[str]) -> int:
    """Runs one of the commands. Raises InputError for bad input."""
    action: Callable[..., None] = info
    description = None
    if command == "model train":
        action, args = _training(args)
        description = TRAIN
    return call_with_options(action, args, command, description)


def info(place: Place = None) -> None:
    """Describe a world model; without one, list the models in the cache.

    Args:
        place: file of a world model, or folder that holds one
    """
    if place is None:
        _list(cache_dir() / "models")
    else:
        _describe(place.expanduser())


def _training(args: list[str]) -> tuple[Callable[..., None], list[str]]:
    """The command with the preset's defaults, and the options that are left for it."""
    from offdiff.diffusion.config import PAPER, RECTIFIED_FLOW, ModelConfig

    presets = {"laptop": ModelConfig(), "paper": PAPER}
    paths: dict[str, dict[str, Any]] = {"edm": {}, "rf": RECTIFIED_FLOW}
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--preset", default="laptop")
    first.add_argument("--path", default="edm")
    try:
        chosen, rest = first.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise InputError(f"{error} (see offdiff model train --help)") from error
    if chosen.preset not in presets:
        raise unknown_name("preset", chosen.preset, presets)
    if chosen.path not in paths:
        raise unknown_name("path", chosen.path, paths)
    defaults = dataclasses.replace(presets[chosen.preset], **paths[chosen.path])

    def train(
        *,
        dataset: str = "sample",
        out: Path | None = None,
        model: ModelConfig = defaults,
        clip_actions: bool = False,
        device: str = "auto",
        threads: int = 1,
        overwrite: bool = False,
    ) -> None:
        """Train a world model.

        Args:
            dataset: bundled sample, path of an HDF5 file, D4RL name, or Minari id
            out: also write the model to this file
            model: the world model and its training
            clip_actions: clip actions to the action box instead of refusing those outside
            device: auto, cpu, cuda or cuda:N; under torchrun every process takes its own GPU
            threads: CPU threads, 0 for all cores
            overwrite: throw an existing model away and train again
        """
        from offdiff.augment.base import Source
        from offdiff.core.numerics import threads as use_threads
        from offdiff.data.load import load_dataset

        cores = os.cpu_count() or 1
        if not 0 <= threads <= cores:
            raise InputError(f"threads must lie in [0, {cores}], got {threads}")
        place, data = _device(device), load_dataset(dataset, clip_actions=clip_actions)
        show = sys.stderr.isatty()
        source = Source(
            episodes=data.episodes, info=data.info, device=place, cache=cache_dir(), progress=show
        )
        with use_threads(threads):
            _train(source, model, out.expanduser() if out else None, overwrite)

    return train, rest


def _train(source: "Source", config: "ModelConfig", out: Path | None, overwrite: bool) -> None:
    """Trains unless the cache has the model; writes it to `out`, says where it is."""
    from offdiff.augment.cache import ensure_model, model_folder
    from offdiff.core.numerics import use_fastest_exact_matmul
    from offdiff.data.windows import episodes_hash
    from offdiff.diffusion.distributed import rank
    from offdiff.diffusion.world_model import MODEL, load_model

    data_hash = episodes_hash(source.episodes)
    folder = model_folder(source.cache, data_hash, config)
    require_writable(folder)
    if out is not None:
        _require_free(out, config, data_hash, overwrite)
    if source.device.type == "cpu":
        use_fastest_exact_matmul()  # as in a run
    start = time.monotonic()
    fresh = ensure_model(source, config, folder, overwrite=overwrite)
    if rank() > 0:
        return
    seconds = time.monotonic() - start
    model = load_model(folder / MODEL, source.device, data_hash=data_hash)
    if out is not None and (fresh or not out.exists()):
        model.save(out)
    if not fresh:
        print("the model exists already; --overwrite trains it again")
    print(*filter(None, (folder / MODEL, out)), sep="\n")
    parameters = sum(p.numel() for p in model.denoiser.parameters())
    print(
        f"{config.network}, {config.horizon} transitions, {parameters:,} parameters, "
        f"validation loss {model.validation[-1][1]:.4f} after {config.steps} steps"
        + (f", {seconds:.0f} s" if fresh else "")
    )


def _device(name: str) -> "torch.device":
    """The device of this process: under torchrun each has its own GPU."""
    import torch

    from offdiff.core.numerics import choose_device

    device = choose_device(name)
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        device = choose_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(device)  # NCCL asks for the current one
    return device


def _require_free(out: Path, config: "ModelConfig", data_hash: str, overwrite: bool) -> None:
    """Raises InputError unless `out` can be written, or is this model already."""
    import torch

    from offdiff.diffusion.world_model import load_model

    if out.is_dir():
        raise InputError(f"{out} is a folder; name a file in it, such as {out}/model.safetensors")
    require_writable(out.parent)
    if overwrite or not out.exists():
        return
    try:
        same = load_model(out, torch.device("cpu"), data_hash=data_hash).config == config
    except InputError:
        same = False
    if not same:
        raise InputError(
            f"{out} exists already and is another model or none; choose another name, or pass "
            "--overwrite to train again and replace it"
        )


def _describe(place: Path) -> None:
    """One model, and how its training went."""
    import torch

    from offdiff.diffusion.world_model import describe, load_model

    model = load_model(place, torch.device("cpu"))
    rows = {name.replace("_", " "): value for name, value in describe(model).items()}
    curve = {f"validation loss after {step} steps": loss for step, loss in model.validation}
    _print([(name, _text(value)) for name, value in (rows | curve).items()], title=str(place))


def _list(folder: Path) -> None:
    """The models in the cache."""
    import torch

    from offdiff.diffusion.world_model import MODEL, load_model

    rows = []
    for path in sorted(folder.glob("*")):
        if not (path / MODEL).exists():
            continue
        try:
            m = load_model(path, torch.device("cpu"))
            numbers = (str(m.config.horizon), m.data_hash[:16], _text(m.validation[-1][1]))
            rows.append((path.name, m.config.network, *numbers))
        except InputError:  # one damaged file must not hide the others
            rows.append((path.name, "damaged", "", "", ""))
    if not rows:
        print(f"no models in {folder}; train one with: offdiff model train --dataset sample")
        return
    headings = ("folder", "network", "horizon", "data hash", "validation loss")
    _print(rows, *headings, title=str(folder))


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _print(rows: Sequence[tuple[str, ...]], *headings: str, title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*headings, title=title, show_header=bool(headings))
    for row in rows:
        table.add_row(*row)
    # Off a terminal rich would cut everything to 80 columns.
    Console(width=None if sys.stdout.isatty() else 180).print(table)
