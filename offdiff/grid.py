"""Grids of runs: a TOML file -> the command lines of its cells.

    name = "mine"                          # default: the file's name
    seeds = [0, 1, 2]                      # of every block that does not say otherwise
    datasets = ["hopper-medium-v2"]        # likewise
    options = { updates = 20000 }          # likewise; as `offdiff run` takes them

    [[runs]]                               # a block: datasets x methods x augmenters x variants
    algos = ["iql", "td3bc"]
    augmenters = ["none", "pgd"]

    [[runs]]
    algos = ["iql"]
    variants = [{ "algo.expectile" = 0.8 }, { "algo.expectile" = 0.9 }]

    [[runs]]
    planners = ["trajectory-diffuser"]
    options = { "planner.horizon" = 16 }   # besides those of the grid

Seeds of a learner train together, those of a planner apart; `together = false` in a block parts a
learner's, too.
"""

import itertools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from offdiff.core.errors import InputError, unknown_name

Option = bool | int | float | str | list[Any]

SHARED = {"seeds", "datasets", "options", "together"}
"""What the grid may say for all of its blocks."""
TOP = SHARED | {"name", "about", "runs"}
BLOCK = SHARED | {"algos", "planners", "augmenters", "variants"}


@dataclass(frozen=True, eq=False)
class Cell:
    """One dataset, method and set of options, with all seeds that are asked for."""

    dataset: str
    kind: str
    """"algo" or "planner"."""
    method: str
    augment: str
    options: Mapping[str, Option]
    seeds: tuple[int, ...]
    together: bool

    def arguments(self, seeds: Sequence[int]) -> list[str]:
        """What `offdiff run` is called with for some of the seeds, but for --out."""
        words = [f"--{self.kind}", self.method, "--dataset", self.dataset]
        words += ["--augment", self.augment] if self.augment != "none" else []
        words += ["--seeds", *map(str, seeds)]
        for name, value in self.options.items():
            words += flag(name, value)
        return words

    def __str__(self) -> str:
        method = self.method + ("" if self.augment == "none" else f"+{self.augment}")
        options = " ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{method} on {self.dataset}" + (f" ({options})" if options else "")


@dataclass(frozen=True)
class Grid:
    """A named list of cells."""

    name: str
    about: str
    cells: tuple[Cell, ...]


def ready_grids() -> list[str]:
    """Names of the grids that come with the package."""
    folder = files("offdiff") / "grids"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir())


def read_grid(spec: str) -> Grid:
    """The grid of a file, or a ready one by its name.

    Raises InputError, with everything that is wrong in the file's form at once.
    """
    path = Path(spec)
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    elif spec in ready_grids():
        text = (files("offdiff") / "grids" / f"{spec}.toml").read_text(encoding="utf-8")
    else:
        raise unknown_name("grid", spec, ready_grids(), "or give the path of a TOML file")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{spec} is no TOML ({error}); mend that line") from error
    return _grid(spec, values)


def _grid(spec: str, values: Mapping[str, Any]) -> Grid:
    blocks = values.get("runs")
    problems = [f"unknown key {key!r}" for key in values.keys() - TOP]
    if not isinstance(blocks, list) or not blocks:
        raise InputError(f"{spec} has no [[runs]]; add at least one block of datasets and methods")
    shared = {key: values[key] for key in SHARED & values.keys()}
    merged = []
    for number, block in enumerate(blocks, 1):
        problems += [f"block {number}: unknown key {key!r}" for key in block.keys() - BLOCK]
        options = shared.get("options", {}) | block.get("options", {})
        merged.append({"seeds": [0], "datasets": ["sample"]} | shared | block)
        merged[-1]["options"] = options
        problems += [f"block {number}: {text}" for text in _wrong(merged[-1])]
    if problems:
        raise InputError(f"{spec}: {'; '.join(sorted(problems))}")
    cells = tuple(cell for block in merged for cell in _cells(block))
    name = values.get("name", Path(spec).stem)
    return Grid(str(name), str(values.get("about", "")), cells)


def _wrong(block: Mapping[str, Any]) -> Iterator[str]:
    """What of a block has the wrong form."""
    for key in ("datasets", "algos", "planners", "augmenters"):
        value = block.get(key, ["-"])
        if not (isinstance(value, list) and value and all(isinstance(v, str) for v in value)):
            yield f"{key} must be a list of names, got {value!r}"
    seeds = block["seeds"]
    if not (isinstance(seeds, list) and seeds and all(type(s) is int and s >= 0 for s in seeds)):
        yield f"seeds must be a list of numbers >= 0, got {seeds!r}"
    if not ("algos" in block or "planners" in block):
        yield "it names neither algos nor planners"
    variants = block.get("variants", [{}])
    for options in (block["options"], *(variants if isinstance(variants, list) else [variants])):
        if not isinstance(options, dict):
            yield f"options and variants must be tables like {{ updates = 1000 }}, got {options!r}"
            continue
        for name in options.keys() & {"algo", "planner", "augment", "dataset", "seeds", "out"}:
            yield f'option {name!r} is not for options; dotted names are quoted, as "algo.hidden"'


def _cells(block: Mapping[str, Any]) -> Iterator[Cell]:
    methods = [("algo", name) for name in block.get("algos", [])]
    methods += [("planner", name) for name in block.get("planners", [])]
    for dataset, (kind, method), augment, variant in itertools.product(
        block["datasets"], methods, block.get("augmenters", ["none"]), block.get("variants", [{}])
    ):
        yield Cell(
            dataset=dataset,
            kind=kind,
            method=method,
            augment=augment,
            options=block["options"] | variant,
            seeds=tuple(block["seeds"]),
            together=kind == "algo" and bool(block.get("together", True)),
        )


def flag(name: str, value: Option) -> list[str]:
    """An option as the command line takes it."""
    part, _, field = name.replace("_", "-").rpartition(".")
    prefix = f"{part}." if part else ""
    if isinstance(value, bool):
        return [f"--{prefix}{field if value else f'no-{field}'}"]
    words = value if isinstance(value, list) else [value]
    return [f"--{prefix}{field}", *map(str, words)]
