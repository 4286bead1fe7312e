"""Updates per second of offdiff's learners against d3rlpy 2.8.1, paired and alternating in one run.

Two worker processes, one per library, each in its own interpreter and on the same cores, hold the
same 200,000 made-up transitions. They take turns block by block, so that both see the machine in
the same state; the figure to quote is the median over pairs of (d3rlpy's seconds / ours), with its
10th and 90th percentile. Both are driven as their own training loops do it: sampling, update,
metrics. Networks have two hidden layers of 256, batches 256 rows, CQL 10 actions of each kind.

    python -m venv peer && peer/bin/pip install d3rlpy==2.8.1 "mujoco>=3.3,<3.12" h5py imageio
    python benchmarks/learners.py --peer-python peer/bin/python --shape hopper --cores 0 \
        --out results/speed/hopper-1-core.json

`limit_share` is the analytic arithmetic of an update times its rate, over the rate of 256x256x256
products measured in the same run. On a shared machine CPU seconds (`cpu`) tell more than the
clock's (`wall`) where the run is on one core.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BLOCK = {"iql": 40, "td3bc": 40, "cql": 4, "gemm": 100}
SHAPES = {"hopper": (11, 3), "halfcheetah": (17, 6)}


class Worker:
    """A process that trains one library's learners on demand."""

    def __init__(self, python: str, library: str, args: argparse.Namespace) -> None:
        command = [
            python, str(HERE / "speed_worker.py"), "--library", library, "--shape", args.shape,
            "--device", args.device, "--cores", *map(str, args.cores),
            "--seeds", *map(str, args.seeds),
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.about = self._answer()

    def run(self, name: str, count: int) -> dict[str, float]:
        """Seconds, by the clock and of the processor, that `count` updates took."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name} {count}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended ({self._process.wait()}): run it by hand to see why")
        answer: dict[str, Any] = json.loads(line)
        return answer


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


def quantiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return {"median": statistics.median(values), "p10": cuts[0], "p90": cuts[-1]}


def compare(ours: Worker, peer: Worker, name: str, pairs: int, clock: str) -> list[list[float]]:
    """Seconds per update, [ours, the peer's], of every pair of blocks."""
    count = BLOCK[name]
    for worker in (ours, peer):
        worker.run(name, count)
    return [
        [worker.run(name, count)[clock] / count for worker in (ours, peer)] for _ in range(pairs)
    ]


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
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    clock = "cpu" if len(args.cores) == 1 and args.device == "cpu" else "wall"

    ours, peer = Worker(sys.executable, "offdiff", args), Worker(args.peer_python, "d3rlpy", args)
    products = [ours.run("gemm", BLOCK["gemm"])[clock] / BLOCK["gemm"] for _ in range(20)]
    limit = 2 * 256**3 / min(products)
    results: dict[str, Any] = {}
    for name in args.algos:
        pairs = compare(ours, peer, name, args.pairs, clock)
        arithmetic = flops(name, *SHAPES[args.shape])
        results[name] = {
            "ratio": quantiles([theirs / mine for mine, theirs in pairs]),
            "updates_per_second": quantiles([1 / mine for mine, _ in pairs]),
            "peer_updates_per_second": quantiles([1 / theirs for _, theirs in pairs]),
            "mflop_per_update": arithmetic / 1e6,
            "limit_share": arithmetic / statistics.median(mine for mine, _ in pairs) / limit,
            "seconds_per_update": pairs,
        }
        for seeds in (count for count in args.seeds if count > 1):
            count, joint = max(1, BLOCK[name] // 4), f"{name}x{seeds}"
            ours.run(joint, count)
            turns = [
                (ours.run(joint, count)[clock] / count, ours.run(name, count)[clock] / count)
                for _ in range(args.pairs)
            ]
            results[name][f"cost_of_{seeds}_seeds"] = quantiles([many / one for many, one in turns])
        ratio = results[name]["ratio"]
        print(
            f"{name}: {ratio['median']:.2f}x [{ratio['p10']:.2f}, {ratio['p90']:.2f}]", flush=True
        )
    record = {
        "what": "updates per second of offdiff against d3rlpy 2.8.1",
        "shape": args.shape,
        "device": args.device,
        "cores": len(args.cores),
        "clock": clock,
        "cpu": _cpu(),
        "torch": {"offdiff": ours.about["torch"], "d3rlpy": peer.about["torch"]},
        "gflops_of_256_cubed": limit / 1e9,
        "results": results,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


if __name__ == "__main__":
    main()
