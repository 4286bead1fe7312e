"""Measures synthetic experience: dynamics error, policy likelihood, cost, method by method.

For each dataset one world model and one dynamics ensemble are trained (cached; repeat the command
and they are found), then every method generates windows for fixed policies, which are not trained
here: `AGENTS/<name>_<Task>.npz`, networks as plain arrays. All methods make as many windows, of the
same length, with the same seed, on one thread. Records go to results/synthetic, one per dataset.

    python benchmarks/synthetic.py --data FOLDER --agents FOLDER      everything; resumable
    python benchmarks/synthetic.py --table                            results/tables/synthetic.md
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offdiff.augment.base import AugmentConfig, Source
from offdiff.augment.diffusion import PGDConfig, ReleasedPGDConfig, UnguidedConfig
from offdiff.augment.world_model import WorldModelConfig
from offdiff.core.files import write_text
from offdiff.data.load import load_dataset
from offdiff.data.places import cache_dir
from offdiff.data.windows import episodes_hash
from offdiff.diagnostics import Inspector
from offdiff.diffusion.config import ModelConfig
from offdiff.results import code_version, system

RESULTS = Path(__file__).parent.parent / "results"
DATASETS = ("hopper-medium-zoo", "hopper-mixed-zoo", "halfcheetah-medium-zoo")
AGENTS = ("a2c", "ppo", "trpo")
"""Weak to strong; of state-independent Gaussian noise, all three."""
MODEL = ModelConfig(steps=6_000)
WINDOWS = 256
METHODS: dict[str, AugmentConfig] = {
    "unguided": UnguidedConfig(model=MODEL),
    "calibrated": PGDConfig(model=MODEL),
    "calibrated, joint": PGDConfig(model=MODEL, joint=True),
    "calibrated x4, joint": PGDConfig(model=MODEL, joint=True, strength=4.0),
    "calibrated, auto": PGDConfig(model=MODEL, strength="auto", joint=True),
    "released": ReleasedPGDConfig(model=MODEL),
    "world-model": WorldModelConfig(horizon=MODEL.horizon),
}


class Agent:
    """A Gaussian policy from plain arrays: tanh or relu layers, clipped mean."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            self.layers = [
                (
                    torch.from_numpy(arrays[f"W{i}"]).float(),
                    torch.from_numpy(arrays[f"b{i}"]).float(),
                )
                for i in range(int(arrays["n_layers"]))
            ]
            self.activation = {"tanh": torch.tanh, "relu": torch.relu}[str(arrays["activation"])]
            self.mean, variance = (
                torch.from_numpy(arrays[f"obs_{name}"]).float() for name in ("mean", "var")
            )
            self.scale = (variance + float(arrays["obs_eps"])).sqrt()
            self.clip = float(arrays["obs_clip"])
            self.std = torch.from_numpy(arrays["log_std"]).float().exp()

    def act(self, obs: Tensor, /) -> Tensor:
        """(B, O) -> (B, A)."""
        x = ((obs - self.mean) / self.scale).clamp(-self.clip, self.clip)
        for weight, bias in self.layers[:-1]:
            x = self.activation(x @ weight.T + bias)
        weight, bias = self.layers[-1]
        return (x @ weight.T + bias).clamp(-1, 1)

    def distribution(self, obs: Tensor, /) -> tuple[Tensor, Tensor]:
        """(B, O) -> mean and standard deviation."""
        mean = self.act(obs)
        return mean, self.std.expand_as(mean)

    def reset(self, which: Tensor, /) -> None:
        """Nothing to forget."""


def measure(dataset: str, data: Path, agents: Path) -> dict[str, Any]:
    """One dataset's record."""
    loaded = load_dataset(str(data / f"{dataset}.hdf5"))
    source = Source(
        episodes=loaded.episodes,
        info=loaded.info,
        device=torch.device("cpu"),
        cache=cache_dir(),
        progress=True,
    )
    inspector = Inspector(loaded.info, loaded.episodes, samples=WINDOWS)
    task = str(loaded.info.env_id).partition("-")[0]
    rows = []
    for method, config in METHODS.items():
        begun = time.perf_counter()
        augmenter = config.build(source)
        built = time.perf_counter() - begun
        for name in AGENTS:
            policy = Agent(agents / f"{name}_{task}.npz")
            random = torch.Generator().manual_seed(0)
            begun = time.perf_counter()
            windows = augmenter.generate(WINDOWS, policy, generator=random)
            seconds = time.perf_counter() - begun
            made = int(windows.mask.sum())
            rows.append(
                {
                    "method": method,
                    "policy": name,
                    "build_seconds": built,
                    "seconds": seconds,
                    "seconds_per_100k": seconds / made * 100_000,
                    "transitions": made,
                    "provenance": augmenter.provenance(),
                    "diagnostics": inspector.inspect(windows, policy).as_json(),
                }
            )
            print(f"{dataset}, {method}, {name}: {seconds:.1f} s", flush=True)
    return {
        "dataset": dataset,
        "data_hash": episodes_hash(loaded.episodes),
        "windows": WINDOWS,
        # Without the paths of the machine it was made on.
        "code": code_version("python benchmarks/synthetic.py"),
        "system": system(torch.device("cpu"), "default"),
        "rows": rows,
    }


