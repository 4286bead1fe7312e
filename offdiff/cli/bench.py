"""`offdiff bench` and `offdiff bench status`: grids of runs."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro
from tyro.conf import Positional

from offdiff.core.errors import InputError

if TYPE_CHECKING:
    from offdiff.grid_plan import Job, Plan
    from offdiff.grid_run import Executor

INTRODUCTION = """Run a grid: datasets x methods x augmenters x variants x seeds.

What has a record is not run again, what was stopped is resumed, what crashes is tried again and in
the end reported: `offdiff bench` can be stopped in any way and started again. The tables come from
the records: `offdiff table`, `offdiff report`.

Examples:
  offdiff bench smoke                                minutes on a laptop
  offdiff bench mine.toml --jobs 4                   four runs at a time on this machine
  offdiff bench mine.toml --dry-run                  say what would be run
  offdiff bench status mine.toml                     what is finished, begun, failed, missing
  offdiff bench locomotion --backend ray --address 10.0.0.1:6379 --cpus 2 --gpus 0.25
  offdiff bench planners --help                      time planners against one another

A grid is a TOML file:

  seeds = [0, 1, 2]
  datasets = ["sample", "hopper-medium-v2"]
  options = {{ updates = 20000, final_episodes = 50 }}

  [[runs]]
  algos = ["iql", "td3bc"]
  augmenters = ["none", "pgd"]

  [[runs]]
  algos = ["iql"]
  variants = [{{ "algo.expectile" = 0.8 }}, {{ "algo.expectile" = 0.9 }}]

  [[runs]]
  planners = ["trajectory-diffuser"]

Options are those of `offdiff run`. Ready grids: {ready}."""


@dataclass(frozen=True, kw_only=True)
class StatusOptions:
    """Options of `offdiff bench status`."""

    spec: Positional[str]
    """A TOML file, or the name of a ready grid."""
    out: Path = Path("results/runs")
    """Where the runs are."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions(StatusOptions):
    """Options of `offdiff bench`."""

    backend: Literal["local", "ray"] = "local"
    """Processes on this machine, or a Ray cluster."""
    jobs: int = 0
    """local: runs at a time; 0 for as many as there are cores."""
    address: str = "local"
    """ray: `local` starts one here, `auto` finds the one of this machine, or HOST:PORT."""
    cpus: int = 1
    """Cores of every run."""
    gpus: float = 0.0
    """ray: GPUs of every run; 0.25 puts four on one."""
    retries: int = 2
    """Further attempts at a run that crashed or lost its machine."""
    dry_run: bool = False
    """Check the grid and say what would be run."""

    def __post_init__(self) -> None:
        if self.jobs < 0 or self.retries < 0 or self.cpus < 1 or not self.gpus >= 0:
            raise InputError("--jobs, --retries and --gpus must be at least 0, --cpus at least 1")


def main(command: str, args: list[str]) -> int:
    """Parses, runs, prints; 0 if everything has its record, 1 if something has none."""
    from offdiff.grid import read_grid, ready_grids

    status = command.endswith("status")
    options: StatusOptions = tyro.cli(
        StatusOptions if status else BenchOptions,
        args=args,
        prog=f"offdiff {command}",
        description=INTRODUCTION.format(ready=", ".join(ready_grids())),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    from offdiff.cli.run import parse
    from offdiff.grid_plan import plan

    found = plan(read_grid(options.spec), options.out, parse)
    if isinstance(options, BenchOptions) and not options.dry_run:
        _run(found, options)
    _print(found)
    if isinstance(options, BenchOptions) and options.dry_run:
        return 0
    return 0 if all(job.finished for job in found.jobs) else 1


def _run(found: "Plan", options: BenchOptions) -> None:
    from filelock import FileLock, Timeout

    from offdiff.core.files import require_writable

    require_writable(options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(options.out / ".bench.lock", timeout=0):
            _run_alone(found, options)
    except Timeout as error:
        raise InputError(
            f"another `offdiff bench` is at work in {options.out}; wait for it, or give --out"
        ) from error


def _run_alone(found: "Plan", options: BenchOptions) -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from offdiff.grid_run import run_jobs

    left = [job for job in found.jobs if not job.finished]
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    console.print(f"{len(left)} of {len(found.jobs)} runs of {found.grid.name} are to be done")
    if not left:
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    executor = _executor(options)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=sum(job.updates for job in left))

        def glance(running: "Sequence[Job]") -> None:
            over = [job for job in left if job.finished or job.failure]
            done = sum(job.updates for job in over) + sum(job.updates_done for job in running)
            text = f"{len(over)} of {len(left)} runs, {len(running)} at work"
            bar.update(task, completed=done, description=text)

        run_jobs(
            left,
            executor,
            out=options.out,
            threads=options.cpus,
            retries=options.retries,
            tell=console.print,
            glance=glance,
        )


def _executor(options: BenchOptions) -> "Executor":
    if options.backend == "ray":
        from offdiff.grid_ray import RayExecutor

        return RayExecutor(
            options.address,
            options.out,
            cpus=options.cpus,
            gpus=options.gpus,
            retries=options.retries,
        )
    from offdiff.grid_run import LocalExecutor

    return LocalExecutor(options.jobs or max(1, (os.cpu_count() or 1) // options.cpus))


def _print(found: "Plan") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("dataset", "method", "seeds", "state", "updates", title=found.grid.name)
    for job in found.jobs:
        state, failure = job.state, job.failure
        done = job.updates if state == "finished" else job.updates_done
        table.add_row(
            job.dataset,
            job.method.label,
            " ".join(map(str, job.seeds)),
            f"failed: {failure.reason}" if state == "failed" and failure else state,
            f"{done:,} of {job.updates:,}",
        )
    # Off a terminal rich would cut everything to 80 columns.
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    states = [job.state for job in found.jobs]
    counts = [f"{states.count(s)} {s}" for s in ("finished", "begun", "failed", "missing")]
    print(f"{len(states)} runs: " + ", ".join(counts))
    for job in found.jobs:
        if job.failure and not job.finished:
            print(f"failed: {job}; its output is in {job.folder.path / 'log.txt'}")
