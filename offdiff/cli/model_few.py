"""`offdiff model reflow | distill | compare`: models that need few network calls, and how good."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from offdiff.core.errors import InputError
from offdiff.core.files import require_writable, write_text
from offdiff.core.numerics import use_fastest_exact_matmul
from offdiff.diffusion.reflow import PairsConfig

if TYPE_CHECKING:
    import torch

    from offdiff.augment.base import Source
    from offdiff.diffusion.config import ModelConfig
    from offdiff.diffusion.couplings import Pairs
    from offdiff.diffusion.solvers import Solver
    from offdiff.diffusion.world_model import WorldModel
    from offdiff.few_steps import Comparison

REFLOW = """Train a student on pairs of noise and a teacher's windows: 2 to 8 network calls will do.

Examples:
  offdiff model train --dataset hopper-medium-v2 --out teacher.safetensors
  offdiff model reflow teacher.safetensors --dataset hopper-medium-v2 --out student.safetensors
  offdiff run --dataset hopper-medium-v2 --augment pgd --augment.levels 4 \\
      --augment.model-file student.safetensors

The pairs are kept beside --out and made once. What was stopped goes on when repeated.
"""
DISTILL = """Train a student that makes a window in one network call.

Examples:
  offdiff model distill reflowed.safetensors --dataset hopper-medium-v2 --out one.safetensors
  offdiff model distill teacher.safetensors --dataset hopper-medium-v2 --out small.safetensors \\
      --network dit-xs

Best from a reflowed model. More calls make it worse, so they are refused. A smaller network starts
afresh; --anneal lets it slide into the pairs (SlimFlow), which helps when pairs are few.
"""
COMPARE = """Quality against network calls: one table, one plot.

Examples:
  offdiff model compare teacher.safetensors student.safetensors --dataset hopper-medium-v2
  offdiff model compare *.safetensors --dataset hopper-medium-v2 --calls 1 2 4 --to comparison

