"""Trains, plays and tabulates planners: scores, and what a decision costs.

    python benchmarks/planners.py --data FOLDER FOLDER --workers 2      the grid below
    python benchmarks/planners.py --table                               results/tables/planners.md

The folders hold the HDF5 files, `<dataset>.hdf5`; those of PointMaze are made by
`offdiff data generate --maze umaze --to pointmaze-umaze-generated.hdf5`, medium likewise. Every run
is `offdiff run` in a process of its own on one thread, with one training seed and 50 episodes. What
has a record is not run again, what was stopped is resumed. Records go to results/runs; the table
reads nothing else, and says what is missing. Times are of one core of the machine in the record
while others were busy: compare calls, and times by `offdiff bench planners`.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scores import FINAL_EPISODES, RESULTS, Job, run_all

from offdiff.checkpoint import config_from_json, planner_config
from offdiff.config import RunConfig
from offdiff.core.files import sha256, write_text
from offdiff.core.registry import names, resolve
from offdiff.folder import IDENTITY, RunFolder
from offdiff.results import config_hash

Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One line of the table: a planner, or a learner to compare with."""

    method: str
    dataset: str
    updates: int = 4_000
    options: dict[str, object] = field(default_factory=dict)
    """Settings that are not the defaults."""
    seed: int = 0

    @property
    def kind(self) -> str:
        """What the command line calls it."""
        return "planner" if self.method in names("planners") else "algo"


LOCOMOTION = ("hopper-medium-zoo", "hopper-mixed-zoo", "halfcheetah-medium-zoo")
MAZES = {"pointmaze-umaze-generated": 5, "pointmaze-medium-generated": 8}
"""Name -> stride of plans: 31 strides span most of its paths."""
UPDATES = {"bc": 100_000, "iql": 100_000, "dql": 10_000, "idql": 10_000, "dt": 4_000}
MAZE_UPDATES = {"bc": 20_000, "iql": 20_000}
IMAGINING = ("trajectory-diffuser", "decision-diffuser", "diffuser", "veteran")
METHODS = ("bc", "iql", "dql", "idql", "dt", *IMAGINING)


def _locomotion(method: str, dataset: str) -> Cell:
    options: dict[str, object] = {}
    if method == "diffuser":
        options = {"horizon": 8, "replan_every": 2}  # the guide is what costs
    return Cell(method=method, dataset=dataset, updates=UPDATES.get(method, 4_000), options=options)


def _maze(method: str, dataset: str, stride: int) -> Cell:
    options: dict[str, object] = {}
    if method in IMAGINING:
        options = {"horizon": 32, "stride": stride, "replan_every": 10}
    if method == "veteran":
        options |= {"rank_by": "window"}
    if method == "diffuser":
        # Its actions are of neighbouring steps, so plans cannot skip any.
        options = {"horizon": 32, "replan_every": 8, "open_loop": True, "pin_goal": False}
    return Cell(
        method=method,
        dataset=dataset,
        updates=MAZE_UPDATES.get(method, UPDATES.get(method, 4_000)),
        options=options,
    )


GRID = (
    *(_locomotion(method, dataset) for dataset in LOCOMOTION for method in METHODS),
    *(_maze(method, dataset, stride) for dataset, stride in MAZES.items() for method in METHODS),
)


def job_of(cell: Cell, data: Path, out: Path) -> Job | None:
    """The run of a cell; None if it has its record."""
    common: dict[str, Any] = {
        "dataset": str(data / f"{cell.dataset}.hdf5"),
        "seeds": (cell.seed,),
        "updates": cell.updates,
        "log_every": 1_000,
        "eval_every": 0,
        "final_episodes": FINAL_EPISODES,
        "out": out,
    }
    if cell.kind == "planner":
        config = RunConfig(planner=planner_config(cell.method, cell.options), **common)
    else:
        algo = config_from_json(resolve("learners", cell.method), cell.options)
        config = RunConfig(algo=algo, **common)
    identity = config.identity(sha256(Path(config.dataset)))
    folder = RunFolder(out, cell.dataset, cell.method, config.seeds, config_hash(identity))
    if folder.records():
        return None
    command = [sys.executable, "-m", "offdiff", "run", f"--{cell.kind}", cell.method]
    for name, value in common.items():
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        command += [f"--{name.replace('_', '-')}", shown]
    for name, value in cell.options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{cell.kind}.{flag if value else f'no-{flag}'}")
        else:
            command += [f"--{cell.kind}.{flag}", str(value)]
    resume = ["--resume"] if (folder.path / IDENTITY).exists() else []
    return Job(f"{cell.method} {cell.options or ''} on {cell.dataset}", command + resume)


