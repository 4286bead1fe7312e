"""What of a grid is still to be done: cells -> runs, each finished, begun, failed or missing."""

import contextlib
import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from offdiff.config import RunConfig
from offdiff.core.errors import InputError
from offdiff.core.registry import resolve
from offdiff.data.load import SAMPLE, SAMPLE_NAME, load_dataset
from offdiff.folder import IDENTITY, RunFolder
from offdiff.grid import Cell, Grid
from offdiff.lines import Method, text_of
from offdiff.records import FAILURE, RECORD, Failure
from offdiff.results import config_hash

Parse = Callable[[list[str]], RunConfig]
"""The command line of `offdiff run`."""
State = Literal["finished", "begun", "failed", "missing"]
METRICS = "metrics.csv"


@dataclass(frozen=True, eq=False)
class Job:
    """One call of `offdiff run`: seeds that train together, or one seed."""

    cell: Cell
    dataset: str
    """The dataset's own name."""
    method: Method
    changes: Mapping[str, Any]
    """Hyperparameters that are not the defaults."""
    updates: int
    seeds: tuple[int, ...]
    folder: RunFolder
    arguments: tuple[str, ...]
    """Of `offdiff run`, without --out and --resume."""

    @property
    def finished(self) -> bool:
        """Whether every seed has its record."""
        return all((self.folder.seed(seed) / RECORD).exists() for seed in self.seeds)

    @property
    def begun(self) -> bool:
        """Whether it left something to resume."""
        return (self.folder.path / IDENTITY).exists()

    @property
    def failure(self) -> Failure | None:
        """The note of its failure."""
        path = self.folder.path / FAILURE
        return Failure(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    @property
    def state(self) -> State:
        """How far it is, by what lies on the disk."""
        if self.finished:
            return "finished"
        if self.failure is not None:
            return "failed"
        return "begun" if self.begun else "missing"

    @property
    def updates_done(self) -> int:
        """As of the last line of its metrics; 0 if there are none yet."""
        found = 0
        for path in self.folder.path.rglob(METRICS):
            with path.open(newline="", encoding="utf-8") as file:
                rows = [row[0] for row in csv.reader(file) if row and row[0].isdigit()]
            found = max(found, int(rows[-1]) if rows else 0)
        return found

    def __str__(self) -> str:
        return f"{self.method.label} on {self.dataset}, seed{'s' * (len(self.seeds) > 1)} " + (
            " ".join(map(str, self.seeds))
        )


@dataclass(frozen=True)
class Plan:
    """Everything that a grid asks for."""

    grid: Grid
    jobs: tuple[Job, ...]


def plan(grid: Grid, out: Path, parse: Parse) -> Plan:
    """The runs of a grid.

    Seeds that have a record from another grid or another grouping are not asked for again.
    Datasets are loaded once, for their names and digests; those that are not here are fetched.
    Raises InputError that lists every unknown name and every option that does not exist, and for
    cells that ask for the same runs.
    """
    unknown = _unknown_methods(grid)
    problems = [*unknown.values()]
    digests: dict[str, tuple[str, str]] = {}
    for name in dict.fromkeys(cell.dataset for cell in grid.cells):
        try:
            info = load_dataset(name).info
            digests[name] = (info.name, info.sha256)
        except InputError as error:
            problems.append(str(error))
    configs: dict[int, RunConfig] = {}
    for number, cell in enumerate(grid.cells):
        if cell.dataset not in digests or {cell.method, cell.augment} & unknown.keys():
            continue  # told above, once
        try:
            configs[number] = _parse(parse, [*cell.arguments(cell.seeds), "--out", str(out)])
        except InputError as error:
            problems.append(f"{cell}: {error}")
    if problems:
        raise InputError(f"grid {grid.name}: " + "; ".join(problems))
    jobs: list[Job] = []
    for number, config in configs.items():
        jobs += _jobs(grid.cells[number], config, *digests[grid.cells[number].dataset], out)
    _refuse_duplicates(grid, jobs)
    return Plan(grid, tuple(jobs))


def wanted(grid: Grid, parse: Parse) -> dict[tuple[str, Method], tuple[int, ...]]:
    """Seeds asked for by dataset and method, as `lines_of` takes them; needs no data."""
    seeds: dict[tuple[str, Method], set[int]] = {}
    for cell in grid.cells:
        name = SAMPLE_NAME if cell.dataset == SAMPLE else cell.dataset
        name = Path(name).stem if name.endswith((".hdf5", ".h5")) else name
        key = (name, _method(_parse(parse, cell.arguments(cell.seeds))))
        seeds.setdefault(key, set()).update(cell.seeds)
    return {key: tuple(sorted(found)) for key, found in seeds.items()}


def _method(config: RunConfig) -> Method:
    return Method(config.method, text_of(config.changes), config.updates)


def _unknown_methods(grid: Grid) -> dict[str, str]:
    """Names that stand for nothing, and what to say of them."""
    kinds = {"algo": "learners", "planner": "planners", "augment": "augmenters"}
    asked = [(cell.kind, cell.method) for cell in grid.cells]
    asked += [("augment", cell.augment) for cell in grid.cells if cell.augment != "none"]
    problems = {}
    for kind, name in dict.fromkeys(asked):
        try:
            resolve(kinds[kind], name)
        except InputError as error:
            problems[name] = str(error)
    return problems


def _parse(parse: Parse, arguments: list[str]) -> RunConfig:
    """The command line's reading; what its parser prints before leaving becomes the message."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return parse(arguments)
    except SystemExit as error:
        raise InputError(_unframed(said.getvalue())) from error


def _unframed(said: str) -> str:
    """The sentence within the frame that the parser draws around its errors."""
    flat = " ".join(said.translate(str.maketrans("╭╮╰╯│─", "     -")).split())
    parts = [part.strip() for part in re.split("-{3,}", flat)]
    told = [part for part in parts if part and not part.startswith("For full helptext")]
    return (told and told[-1]) or "its options cannot be read"


def _jobs(cell: Cell, config: RunConfig, name: str, digest: str, out: Path) -> list[Job]:
    """One job for the seeds that train together, or one each; finished ones by themselves."""
    hash_ = config_hash(config.identity(digest))

    def folder(seeds: tuple[int, ...]) -> RunFolder:
        return RunFolder(out, name, config.method, seeds, hash_)

    def job(seeds: tuple[int, ...], place: RunFolder) -> Job:
        return Job(
            cell=cell,
            dataset=name,
            method=_method(config),
            changes=config.changes,
            updates=config.updates,
            seeds=seeds,
            folder=place,
            arguments=tuple(cell.arguments(place.seeds)),
        )

    whole = folder(cell.seeds)
    if cell.together and whole.path.exists():
        return [job(cell.seeds, whole)]
    found = [job((seed,), place) for seed in cell.seeds if (place := _finished(whole, seed))]
    left = tuple(seed for seed in cell.seeds if seed not in {one.seeds[0] for one in found})
    groups = [left] if cell.together and left else [(seed,) for seed in left]
    return [*found, *(job(seeds, folder(seeds)) for seeds in groups)]


def _finished(whole: RunFolder, seed: int) -> RunFolder | None:
    """The folder of any run of this configuration that has a record of the seed."""
    for path in sorted(whole.path.parent.glob(f"*-{whole.hash}/seed-{seed}/{RECORD}")):
        folder = path.parents[1]
        dataset, method = folder.parts[-3:-1]
        seeds = tuple(int(word) for word in folder.name.split("-")[:-1])
        return RunFolder(whole.path.parents[2], dataset, method, seeds, whole.hash)
    return None


def _refuse_duplicates(grid: Grid, jobs: Sequence[Job]) -> None:
    seen: dict[tuple[Path, int], Job] = {}
    twice = []
    for job in jobs:
        for seed in job.seeds:
            key = (job.folder.path.parent / job.folder.hash, seed)
            if key in seen:
                twice.append(f"{job.method.label} on {job.dataset} with seed {seed}")
            seen[key] = job
    if twice:
        raise InputError(
            f"grid {grid.name} asks twice for {'; '.join(dict.fromkeys(twice))}; leave out one"
        )