All models get the same noise; students are compared with what their teacher makes of it, if it is
among the models.
"""
File = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
Files = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]


def main(command: str, args: list[str]) -> int:
    """Runs one of the commands. Raises InputError for bad input."""
    actions: dict[str, tuple[Callable[..., None], str]] = {
        "model reflow": (reflow, REFLOW),
        "model distill": (distill, DISTILL),
        "model compare": (compare, COMPARE),
    }
    action, description = actions[command]
    tyro.cli(
        action,
        args=args,
        prog=f"offdiff {command}",
        description=description,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return 0


def reflow(
    teacher: File,
    /,
    *,
    out: Path,
    dataset: str = "sample",
    make: PairsConfig = PairsConfig(),  # noqa: B008  frozen
    pairs_file: Path | None = None,
    steps: int = 0,
    learning_rate: float = 0.0,
    objective: Literal["v", "edm", "x0"] = "v",
    law: Literal["u-shape", "uniform", "normal"] = "u-shape",
    metric: Literal["huber", "l2"] = "huber",
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """Train a nearly straight student.

    Args:
        teacher: file of a world model
        out: the student's file
        dataset: what the teacher was trained on
        make: the pairs
        pairs_file: keep the pairs here, and use them if they are there; default: beside `out`
        steps: gradient steps; 0 for half of the teacher's
        learning_rate: peak; 0 for a third of the teacher's
        objective: whose error is made small: the velocity's (rectified flow), the clean window's,
            or the teacher's own (rectified diffusion)
        law: of the noise level; u-shape draws both ends more often
        metric: squared error or pseudo-Huber
        device: auto, cpu, cuda or cuda:N
        overwrite: replace `out`
    """
    from offdiff.diffusion.reflow import reflow_config

    _require_free(out, overwrite)
    source, model = _load(teacher, dataset, device)
    changes = {"objective": objective, "law": law, "metric": metric}
    config = _with(reflow_config(model.config), steps, learning_rate, **changes)
    pairs = _pairs(model, source, make, pairs_file or out.with_suffix(".pairs.safetensors"))
    _student(model, pairs, source, config, out, "reflow")


def distill(
    teacher: File,
    /,
    *,
    out: Path,
    dataset: str = "sample",
    make: PairsConfig = PairsConfig(),  # noqa: B008  frozen
    pairs_file: Path | None = None,
    network: str = "",
    anneal: float = 0.0,
    steps: int = 0,
    learning_rate: float = 0.0,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """Train a student of one call.

    Args:
        teacher: file of a world model, best a reflowed one
        out: the student's file
        dataset: what the teacher was trained on
        make: the pairs
        pairs_file: keep the pairs here, and use them if they are there; default: beside `out`
        network: a smaller network; default: the teacher's
        anneal: share of the training in which independent noise gives way to the pairs'
        steps: gradient steps; 0 for half of the teacher's
        learning_rate: peak; 0 for a third of the teacher's
        device: auto, cpu, cuda or cuda:N
        overwrite: replace `out`
    """
    from offdiff.diffusion.reflow import distil_config

    if not 0 <= anneal < 1:
        raise InputError(f"anneal must lie in [0, 1), got {anneal}")
    _require_free(out, overwrite)
    source, model = _load(teacher, dataset, device)
    config = distil_config(model.config)
    config = _with(config, steps, learning_rate, network=network or config.network)
    pairs = _pairs(model, source, make, pairs_file or out.with_suffix(".pairs.safetensors"))
    _student(model, pairs.annealed(anneal), source, config, out, "distil")


def compare(
    files: Files,
    /,
    *,
    dataset: str = "sample",
    calls: tuple[int, ...] = (1, 2, 4, 8, 16, 32),
    solvers: tuple[Literal["auto", "heun", "euler", "dpmpp", "unipc", "midpoint"], ...] = (
        "auto",
        "dpmpp",
        "unipc",
    ),
    windows: int = 256,
    seed: int = 0,
    to: Path | None = None,
    device: str = "auto",
) -> None:
    """Compare models at equal numbers of network calls.

    Args:
        files: world models of one dataset
        dataset: what they were trained on
        calls: numbers of network calls
        solvers: of each model; auto is Heun, and Euler for students
        windows: that every model makes
        seed: of the noise
        to: also write TO.json, TO.md and, with the extra `plot`, TO.png
        device: auto, cpu, cuda or cuda:N
    """
    from offdiff.few_steps import compare as measure

    if not files:
        raise InputError("name the files of one or more world models")
    if min(calls, default=0) < 1 or windows < 2:
        raise InputError("calls must be at least 1, and windows at least 2")
    if to is not None:
        require_writable(to.parent)
    source, first = _load(files[0], dataset, device)
    models: dict[str, tuple[WorldModel, tuple[Solver, ...]]] = {}
    for file in files:
        model = first if file == files[0] else _model(file, source)
        own: tuple[Solver, ...] = ("auto",) if model.lineage.max_calls else solvers
        models[file.name.removesuffix(".safetensors")] = (model, own)
    comparison = measure(
        models, source.episodes, source.info, calls,
        windows=windows, seed=seed, progress=source.progress,
    )  # fmt: skip
    print(page(comparison, dataset))
    if to is not None:
        write_text(to.with_suffix(".json"), json.dumps(comparison.as_json(), indent=1) + "\n")
        write_text(to.with_suffix(".md"), page(comparison, dataset))
        _plot(comparison, to.with_suffix(".png"))


def page(comparison: "Comparison", title: str) -> str:
    """The comparison as Markdown."""
    head = ("model", "solver", "levels", "calls", "RMSE to the ODE", "energy distance",
            "dynamics error", "median", "terminals", "s per 100k")  # fmt: skip
    rows = [head, ("---",) * len(head)]
    for point in comparison.points:
        numbers = (point.paired, point.energy, point.dynamics, point.dynamics_median)
        rows.append((
            point.model, point.solver, point.levels, str(point.calls),
            *("-" if value is None else f"{value:.2g}" for value in numbers),
            f"{point.terminal_rate:.2%}", f"{point.seconds_per_100k:.3g}",
        ))  # fmt: skip
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    floor = comparison.dynamics_floor
    note = (
        f"The data: energy distance {comparison.energy_floor:.2g} between two samples, terminals "
        f"{comparison.terminal_rate:.2%}"
        + (f", dynamics error {floor:.2g}." if floor is not None else ".")
    )
    return "\n".join([f"# Few network calls: {title}", "", note, "", *lines, ""])


def _plot(comparison: "Comparison", path: Path) -> None:
    from offdiff.few_step_plots import plot_few_steps
    from offdiff.plots import can_plot

    if can_plot():
        plot_few_steps(comparison, path)
    else:
        print("no plot: pip install 'offdiff[plot]'", file=sys.stderr)


def _load(file: Path, dataset: str, device: str) -> "tuple[Source, WorldModel]":
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
    return source, _model(file, source)


def _model(file: Path, source: "Source") -> "WorldModel":
    from offdiff.data.windows import episodes_hash
    from offdiff.diffusion.world_model import load_model

    return load_model(file.expanduser(), source.device, data_hash=episodes_hash(source.episodes))


def _pairs(teacher: "WorldModel", source: "Source", make: PairsConfig, file: Path) -> "Pairs":
    """Pairs from the file, or made and written to it."""
    from offdiff.diffusion.couplings import load_pairs
    from offdiff.diffusion.fit import split
    from offdiff.diffusion.reflow import make_pairs

    if file.exists():
        return load_pairs(file, source.device, teacher.hash)
    require_writable(file.parent)
    windows, _ = split(source.episodes, teacher.config, source.device)
    pairs = make_pairs(teacher, windows, make, progress=source.progress)
    pairs.save(file)
    print(f"{len(pairs):,} pairs of {make.levels} calls each in {file}")
    return pairs


def _with(config: "ModelConfig", steps: int, learning_rate: float, **changes: Any) -> "ModelConfig":
    """The configuration with what was asked for; 0 keeps what there is."""
    try:
        return replace(
            config,
            steps=steps or config.steps,
            learning_rate=learning_rate or config.learning_rate,
            **changes,
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def _student(
    teacher: "WorldModel",
    pairs: "Pairs",
    source: "Source",
    config: "ModelConfig",
    out: Path,
    recipe: str,
) -> None:
    """Trains the student and writes it; its checkpoint lies beside it until it is done."""
    from offdiff.diffusion.fit import CHECKPOINT
    from offdiff.diffusion.reflow import train_student

    folder = out.with_suffix(".training")
    folder.mkdir(parents=True, exist_ok=True)
    model = train_student(
        teacher, pairs, source.episodes, config, folder, recipe=recipe, progress=source.progress
    )
    model.save(out)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    folder.rmdir()
    parameters = sum(p.numel() for p in model.denoiser.parameters())
    print(f"{out}\n{config.network}, {parameters:,} parameters, {config.steps:,} steps")


def _require_free(out: Path, overwrite: bool) -> None:
    require_writable(out.parent)
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists already; name another file, or pass --overwrite")
