"""Trains and evaluates what the tables of scores, of parity and of augmenters are made of.

The grids below are the whole of it: learner, dataset, updates, seeds, and hyperparameters that
differ from the learner's defaults. What has a record is not run again, what was stopped is resumed,
a run that fails does not stop the others: this can be stopped and started at will.

    python benchmarks/scores.py --data FOLDER --workers 2                 all of the grids
    python benchmarks/scores.py --data FOLDER --grid augment              with synthetic experience
    python benchmarks/scores.py --data FOLDER --grid parity --peer-python peer/bin/python
    python benchmarks/scores.py --data FOLDER --dry-run                   says what is missing
    python benchmarks/table.py                                            then the tables

FOLDER holds the HDF5 files, `<dataset>.hdf5`. Every run is `offdiff run` in a process of its own,
on one thread, all its seeds together. With --peer-python (an interpreter that has d3rlpy 2.8.1, see
`peer_d3rlpy.py`) the peer's half of the parity table is run too, a process per seed. Records go to
results/runs and results/peer.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from offdiff.augment.base import AugmentConfig
from offdiff.checkpoint import config_from_json
from offdiff.cli.run import augment_config
from offdiff.config import RunConfig
from offdiff.core.files import sha256
from offdiff.core.registry import resolve
from offdiff.data.catalogue import recognise
from offdiff.folder import IDENTITY, RunFolder
from offdiff.results import config_hash

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
FINAL_EPISODES = 50


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One line of a table."""

    learner: str
    dataset: str
    updates: int
    log_every: int
    eval_every: int
    seeds: tuple[int, ...] = (0, 1, 2)
    hyperparameters: dict[str, object] = field(default_factory=dict)
    """Those that are not the learner's defaults."""
    augment: str = "none"
    augment_options: dict[str, object] = field(default_factory=dict)
    """Those that are not the augmenter's defaults; those of its model as "model.steps"."""

    @property
    def method(self) -> str:
        """Learner and augmenter, as a run's folder is called."""
        return self.learner + ("" if self.augment == "none" else f"+{self.augment}")


DATASETS = ("hopper-medium-zoo", "hopper-mixed-zoo", "halfcheetah-medium-zoo")
SMALL_CQL: dict[str, object] = {"hidden": (256, 256), "penalty": 5.0}
"""The peer's sizes; the paper's third layer doubles the time."""
CHANGED = {
    "cql": SMALL_CQL,
    # The paper's batches are 1024; a quarter of that fits a CPU.
    "rebrac": {"batch_size": 256},
}
SCORES = tuple(
    Cell(
        learner=learner,
        dataset=dataset,
        updates=updates,
        log_every=1_000,
        eval_every=eval_every,
        hyperparameters=CHANGED.get(learner, {}),
    )
    for dataset in DATASETS
    for learner, updates, eval_every in (
        ("bc", 100_000, 20_000),
        ("td3bc", 100_000, 20_000),
        ("iql", 100_000, 20_000),
        ("rebrac", 100_000, 20_000),
        ("cql", 20_000, 5_000),
    )
)
PARITY = tuple(
    Cell(
        learner=learner,
        dataset="hopper-medium-zoo",
        updates=updates,
        log_every=500,
        eval_every=10_000,
        hyperparameters=hyperparameters,
    )
    for learner, updates, hyperparameters in (
        ("td3bc", 50_000, {}),
        ("iql", 50_000, {}),
        # `peer_d3rlpy.py` scales observations for every learner.
        ("cql", 10_000, SMALL_CQL | {"scale_observations": True}),
    )
)
TEN_THOUSAND: dict[str, object] = {"every": 10_000, "transitions": 32_000}
DIFFUSION = TEN_THOUSAND | {"model.steps": 6_000}
AUGMENTERS: dict[str, dict[str, object]] = {
    "none": {},
    "unguided": DIFFUSION,
    "pgd": DIFFUSION,
    "pgd-released": DIFFUSION,
    "world-model": TEN_THOUSAND | {"start": 10_000},
}
AUGMENT = tuple(
    Cell(
        learner=learner,
        dataset=dataset,
        updates=50_000,
        log_every=500,
        eval_every=10_000,
        augment=augment,
        augment_options=options,
    )
    for dataset in DATASETS
    for learner in ("iql", "td3bc")
    for augment, options in AUGMENTERS.items()
)
GRIDS = {"scores": SCORES, "parity": PARITY, "augment": AUGMENT}


@dataclass(frozen=True)
class Job:
    """A command that makes records, and what it is called in messages."""

    name: str
    command: list[str]


