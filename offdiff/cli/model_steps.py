"""`offdiff model search-steps | compare`: how few network calls are enough."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from offdiff.cli.model_files import File, Files, load, load_of, require_free
from offdiff.cli.options import call_with_options
from offdiff.core.errors import InputError
from offdiff.core.files import require_writable, write_text
from offdiff.markdown import markdown_table

if TYPE_CHECKING:
    from offdiff.diffusion.solvers import Solver
    from offdiff.diffusion.world_model import WorldModel
    from offdiff.few_steps import Comparison

SEARCH = """Search the noise levels for sampling in few steps; nothing is trained, no data needed.

Examples:
  offdiff model search-steps teacher.safetensors --steps 4
  offdiff model search-steps teacher.safetensors --steps 6 --out with-levels.safetensors
  offdiff model search-steps teacher.safetensors --steps 4 --skip 0.25 --out light.safetensors

An evolution of level lists, each scored by how near it comes to the model's own fine ODE from the
same noise. The best is stored with the model and used whenever that many levels are asked for.
With --skip it also searches blocks of the network to leave out, at each level its own; dit-* and
mmdit-* networks have such blocks.
Reflow and distillation change the model: search again after them.
"""
COMPARE = """Quality against network calls: one table, one plot.

Examples:
  offdiff model compare teacher.safetensors student.safetensors --dataset hopper-medium-v2
  offdiff model compare *.safetensors --dataset hopper-medium-v2 --calls 1 2 4 --to comparison

All models get the same noise; students are compared with what their teacher makes of it, if it is
among the models.
"""


def main(command: str, args: list[str]) -> int:
    """Runs one of the commands. Raises InputError for bad input."""
    actions: dict[str, tuple[Callable[..., None], str]] = {
        "model search-steps": (search_steps, SEARCH),
        "model compare": (compare, COMPARE),
    }
    action, description = actions[command]
    return call_with_options(action, args, command, description)


def search_steps(
    model: File,
    /,
    *,
    steps: int = 4,
    generations: int = 10,
    windows: int = 256,
    skip: float = 0.0,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """Search noise levels for few steps: of UniPC, or of Euler's rule for older models.

    Args:
        model: file of a world model; the levels are added to it
        steps: network calls of a sample
        generations: of the evolution; each scores 40 lists
        windows: that every list is scored on
        skip: largest share of the network's blocks that a step leaves out; all steps together leave
            out at least half as large a share
        seed: of the search
        out: write the model with its levels here instead
        device: auto, cpu, cuda or cuda:N
        overwrite: replace `out`
    """
    import torch

    from offdiff.core.numerics import choose_device
    from offdiff.diffusion.genomes import Evolution
    from offdiff.diffusion.progress import StepBar
    from offdiff.diffusion.skips import Skipping
    from offdiff.diffusion.solvers import SAMPLERS
    from offdiff.diffusion.step_search import search_steps, start_at
    from offdiff.diffusion.world_model import MODEL, load_model, show_skips

    if windows < 2 or not 0 <= generations <= 10_000 or not 1 <= steps <= 64:
        raise InputError(
            "windows must be at least 2, generations in [0, 10000] and steps in [1, 64]"
        )
    place = choose_device(device)
    file = model.expanduser()
    file = file / MODEL if file.is_dir() else file
    to = file if out is None else out.expanduser()
    require_free(to, overwrite or out is None)
    found = load_model(file, place)
    found.levels(steps)  # a distilled model refuses here
    shape = (windows, found.codec.horizon + 1, found.codec.columns)
    network = found.denoiser.network
    skipping = Skipping(network=network, most=skip, least=skip / 2) if skip else None
    with StepBar("search", generations, 0, sys.stderr.isatty()) as bar, torch.no_grad():

        def report(generation: int, error: float) -> None:
            bar.advance(min(generation, 1))
            bar.show(f"error {error:.4f}")

        best = search_steps(
            found.denoiser, shape, SAMPLERS["unipc" if found.gaussian else "euler"], steps=steps,
            evolution=Evolution(generations=generations), start=found.gaussian or start_at,
            seed=seed, like=torch.empty(0, device=place), fresh_batches=4, report=report,
            skipping=skipping,
        )  # fmt: skip
    levels = tuple(best.sigmas[:-1].tolist())
    skips = {k: blocks for k, blocks in found.skips.items() if k != steps}
    if any(best.skips):
        skips[steps] = best.skips
    replace(found, grids={**found.grids, steps: levels}, skips=skips).save(to)
    shown = " ".join(f"{level:.3g}" for level in levels)
    print(
        f"{to}: levels {shown}\nRMSE to the fine ODE {best.error:.4f} with them, "
        f"{best.uniform_error:.4f} with even times, after {best.evaluations} lists"
    )
    if skipping:
        print(
            f"skipped blocks {show_skips(best.skips)}: {best.saved:.1%} of all that would be run; "
            f"RMSE {best.full_error:.4f} on these levels with none skipped"
        )


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
        solvers: of each model; auto is Euler for students, else UniPC for 2 to 8 calls, else Heun
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
    source, first = load(files[0], dataset, device)
    models: dict[str, tuple[WorldModel, tuple[Solver, ...]]] = {}
    for file in files:
        model = first if file == files[0] else load_of(file, source)
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
    rows: list[tuple[str, ...]] = [head]
    for point in comparison.points:
        numbers = (point.paired, point.energy, point.dynamics, point.dynamics_median)
        rows.append((
            point.model, point.solver, point.levels, str(point.calls),
            *("-" if value is None else f"{value:.2g}" for value in numbers),
            f"{point.terminal_rate:.2%}", f"{point.seconds_per_100k:.3g}",
        ))  # fmt: skip
    floor = comparison.dynamics_floor
    note = (
        f"The data: energy distance {comparison.energy_floor:.2g} between two samples, terminals "
        f"{comparison.terminal_rate:.2%}"
        + (f", dynamics error {floor:.2g}." if floor is not None else ".")
    )
    return "\n".join([f"# Few network calls: {title}", "", note, "", markdown_table(rows), ""])


def _plot(comparison: "Comparison", path: Path) -> None:
    from offdiff.few_step_plots import plot_few_steps
    from offdiff.plots import can_plot

    if can_plot():
        plot_few_steps(comparison, path)
    else:
        print("no plot: pip install 'offdiff[plot]'", file=sys.stderr)