def table(folder: Path) -> str:
    """Markdown from the records: means over the policies."""
    lines = [
        "# Synthetic experience, method by method",
        "",
        f"{WINDOWS} windows of {MODEL.horizon} transitions per method and policy, means over the "
        f"fixed policies {', '.join(AGENTS)}, which are not those that made the data. Dynamics "
        "error: squared error of the successor against the simulator's, in variances of the data; "
        "at the first, middle and last row of the window, over all rows, and its median. "
        "Residual: (action - policy's mean) / policy's std. Cost on one CPU core; a call is one "
        "of the network on one window.",
        "",
        "| dataset | method | first row | middle | last row | mean | median | log-likelihood | "
        "residual std | terminals | calls | GFLOP per window | s per 100k | released / this |",
        "|" + " --- |" * 14,
    ]
    for dataset in DATASETS:
        path = folder / f"{dataset}.json"
        if not path.exists():
            lines.append(f"| {dataset} | not measured |" + " |" * 12)
            continue
        record = json.loads(path.read_text())
        seconds = {m: _mean(record, m, lambda r: r["seconds_per_100k"]) for m in METHODS}
        floor = record["rows"][0]["diagnostics"]
        likelihood, spread = (
            _mean(record, "unguided", lambda r, k=key: r["diagnostics"]["behaviour"][k])
            for key in ("log_likelihood", "residual_std")
        )
        lines.append(
            f"| {dataset} | data | | | | {_number(floor['floor']['mean'])} | "
            f"{_number(floor['floor']['median'])} | "
            f"{likelihood:.2f} | {spread:.2f} | "
            f"{floor['data_terminal_rate']:.2%} | | | | |"
        )
        for method in METHODS:
            lines.append(_line(record, dataset, method, seconds))
    return "\n".join(lines) + "\n"


def _line(record: dict[str, Any], dataset: str, method: str, seconds: dict[str, float]) -> str:
    def mean(read: Any) -> float:
        return _mean(record, method, read)

    rows = MODEL.horizon
    at = [
        mean(lambda r, t=t: r["diagnostics"]["dynamics"]["by_row"][t]) for t in (0, rows // 2, -1)
    ]
    first = next(r for r in record["rows"] if r["method"] == method)["provenance"]
    calls = first.get("network_calls_per_window", "")
    flops = first.get("flops_per_network_call", 0) * (calls or 0) / 1e9
    cells = [
        dataset,
        method,
        *map(_number, at),
        _number(mean(lambda r: r["diagnostics"]["dynamics"]["mean"])),
        _number(mean(lambda r: r["diagnostics"]["dynamics"]["median"])),
        f"{mean(lambda r: r['diagnostics']['policy']['log_likelihood']):.2f}",
        f"{mean(lambda r: r['diagnostics']['policy']['residual_std']):.2f}",
        f"{mean(lambda r: r['diagnostics']['terminal_rate']):.2%}",
        str(calls),
        f"{flops:.2f}" if flops else "",
        f"{seconds[method]:.0f}",
        f"{seconds['released'] / seconds[method]:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _mean(record: dict[str, Any], method: str, read: Any) -> float:
    values = [read(row) for row in record["rows"] if row["method"] == method]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else float("nan")


def _number(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-4 else f"{value:.0e}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the HDF5 files")
    parser.add_argument("--agents", type=Path, help="folder of the policies' arrays")
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=DATASETS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only write the table")
    args = parser.parse_args()
    folder = args.results / "synthetic"
    if not args.table:
        if args.data is None or args.agents is None:
            parser.error("--data and --agents are needed, or --table")
        torch.set_num_threads(1)
        data, agents = args.data.resolve(), args.agents.resolve()
        for dataset in args.datasets:
            if not (folder / f"{dataset}.json").exists():
                record = measure(dataset, data, agents)
                write_text(folder / f"{dataset}.json", json.dumps(record, indent=1) + "\n")
    write_text(args.results / "tables" / "synthetic.md", table(folder))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
