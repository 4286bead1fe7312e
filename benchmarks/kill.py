"""Kills a run at random moments with `kill -9`, resumes it, compares it with an undisturbed one.

A short run on the bundled sample is done once undisturbed. Then the same run is started again and
again: each time it is killed after a random share of the time that a whole run takes, at start-up,
in training, in an evaluation or while it writes, and resumed; when it survives to its end it is
compared and thrown away, and the next one begins, until the wanted number of kills is reached.
What must agree: the bytes of metrics.csv and, for every seed, of policy.safetensors, every return
and the learning curve of run.json, and the names of the files that are left.

    python benchmarks/kill.py --algo iql
    python benchmarks/kill.py --algo td3bc

Writes results/kill/<algo>-<n>-seeds.json: every kill's moment and what the run had done by then,
digests of both sides; exit code 1 if anything differs. Takes about five minutes on one core.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from turns import cpu_name

from offdiff.core.files import sha256, write_text
from offdiff.results import code_version

RESULTS = Path(__file__).parents[1] / "results" / "kill"


@dataclass(frozen=True)
class Kill:
    """One kill -9."""

    run: int
    """Which of the disturbed runs."""
    seconds: float
    """After its latest start."""
    found: str
    """What was on disk then."""


@dataclass(frozen=True)
class Outcome:
    """All that has to agree between two runs."""

    metrics: str
    """Digest of metrics.csv."""
    policies: dict[str, str]
    """Digest of the final weights, per seed."""
    returns: dict[str, list[float]]
    """Of the final evaluation, per seed."""
    curves: dict[str, list[dict[str, Any]]]
    """The evaluations during training, per seed."""
    files: list[str]


def command(args: argparse.Namespace, out: Path) -> list[str]:
    """The run, as a user starts it."""
    return [
        sys.executable, "-m", "offdiff", "run", "--algo", args.algo, "--dataset", args.dataset,
        "--updates", str(args.updates), "--log-every", "20", "--checkpoint-seconds", "0.2",
        "--eval-every", str(args.updates // 3), "--eval-episodes", "2", "--final-episodes", "5",
        "--seeds", *map(str, args.seeds), "--device", "cpu", "--threads", "1", "--out", str(out),
    ]  # fmt: skip


def start(args: argparse.Namespace, out: Path) -> "subprocess.Popen[str]":
    """Starts the run, or continues it if a start of it got as far as making its folder."""
    resume = ["--resume"] if list(out.rglob("config.json")) else []
    return subprocess.Popen(
        command(args, out) + resume,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: "subprocess.Popen[str]") -> None:
    """Waits for the end of a run. SystemExit with its message if it failed."""
    _, message = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"a run ended with code {process.returncode}:\n{message}")


def disturb(
    args: argparse.Namespace, out: Path, run: int, whole: float, kills: int, moments: random.Random
) -> tuple[list[Kill], float]:
    """Runs to the end with at most `kills` kills, each within `whole` seconds of a start.

    Gives the kills and the least time known that a whole run takes: the machine's load varies.
    """
    done: list[Kill] = []
    while len(done) < kills:
        begun, process, wait = time.perf_counter(), start(args, out), moments.uniform(0, whole)
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            done.append(Kill(run, round(wait, 3), found(out)))
        else:
            finish(process)
            return done, whole if done else min(whole, time.perf_counter() - begun)
    finish(start(args, out))
    return done, whole


def found(out: Path) -> str:
    """How far a killed run had come, from its files."""
    if records := len(list(out.rglob("run.json"))):
        return f"records of {records} seeds"
    if policies := len(list(out.rglob("policy.safetensors"))):
        return f"policies of {policies} seeds"
    tables = list(out.rglob("metrics.csv"))
    lines = tables[0].read_text().splitlines() if tables else []
    logged = re.match(r"\d+(?=,)", lines[-1]) if lines else None
    checkpoint = "with" if list(out.rglob("checkpoint.safetensors")) else "without"
    if logged:
        return f"update {logged[0]}, {checkpoint} checkpoint"
    return "folder" if list(out.rglob("config.json")) else "nothing"


def outcome(out: Path) -> Outcome:
    """What a finished run left."""
    (metrics,) = out.rglob("metrics.csv")
    records = {path.parent.name: path for path in sorted(out.rglob("run.json"))}
    values = {seed: json.loads(path.read_text()) for seed, path in records.items()}
    return Outcome(
        metrics=sha256(metrics),
        policies={
            seed: sha256(path.with_name("policy.safetensors")) for seed, path in records.items()
        },
        returns={seed: value["eval"]["returns"] for seed, value in values.items()},
        curves={seed: value["curve"] for seed, value in values.items()},
        files=sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--algo", default="iql", help="learner (default iql)")
    parser.add_argument("--dataset", default="sample", help="default: the bundled sample")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="trained together")
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    args = parser.parse_args()

    moments = random.Random(args.seed)
    kills: list[Kill] = []
    differences: list[str] = []
    runs = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        begun = time.perf_counter()
        finish(start(args, folder / "undisturbed"))
        whole = time.perf_counter() - begun
        wanted = outcome(folder / "undisturbed")
        while len(kills) < args.kills:
            out = folder / f"disturbed-{runs}"
            done, whole = disturb(args, out, runs, whole, args.kills - len(kills), moments)
            kills += done
            got = outcome(out)
            differences += [
                f"run {runs}: {field} differs"
                for field, value in asdict(wanted).items()
                if asdict(got)[field] != value
            ]
            runs += 1
            print(f"{len(kills)} kills, {runs} runs compared, {len(differences)} differences")
    record = {
        "what": "kill -9 at random moments, resume, compare with an undisturbed run",
        "command": " ".join(command(args, Path("OUT"))[1:]),
        "code": {key: value for key, value in code_version().items() if key != "command"},
        "cpu": cpu_name(),
        "seed_of_moments": args.seed,
        "seconds_of_a_whole_run": round(whole, 2),
        "runs_compared": runs,
        "kills": [asdict(kill) for kill in kills],
        "undisturbed": asdict(wanted),
        "differences": differences,
    }
    name = f"{args.algo}-{len(args.seeds)}-seeds.json"
    write_text(args.out / name, json.dumps(record, indent=1) + "\n")
    if differences:
        raise SystemExit("\n".join(differences))


if __name__ == "__main__":
    main()