def our_job(cell: Cell, data: Path, out: Path) -> Job | None:
    """The run of a cell that is still to be done; None if all its records are there."""
    config = RunConfig(
        dataset=str(data / f"{cell.dataset}.hdf5"),
        algo=config_from_json(resolve("learners", cell.learner), cell.hyperparameters),
        augment=augmenter_of(cell),
        seeds=cell.seeds,
        updates=cell.updates,
        log_every=cell.log_every,
        eval_every=cell.eval_every,
        final_episodes=FINAL_EPISODES,
        out=out,
    )
    identity = config.identity(sha256(Path(config.dataset)))
    folder = RunFolder(out, cell.dataset, cell.method, cell.seeds, config_hash(identity))
    if folder.records():
        return None
    command = [sys.executable, "-m", "offdiff", "run", "--algo", cell.learner]
    command += ["--augment", cell.augment]
    for name in ("dataset", "updates", "seeds", "log_every", "eval_every", "final_episodes", "out"):
        command += _option(name, getattr(config, name))
    for name, value in cell.hyperparameters.items():
        command += _option(f"algo.{name}", value)
    for name, value in cell.augment_options.items():
        command += _option(f"augment.{name}", value)
    resume = ["--resume"] if (folder.path / IDENTITY).exists() else []
    return Job(f"{cell.method} on {cell.dataset}, {cell.updates} updates", command + resume)


def augmenter_of(cell: Cell) -> AugmentConfig | None:
    """The cell's augmenter with its options."""
    config = augment_config(cell.augment, paper=False)
    if config is None:
        return None
    model = {k.removeprefix("model."): v for k, v in cell.augment_options.items() if "." in k}
    own = {k: v for k, v in cell.augment_options.items() if "." not in k}
    if model:
        own["model"] = replace(config.model, **model)  # type: ignore[attr-defined]
    return replace(config, **own)  # type: ignore[arg-type]


def peer_jobs(cell: Cell, data: Path, out: Path, python: str) -> list[Job]:
    """The peer's runs of a cell that have no record yet."""
    records = [json.loads(path.read_text()) for path in out.glob("*.json")]
    done = {(r["algo"], Path(r["data"]).stem, r["updates"], r["seed"]) for r in records}
    env_id = recognise(cell.dataset, None).env_id
    return [
        Job(
            f"d3rlpy's {cell.learner} on {cell.dataset}, seed {seed}",
            [
                *(python, str(HERE / "peer_d3rlpy.py"), "--algo", cell.learner),
                *("--data", str(data / f"{cell.dataset}.hdf5"), "--env", str(env_id)),
                *("--seed", str(seed), "--updates", str(cell.updates)),
                *("--episodes", str(FINAL_EPISODES)),
                *("--out", str(out / f"{cell.dataset}-{cell.learner}-{seed}.json")),
            ],
        )
        for seed in cell.seeds
        if (cell.learner, cell.dataset, cell.updates, seed) not in done
    ]


def run_all(jobs: Iterable[Job], workers: int) -> int:
    """Runs the jobs, so many at a time; gives the number that failed."""

    def run(job: Job) -> bool:
        print(f"started   {job.name}", flush=True)
        done = subprocess.run(
            job.command,
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        print(f"{'finished' if done.returncode == 0 else 'FAILED  '}  {job.name}", flush=True)
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
        return done.returncode == 0

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(run, jobs)).count(False)


def _option(name: str, value: object) -> list[str]:
    """A field and its value as the command line takes them."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else flag.replace("algo.", "algo.no-")]
    return [flag, *map(str, value if isinstance(value, tuple) else (value,))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the HDF5 files")
    parser.add_argument("--grid", choices=tuple(GRIDS), nargs="+", default=list(GRIDS))
    parser.add_argument("--learners", nargs="+", help="only these")
    parser.add_argument("--datasets", nargs="+", help="only these")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, one core each")
    parser.add_argument("--peer-python", help="also run the peer, in this interpreter")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--dry-run", action="store_true", help="only print what is to be run")
    args = parser.parse_args()
    peer = args.peer_python and str(Path(args.peer_python).absolute())
    data, results = args.data.resolve(), args.results.resolve()
    grids = {
        name: [
            cell
            for cell in GRIDS[name]
            if cell.learner in (args.learners or [cell.learner])
            and cell.dataset in (args.datasets or [cell.dataset])
        ]
        for name in args.grid
    }
    cells = [cell for grid in grids.values() for cell in grid]
    for file in sorted({data / f"{cell.dataset}.hdf5" for cell in cells}):
        if not file.is_file():
            raise SystemExit(f"{file} does not exist; put it there or leave its dataset out")
    results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        # Records repeat the paths they were made with: these are the same on every machine.
        os.chdir(scratch)
        Path("data").symlink_to(data)
        Path("results").symlink_to(results)
        ours = [our_job(cell, Path("data"), Path("results/runs")) for cell in cells]
        todo = [job for job in ours if job is not None]
        print(f"{len(todo)} of {len(cells)} lines of the tables are to be run", flush=True)
        for cell in grids.get("parity", []) if peer else []:
            todo += peer_jobs(cell, Path("data"), Path("results/peer"), peer)
        if args.dry_run:
            print("\n".join(" ".join(job.command[1:]) for job in todo))
            todo = []
        failed = run_all(todo, args.workers)
        os.chdir(HERE)  # the scratch folder is about to go
    if failed:
        raise SystemExit(f"{failed} of {len(todo)} runs failed; their messages are above")


if __name__ == "__main__":
    main()
