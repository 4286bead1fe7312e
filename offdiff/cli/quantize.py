"""`offdiff model quantize`: a world model with int8 linear layers, compared with the float one."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from offdiff.cli.model_files import require_free
from offdiff.cli.options import parse_options

COMPARED, LEVELS = 128, 18
"""Windows and noise levels of the comparison."""


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """Make a world model's linear layers int8: a quarter of their size, in the file and in use.

    Speed depends on the processor: without int8 instructions (VNNI) dynamic and static are many
    times slower than float, so measure first (benchmarks/quantize.py). Distil first, quantise last.

    Examples:
      offdiff model quantize model.safetensors --out int8.safetensors
      offdiff model quantize model.safetensors --out int8.safetensors --mode static
      offdiff run --algo iql --augment pgd --augment.model-file int8.safetensors
    """

    file: Positional[Path]
    """File of a world model, or folder that holds one."""
    out: Path
    """File to write."""
    mode: Literal["dynamic", "static", "weight"] = "dynamic"
    """Activations: int8 with a scale per row measured on the way; int8 with a scale per layer
    calibrated now on states of the model's own; float, only the weights int8."""
    keep: str = "in,out,time"
    """What stays float: the first layer, the last, the noise embedding; none keeps nothing."""
    overwrite: bool = False
    """Replace an existing file."""


def main(command: str, args: list[str]) -> int:
    """Parses, quantises, writes, prints the comparison; the exit code."""
    options = parse_options(QuantizeOptions, args, command)
    import torch

    from offdiff.diffusion.quantize import paired_error, quantize
    from offdiff.diffusion.world_model import MODEL, load_model

    source, out = options.file.expanduser(), options.out.expanduser()
    source = source / MODEL if source.is_dir() else source
    require_free(out, options.overwrite)
    model = load_model(source, torch.device("cpu"))
    keep = () if options.keep == "none" else tuple(filter(None, options.keep.split(",")))
    denoiser = quantize(model.denoiser, mode=options.mode, keep=keep)
    dataclasses.replace(model, denoiser=denoiser).save(out)
    error = paired_error(model.denoiser, denoiser, n=COMPARED, levels=LEVELS)
    before, after = (path.stat().st_size / 1024 for path in (source, out))
    print(out, denoiser.quantised, sep="\n")
    print(
        f"{before:,.0f} KiB -> {after:,.0f} KiB; windows of the same noise differ from the float "
        f"model's by {error:.4f} standard deviations (RMSE of {COMPARED})"
    )
    return 0
