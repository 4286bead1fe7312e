"""`offdiff model reflow | distill`: students that need few network calls."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from offdiff.cli.model_files import File, load, load_of, require_free
from offdiff.cli.options import call_with_options
from offdiff.core.errors import InputError
from offdiff.core.files import require_writable
from offdiff.diffusion.reflow import PairsConfig

if TYPE_CHECKING:
    from offdiff.augment.base import Source
    from offdiff.diffusion.config import ModelConfig
    from offdiff.diffusion.couplings import Pairs
    from offdiff.diffusion.world_model import WorldModel

REFLOW = """Train a student on pairs of noise and a teacher's windows: 2 to 8 network calls will do.

Examples:
  offdiff model train --dataset hopper-medium-v2 --out teacher.safetensors
  offdiff model reflow teacher.safetensors --dataset hopper-medium-v2 --out student.safetensors
  offdiff run --dataset hopper-medium-v2 --augment pgd --augment.levels 4 \\
      --augment.model-file student.safetensors

The pairs are kept beside --out and made once. What was stopped goes on when repeated.
"""
DISTILL = """Train a student that makes a window in one network call, or in so many.

Examples:
  offdiff model distill reflowed.safetensors --dataset hopper-medium-v2 --out one.safetensors
  offdiff model distill teacher.safetensors --dataset hopper-medium-v2 --out small.safetensors \\
      --network dit-xs
  offdiff model distill teacher.safetensors --dataset hopper-medium-v2 --calls 4 \\
      --out four.safetensors

From pairs it is best taught by a reflowed model; --how consistency needs no pairs, and a teacher
that was not reflowed. A student knows the levels of its own calls alone: others are refused. A
smaller network starts afresh; --anneal lets it slide into the pairs, which helps when pairs are
few, and so does --flow-guided: a reflowed model finishes windows of fresh noise beside them. Both
are SlimFlow's.
"""


def main(command: str, args: list[str]) -> int:
    """Runs one of the commands. Raises InputError for bad input."""
    actions: dict[str, tuple[Callable[..., None], str]] = {
        "model reflow": (reflow, REFLOW),
        "model distill": (distill, DISTILL),
    }
    action, description = actions[command]
    return call_with_options(action, args, command, description)


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
    premetric: Literal["none", "dyn"] = "none",
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
        premetric: dyn also compares what windows lead to (dynamics, changes of state, reward):
            better dynamics from one or two calls, less variety
        device: auto, cpu, cuda or cuda:N
        overwrite: replace `out`
    """
    from offdiff.diffusion.fit import split
    from offdiff.diffusion.premetric import fit_premetric
    from offdiff.diffusion.reflow import reflow_config, train_student

    require_free(out, overwrite)
    source, model = load(teacher, dataset, device)
    changes = {"objective": objective, "law": law, "metric": metric}
    config = _with(reflow_config(model.config), steps, learning_rate, **changes)
    pairs = _pairs(model, source, make, pairs_file or out.with_suffix(".pairs.safetensors"))
    recipe, found = "reflow", None
    if premetric == "dyn":
        windows, _ = split(source.episodes, model.config, source.device)
        recipe, found = "reflow, premetric dyn", fit_premetric(windows, model.codec)
    _student(out, partial(
        train_student, model, pairs, source.episodes, config, recipe=recipe, premetric=found,
        progress=source.progress,
    ))  # fmt: skip


def distill(
    teacher: File,
    /,
    *,
    out: Path,
    dataset: str = "sample",
    make: PairsConfig = PairsConfig(),  # noqa: B008  frozen
    pairs_file: Path | None = None,
    how: Literal["pairs", "consistency"] = "pairs",
    calls: int = 1,
    network: str = "",
    anneal: float = 0.0,
    flow_guided: Path | None = None,
    leg: Literal["student", "guide"] = "student",
    steps: int = 0,
    learning_rate: float = 0.0,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """Train a student of one call, or of some.

    Args:
        teacher: file of a world model, best a reflowed one
        out: the student's file
        dataset: what the teacher was trained on
        make: the pairs
        pairs_file: keep the pairs here, and use them if they are there; default: beside `out`
        how: on pairs of noise and window; or by agreeing with itself along the teacher's path
            (consistency distillation, one call, no pairs)
        calls: network calls of a window
        network: a smaller network; default: the teacher's
        anneal: share of the training in which independent noise gives way to the pairs'
        flow_guided: file of a reflowed model that finishes half of each batch from fresh noise; it
            pays only if it is more accurate than the pairs make the student
        leg: whose velocity leads from that noise to where the reflowed model takes over
        steps: gradient steps; 0 for half of the teacher's
        learning_rate: peak; 0 for a third of the teacher's, for consistency all of it
        device: auto, cpu, cuda or cuda:N
        overwrite: replace `out`
    """
    from offdiff.diffusion.consistency import distil_consistency
    from offdiff.diffusion.reflow import distil_config, require_guide, train_student

    if not 0 <= anneal < 1:
        raise InputError(f"anneal must lie in [0, 1), got {anneal}")
    if not 1 <= calls <= 64:
        raise InputError(f"calls must lie in [1, 64], got {calls}")
    if how == "consistency" and (calls > 1 or anneal > 0 or pairs_file or flow_guided):
        raise InputError("consistency makes students of one call, without pairs or another guide")
    require_free(out, overwrite)
    source, model = load(teacher, dataset, device)
    guide, recipe = None, "distil"
    if flow_guided is not None:
        guide, recipe = load_of(flow_guided, source), "distil, flow-guided"
        require_guide(guide, model)
    config = distil_config(model.config)
    if how == "consistency":  # pairs are nearly learned already, the path's end is not
        config = replace(config, learning_rate=model.config.learning_rate)
    config = _with(config, steps, learning_rate, network=network or config.network)
    if how == "consistency":
        _student(out, partial(
            distil_consistency, model, source.episodes, config, progress=source.progress
        ))  # fmt: skip
        return
    pairs = _pairs(model, source, make, pairs_file or out.with_suffix(".pairs.safetensors"))
    _student(out, partial(
        train_student, model, pairs.annealed(anneal), source.episodes, config, recipe=recipe,
        calls=calls, guide=guide, leg=leg, progress=source.progress,
    ))  # fmt: skip


def _pairs(teacher: "WorldModel", source: "Source", make: PairsConfig, file: Path) -> "Pairs":
    """Pairs from the file, or made and written to it."""
    from offdiff.diffusion.couplings import load_pairs
    from offdiff.diffusion.fit import split
    from offdiff.diffusion.reflow import make_pairs

    if file.exists():
        pairs = load_pairs(file, source.device, teacher.hash, str(make))
        print(f"{len(pairs):,} pairs from {file}")
        return pairs
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


def _student(out: Path, train: "Callable[[Path], WorldModel]") -> None:
    """Trains a student in a folder and writes it; the folder is gone when it is done."""
    from offdiff.diffusion.fit import CHECKPOINT

    folder = out.with_suffix(".training")
    folder.mkdir(parents=True, exist_ok=True)
    model = train(folder)
    model.save(out)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    folder.rmdir()
    parameters = sum(p.numel() for p in model.denoiser.parameters())
    print(f"{out}\n{model.config.network}, {parameters:,} parameters, {model.config.steps:,} steps")
