"""Updates per second of offdiff's learners against d3rlpy 2.8.1, paired and alternating in one run.

Two worker processes, one per library, each in its own interpreter and on the same cores, hold the
same 200,000 made-up transitions. They take turns block by block, so that both see the machine in
the same state; the figure to quote is the median over pairs of (d3rlpy's seconds / ours), with its
10th and 90th percentile. Both are driven as their own training loops do it: sampling, update,
metrics. Networks have two hidden layers of 256, batches 256 rows, CQL 10 actions of each kind.

    python -m venv peer && peer/bin/pip install d3rlpy==2.8.1 "mujoco>=3.3,<3.12" h5py imageio
    python benchmarks/learners.py --peer-python peer/bin/python --shape hopper --cores 0
    python benchmarks/learners.py --peer-python peer/bin/python --shape hopper --cores 0 1
    python benchmarks/learners.py --peer-python peer/bin/python --device cuda --cores 0

Writes results/speed/<shape>-<n>-core-<instructions>.json (or -cuda) and rewrites README.md there
from all records.
`limit_share` is the arithmetic that our update needs times its rate, over the rate of 256x256x256
products measured in the same run; for the peer the same arithmetic is counted, so its share says
how much of the limit turns into progress. On a shared machine CPU seconds (`cpu`) tell more than
the clock's (`wall`) where the run is on one core.
"""

import argparse
import json
import statistics
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch
from turns import Worker, cpu_name, summary

from offdiff.core.files import write_text

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "speed"
BLOCK = {"iql": 40, "td3bc": 40, "cql": 4}
"""Updates per turn: about half a second."""
SHAPES = {"hopper": (11, 3), "halfcheetah": (17, 6)}


def worker(python: str, library: str, args: argparse.Namespace) -> Worker:
    """A process that trains one library's learners on demand."""
    cores, seeds = map(str, args.cores), map(str, args.seeds)
    return Worker(
        [
            *(python, str(HERE / "speed_worker.py"), "--library", library, "--shape", args.shape),
            *("--device", args.device, "--cores", *cores, "--seeds", *seeds),
        ]
    )


def flops(name: str, obs: int, action: int) -> float:
    """Multiplications and additions of one update of ours, matrix products only, batch 256.

    A product's backward pass costs as much again for its weights and, below the first layer, for
    its input.
    """

    def forward(inputs: int, outputs: int) -> float:
        return 2 * (inputs * 256 + 256 * 256 + 256 * outputs)

    def both(inputs: int, outputs: int) -> float:
        return 3 * forward(inputs, outputs) - 2 * inputs * 256

    q = obs + action
    if name == "iql":
        row = 2 * forward(q, 1) + forward(obs, 1)  # target critics, V(s')
        row += both(obs, 1) + both(obs, action) + 2 * both(q, 1)
    elif name == "td3bc":
        row = forward(obs, action) + 2 * forward(q, 1) + 2 * both(q, 1)
        # Every second update: the actor, and one critic forward and backward to its input.
        row += (both(obs, action) + 2 * forward(q, 1)) / 2
    else:
        row = 2 * forward(obs, 2 * action) + 2 * forward(q, 1) + 2 * 31 * both(q, 1)
        row += both(obs, 2 * action) + 2 * 2 * forward(q, 1)
    return 256 * row


