"""Makes the runs behind results/tables/learners.md: a grid of learners and datasets, three seeds each.

    python benchmarks/scores.py --data FOLDER --workers 2          whatever has no record yet
    python benchmarks/scores.py --data FOLDER --grid parity        the runs beside d3rlpy's
    python benchmarks/table.py                                     then the tables

FOLDER holds the HDF5 files that are named in GRIDS. Finished runs are skipped and unfinished ones
resumed, so the script can be stopped and started at will; a run that fails does not stop the others.
On two cores the whole `scores` grid takes about seven hours, `parity` one.
"""

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

SEEDS = ("0", "1", "2")
ZOO = ("hopper-medium-zoo", "hopper-mixed-zoo", "halfcheetah-medium-zoo")
LONG = ("--updates", "100000", "--log-every", "1000", "--eval-every", "20000")
SHORT = ("--updates", "20000", "--log-every", "1000", "--eval-every", "5000")
LEARNERS = {
    "bc": LONG,
    "td3bc": LONG,
    "iql": LONG,
    # ReBRAC's batches are 1024 in the paper; a quarter of that fits a CPU.
    "rebrac": (*LONG, "--algo.batch-size", "256", "--published", "hopper-medium-v2"),
    "cql": (*SHORT, "--algo.hidden", "256", "256", "--algo.penalty", "5"),
}
PARITY = {
    "td3bc": ("--updates", "50000"),
    "iql": ("--updates", "50000"),
    "cql": (
        *("--updates", "10000", "--algo.hidden", "256", "256", "--algo.penalty", "5"),
        "--algo.scale-observations",
    ),
}
CURVE = ("--eval-every", "10000", "--eval-episodes", "5", "--log-every", "500")
GRIDS = {
    "scores": [(d, a, options) for d, (a, options) in product(ZOO, LEARNERS.items())],
    "parity": [(ZOO[0], a, (*options, *CURVE)) for a, options in PARITY.items()],
}
"""Name -> (dataset, learner, options of `offdiff run`)."""


def run(data: Path, out: Path, cell: tuple[str, str, tuple[str, ...]]) -> tuple[str, int]:
    """Starts, resumes or skips one cell; its name and exit code."""
    dataset, algo, options = cell
    command = [
        *(sys.executable, "-m", "offdiff", "run", "--algo", algo, *options),
        *("--dataset", str(data / f"{dataset}.hdf5"), "--seeds", *SEEDS),
        *("--final-episodes", "50", "--threads", "1", "--out", str(out)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 2 and "--resume" in done.stderr:
        done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{dataset} {algo}: {done.stderr.strip()}", file=sys.stderr)
    return f"{dataset} {algo}", done.returncode


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the HDF5 files")
    parser.add_argument("--grid", choices=tuple(GRIDS), default="scores")
    parser.add_argument("--out", type=Path, default=Path("results/runs"))
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, one core each")
    args = parser.parse_args()
    with ThreadPoolExecutor(args.workers) as pool:
        outcomes = list(pool.map(lambda cell: run(args.data, args.out, cell), GRIDS[args.grid]))
    failed = [name for name, code in outcomes if code]
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} cells finished")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