def page(records: list[Record]) -> str:
    """A table of scores for every dataset, as Markdown."""
    text = [
        "# Planners",
        "",
        "One training seed, 50 episodes from the same starts; mean and 95 % interval over episodes",
        "(normal approximation). Score: D4RL's, 0 random, 100 expert. In mazes the return, steps",
        "spent at the goal of 300 (umaze) and 600 (medium), and how many episodes reach it. Calls:",
        "network evaluations of a decision that wait for one another. Of learners, seed 0.",
        "Behaviour: mean of the data, whose episodes end at the goal in mazes, with a return of 1.",
    ]
    for dataset in (*LOCOMOTION, *MAZES):
        text += [
            "",
            f"## {dataset}",
            "",
            *_rows([c for c in GRID if c.dataset == dataset], records),
        ]
    return "\n".join([*text, ""])


def _rows(cells: Iterable[Cell], records: list[Record]) -> list[str]:
    head = ["method", "updates", "score or return", "95 %", "reached", "calls", "ms", "behaviour"]
    lines = [head, ["---"] * len(head)]
    for cell in cells:
        settings = ", ".join(f"{k} {v}" for k, v in cell.options.items())
        name = f"{cell.method} ({settings})" if settings else cell.method
        record = _record(cell, records)
        numbers = _numbers(record) if record else ["missing", *["-"] * 5]
        lines.append([name, f"{cell.updates:,}", *numbers])
    return ["| " + " | ".join(line) + " |" for line in lines]


def _record(cell: Cell, records: list[Record]) -> Record | None:
    """The cell's record; learners may have been trained with other seeds beside."""
    options = json.loads(json.dumps(cell.options))
    for record in records:
        algo = record["algo"]
        same = (
            (algo["name"], algo["n_gradient_steps"]) == (cell.method, cell.updates)
            and record["data"]["dataset_id"] == cell.dataset
            and record["seeds"]["train"] == cell.seed
            and _chosen(record) == options
            and not record.get("augment")
            and record["eval"]
        )
        if same:
            return record
    return None


def _chosen(record: Record) -> dict[str, Any]:
    return dict(record["config"]["diff_from_default"])


def _numbers(record: Record) -> list[str]:
    outcome, cost, behaviour = record["eval"], record["cost"], record["data"]["behaviour"]
    values = outcome.get("scores", outcome["returns"])
    half = 1.96 * statistics.stdev(values) / len(values) ** 0.5
    mean = statistics.mean(values)
    success = outcome["success"]
    return [
        f"{mean:.1f}",
        f"[{mean - half:.1f}, {mean + half:.1f}]",
        f"{sum(success) / len(success):.0%}" if success else "-",
        f"{cost['calls_per_decision']:.0f}" if "calls_per_decision" in cost else "1",
        f"{1e3 * cost['decision_seconds']:.1f}" if "decision_seconds" in cost else "-",
        f"{behaviour.get('score_mean', behaviour['return_mean']):.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, nargs="+", default=[], help="folders of HDF5 files")
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--datasets", nargs="+", help="only these")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, one core each")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only write the table")
    parser.add_argument("--dry-run", action="store_true", help="only print what is to be run")
    args = parser.parse_args()
    results = args.results.resolve()
    results.mkdir(parents=True, exist_ok=True)
    cells = [
        cell
        for cell in GRID
        if cell.method in (args.methods or [cell.method])
        and cell.dataset in (args.datasets or [cell.dataset])
    ]
    done = _records(results)
    cells = [cell for cell in cells if _record(cell, done) is None]
    failed = 0 if args.table else _run(cells, args.data, results, args.workers, args.dry_run)
    if not args.dry_run:
        write_text(results / "tables" / "planners.md", page(_records(results)))
        print(results / "tables" / "planners.md")
    if failed:
        raise SystemExit(f"{failed} runs failed; their messages are above")


def _records(results: Path) -> list[Record]:
    return [json.loads(p.read_text()) for p in sorted(results.glob("runs/**/run.json"))]


def _run(cells: list[Cell], folders: list[Path], results: Path, workers: int, dry: bool) -> int:
    """Runs what has no record; gives the number of failures."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        # Records repeat the paths they were made with: these are the same on every machine.
        os.chdir(scratch)
        Path("data").mkdir()
        for file in (file for folder in folders for file in (here / folder).glob("*.hdf5")):
            Path("data", file.name).symlink_to(file)
        Path("results").symlink_to(results)
        absent = {c.dataset for c in cells if not Path("data", f"{c.dataset}.hdf5").exists()}
        if absent:
            raise SystemExit(f"no file for {', '.join(sorted(absent))} in --data; see --help")
        jobs = [job_of(cell, Path("data"), Path("results/runs")) for cell in cells]
        todo = [job for job in jobs if job is not None]
        print(f"{len(todo)} lines are to be run", flush=True)
        if dry:
            print("\n".join(" ".join(job.command[1:]) for job in todo))
            todo = []
        failed = run_all(todo, workers)
        os.chdir(here)
    return failed


if __name__ == "__main__":
    main()
