"""Size, speed and error of a world model's int8 forms against the float model, in one run.

Every round times one call of each contender (float, dynamic, static, weight) per batch size, in
turn, so that all see the machine in the same state; the figure to quote is the median over rounds
of (float's seconds / the form's), with its 10th and 90th percentile. Error: RMSE between windows
that a form and the float model sample from the same noise, in standard deviations of the data.

    offdiff model train --dataset sample --out model.safetensors
    python benchmarks/quantize.py model.safetensors --name sample-dit-xs

Writes results/quantize/<name>.json. Eager PyTorch, one thread unless --threads says otherwise.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any, get_args

import torch
from turns import cpu_name, summary

from offdiff.core.errors import InputError
from offdiff.core.files import write_text
from offdiff.core.numerics import choose_device
from offdiff.diffusion.denoiser import Denoiser
from offdiff.diffusion.quantize import Mode, paired_error, quantize
from offdiff.diffusion.world_model import load_model

RESULTS = Path(__file__).parent.parent / "results" / "quantize"
ENOUGH = 20.0
"""Seconds after which no further round of a batch size is begun, from the third on."""


@torch.no_grad()
def call_seconds(denoiser: Denoiser, x: torch.Tensor, sigma: torch.Tensor) -> float:
    """Wall-clock seconds of one network call."""
    start = time.perf_counter()
    denoiser(x, sigma)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - start


def latency(contenders: dict[str, Denoiser], batch: int, rounds: int) -> dict[str, Any]:
    """Milliseconds per call and ratios to float, from alternating calls after two to warm up."""
    slots = contenders["float"].slots
    x = torch.randn(batch, *slots.shape, device=slots.device)
    sigma = torch.ones(batch, device=slots.device)
    times: list[dict[str, float]] = []
    begun = time.monotonic()
    for k in range(rounds + 2):
        seconds = {name: call_seconds(d, x, sigma) for name, d in contenders.items()}
        if k >= 2:
            times.append(seconds)
        if len(times) >= 3 and time.monotonic() - begun > ENOUGH:
            break
    return {
        name: {
            "milliseconds": summary([1e3 * t[name] for t in times]),
            "speed_up": summary([t["float"] / t[name] for t in times]),
            "rounds": len(times),
        }
        for name in contenders
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="file of a float world model")
    parser.add_argument("--name", required=True, help="name of the record")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 1024])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--windows", type=int, default=256, help="compared samples")
    parser.add_argument("--levels", type=int, default=18, help="noise levels of the samples")
    parser.add_argument("--keep", nargs="*", default=["in", "out", "time"])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = choose_device(args.device)

    try:
        model = load_model(args.file, device)
        contenders = {"float": model.denoiser}
        for mode in get_args(Mode):
            contenders[mode] = quantize(model.denoiser, mode=mode, keep=args.keep)
    except InputError as error:
        parser.error(str(error))
    forms: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, denoiser in contenders.items():
            file = Path(folder) / name
            dataclasses.replace(model, denoiser=denoiser).save(file)
            forms[name] = {"bytes": file.stat().st_size}
            if denoiser.quantised:
                error = paired_error(model.denoiser, denoiser, n=args.windows, levels=args.levels)
                forms[name] |= {"covered": denoiser.quantised.covered, "paired_rmse": error}
                print(f"{name}: {denoiser.quantised}; paired RMSE {error:.4f}", flush=True)
    times: dict[str, Any] = {}
    for batch in args.batches:
        times[str(batch)] = found = latency(contenders, batch, args.rounds)
        middle = {k: v["speed_up"]["median"] for k, v in found.items()}
        milliseconds = found["float"]["milliseconds"]["median"]
        print(
            f"batch {batch}: float {milliseconds:.2f} ms; speed-up "
            + ", ".join(f"{k} {v:.2f}" for k, v in middle.items() if k != "float"),
            flush=True,
        )
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    record = {
        "what": "size, latency per network call and paired error of int8 against float",
        "date": date.today().isoformat(),
        "network": model.config.network,
        "horizon": model.config.horizon,
        "columns": model.codec.columns,
        "data_hash": model.data_hash,
        "keep": args.keep,
        "compared": {"windows": args.windows, "levels": args.levels},
        "device": gpu or cpu_name(),
        "threads": args.threads,
        "torch": torch.__version__,
        "torchao": contenders["dynamic"].quantised.torchao,
        "forms": forms,
        "latency": times,
    }
    write_text(args.out / f"{args.name}.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
