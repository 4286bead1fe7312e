"""`offdiff augment` and `offdiff model sample`: synthetic experience as a dataset of its own."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from offdiff.cli.run import augment_config
from offdiff.core.errors import InputError, unknown_name
from offdiff.core.registry import names

if TYPE_CHECKING:
    from offdiff.data.dataset import Dataset

INTRODUCTION = """Write synthetic experience as a dataset, with how it was made beside it.

Examples:
  offdiff augment --augment unguided --dataset hopper-medium-v2 --to synthetic.hdf5
  offdiff augment --augment pgd --policy results/runs/hopper-mixed-sample/iql/0-1a2b3c4d \\
      --transitions 100000 --to guided.hdf5               guided by a policy that was trained
  offdiff augment --augment world-model --policy RUN --to me/hopper/rollouts-v0
  offdiff augment --augment pgd --policy RUN --augment.strength auto --to guided.hdf5

Every window becomes an episode. Then: offdiff run --algo iql --dataset guided.hdf5

Chosen before the rest:
  --augment NAME     {augmenters}, or module:Class (default pgd)
  --preset NAME      laptop: minutes on two cores (default); paper: at the sizes of its paper
"""

File = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]


def main(command: str, args: list[str]) -> int:
    """Parses, generates, prints where the dataset is; the exit code."""
    if command == "model sample":
        flags = (tyro.conf.FlagCreatePairsOff,)
        tyro.cli(sample, args=args, prog=f"offdiff {command}", config=flags)
        return 0
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--augment", default="pgd")
    first.add_argument("--preset", default="laptop")
    try:
        chosen, rest = first.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise InputError(f"{error} (see offdiff augment --help)") from error
    if chosen.preset not in ("laptop", "paper"):
        raise unknown_name("preset", chosen.preset, ("laptop", "paper"))
    augment = augment_config(chosen.augment, paper=chosen.preset == "paper")
    if augment is None:
        raise InputError("--augment none makes nothing; choose an augmenter, such as unguided")
    from offdiff.synthetic_data import SyntheticConfig, make_synthetic

    options = tyro.cli(
        SyntheticConfig,
        args=rest,
        default=SyntheticConfig(to=tyro.MISSING, augment=augment),
        prog=f"offdiff {command}",
        description=INTRODUCTION.format(augmenters=", ".join(names("augmenters"))),
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff),
    )
    _print(*make_synthetic(options, progress=sys.stderr.isatty()))
    return 0


def sample(
    file: File,
    *,
    transitions: int,
    to: str,
    levels: int = 16,
    solver: Literal["auto", "heun", "euler", "dpmpp", "unipc", "midpoint"] = "auto",
    seed: int = 0,
    device: str = "auto",
    threads: int = 1,
    overwrite: bool = False,
) -> None:
    """Write windows of a world model as a dataset, guided by nothing.

    The file alone knows neither environment nor action bounds nor which observations are
    believable: actions are written in [-1, 1], nothing is cut. With the data, use
    `offdiff augment --augment unguided --augment.model-file FILE --dataset D`.

    Args:
        file: world model, or folder that holds one
        transitions: how many, before windows are cut at terminals
        to: new file ending in .hdf5, or new Minari id such as me/hopper/unguided-v0
        levels: noise levels of the sampler
        solver: heun, midpoint: second order, two network calls per level; dpmpp, unipc: second
            and third, one; euler: first; auto: heun, and euler for distilled models
        seed: of everything random
        device: auto, cpu, cuda or cuda:N
        threads: CPU threads, 0 for all cores
        overwrite: replace an existing HDF5 file
    """
    from offdiff.augment.diffusion import UnguidedConfig
    from offdiff.synthetic_data import SyntheticConfig, sample_model

    try:
        augment = UnguidedConfig(levels=levels, solver=solver, threads=threads)
    except ValueError as error:
        raise InputError(f"{error}; change the option of that name") from error
    places = SyntheticConfig(to=to, augment=augment, device=device, overwrite=overwrite)
    config = replace(places, transitions=transitions, seed=seed, threads=threads)
    _print(*sample_model(file.expanduser(), config))


def _print(path: Path, dataset: "Dataset") -> None:
    made = dataset.episodes
    print(path)
    print(
        f"{len(made)} transitions in {made.n_episodes} episodes, {made.terminal.sum()} of them "
        "ended by a terminal"
    )