def alternate(
    first: tuple[Worker, str, int], second: tuple[Worker, str, int], pairs: int, clock: str
) -> list[list[float]]:
    """Seconds per repetition, [first, second], of so many pairs of blocks after one to warm up."""

    def turn() -> list[float]:
        return [getattr(w.run(task, n), clock) / n for w, task, n in (first, second)]

    turn()
    return [turn() for _ in range(pairs)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", required=True, help="interpreter that has d3rlpy 2.8.1")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="hopper")
    parser.add_argument("--algos", nargs="+", default=["iql", "td3bc", "cql"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cores", type=int, nargs="+", default=[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    args = parser.parse_args()
    clock = "cpu" if len(args.cores) == 1 and args.device == "cpu" else "wall"

    ours, peer = worker(sys.executable, "offdiff", args), worker(args.peer_python, "d3rlpy", args)
    products = [getattr(ours.run("gemm", 100), clock) / 100 for _ in range(20)]
    limit = 2 * 256**3 / min(products)
    results: dict[str, Any] = {}
    for name in args.algos:
        count = BLOCK[name]
        pairs = alternate((ours, name, count), (peer, name, count), args.pairs, clock)
        arithmetic = flops(name, *SHAPES[args.shape])
        results[name] = {
            "ratio": summary([theirs / mine for mine, theirs in pairs]),
            "updates_per_second": summary([1 / mine for mine, _ in pairs]),
            "peer_updates_per_second": summary([1 / theirs for _, theirs in pairs]),
            "mflop_per_update": arithmetic / 1e6,
            "limit_share": arithmetic / statistics.median(mine for mine, _ in pairs) / limit,
            "seconds_per_update": pairs,
        }
        for seeds in (many for many in args.seeds if many > 1):
            joint = (ours, f"{name}x{seeds}", max(1, count // 4))
            turns = alternate(joint, (ours, name, count), args.pairs, clock)
            results[name][f"cost_of_{seeds}_seeds"] = summary([many / one for many, one in turns])
        ratio = results[name]["ratio"]
        print(
            f"{name}: {ratio['median']:.2f}x [{ratio['p10']:.2f}, {ratio['p90']:.2f}]", flush=True
        )
    record = {
        "what": "updates per second of offdiff against d3rlpy 2.8.1",
        "date": date.today().isoformat(),
        "shape": args.shape,
        "device": args.device,
        "cores": len(args.cores),
        "clock": clock,
        "cpu": cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": {"offdiff": ours.about["torch"], "d3rlpy": peer.about["torch"]},
        "gflops_of_256_cubed": limit / 1e9,
        "results": results,
    }
    place = f"{len(args.cores)}-core-{record['instructions'].lower()}"
    if args.device != "cpu":
        place = args.device.replace(":", "-")
    write_text(args.out / f"{args.shape}-{place}.json", json.dumps(record, indent=1) + "\n")
    write_text(args.out / "README.md", readme(args.out))


def readme(folder: Path) -> str:
    """The table of all records in the folder."""
    lines = [
        "# Updates per second against d3rlpy 2.8.1",
        "",
        "Made by `benchmarks/learners.py` from the records beside it; how it is measured stands",
        "there. Medians [p10, p90] over pairs of alternating blocks; batch 256, two hidden layers",
        "of 256; limit: share of the rate of 256x256x256 products in the same run that the",
        "arithmetic of our update makes up, ours / d3rlpy's; 8 seeds: time of an update of 8 seeds",
        "together over that of one.",
        "",
        "| machine | shape | learner | ours | d3rlpy | ratio | limit | GFLOP/s | 8 seeds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        on_cpu = record["device"] == "cpu"
        machine = f"{record['cpu']}, {record['cores']} core" if on_cpu else record["device"]
        for name, r in record["results"].items():
            ours, theirs = r["updates_per_second"]["median"], r["peer_updates_per_second"]["median"]
            many = r.get("cost_of_8_seeds")
            per_update = r["mflop_per_update"] / 1e3 / record["gflops_of_256_cubed"]
            lines.append(
                f"| {machine} | {record['shape']} | {name} | {ours:.1f} | {theirs:.1f} "
                f"| {_spread(r['ratio'])} | {ours * per_update:.0%} / {theirs * per_update:.0%} "
                f"| {record['gflops_of_256_cubed']:.0f} | {_spread(many) if many else '-'} |"
            )
    return "\n".join(lines) + "\n"


def _spread(values: dict[str, float]) -> str:
    return f"{values['median']:.2f} [{values['p10']:.2f}, {values['p90']:.2f}]"


if __name__ == "__main__":
    main()
