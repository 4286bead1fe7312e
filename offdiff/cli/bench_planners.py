"""`offdiff bench planners`: what a decision costs."""

import json
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro
from tyro.conf import Positional

from offdiff.cli.options import parse_options
from offdiff.core.errors import InputError

if TYPE_CHECKING:
    from offdiff.planner_speed import PlannerSpeed
    from offdiff.planners.base import PlannerConfig


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Time planners against one another: from an observation to an action, without the simulator.

    They take turns, decision by decision; ratios are medians over turns, to the first planner
    named. In settings "1 environment" and "64 environments" a planner keeps its own number of
    candidates; with "64 candidates" one that knows none plans for so many copies of the
    environment.

    Examples:
      offdiff bench planners trajectory-diffuser diffuser decision-diffuser
      offdiff bench planners RUN trajectory-diffuser --dataset hopper-medium-v2
      offdiff bench planners trajectory-diffuser diffuser --preset paper --repeats 1000 --warmup 50
      offdiff bench planners trajectory-diffuser decision-diffuser --settings horizon=32
        network=temporal-64 decision-diffuser.levels=10
    """

    planners: Positional[tuple[str, ...]]
    """Names of planners or module:Class, built untrained; or folders of finished runs."""
    dataset: str = "sample"
    """Where observations and sizes come from: bundled sample, HDF5 file, D4RL name or Minari id."""
    preset: Literal["laptop", "paper"] = "laptop"
    """Sizes of planners given by name."""
    settings: tuple[str, ...] = ()
    """FIELD=VALUE for all planners given by name that have the field, PLANNER.FIELD=VALUE for one;
    several numbers with commas."""
    candidates: int = 64
    """Also time one environment with so many candidates."""
    environments: int = 64
    """Also time so many environments at once."""
    repeats: int = 100
    """Decisions timed of every planner in every setting."""
    warmup: int = 10
    """Decisions before that; at least as many as a planner remembers."""
    seed: int = 0
    """Of plans, replayed observations and intervals."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int = 1
    """CPU threads; 0 for all cores."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if not self.planners:
            raise InputError("name at least one planner or run")
        if min(self.candidates, self.environments, self.repeats) < 1:
            raise InputError("--candidates, --environments and --repeats must be at least 1")
        if min(self.warmup, self.threads, self.seed) < 0:
            raise InputError("--warmup, --threads and --seed must be at least 0")


def main(command: str, args: list[str]) -> int:
    """Parses, measures, prints; the exit code."""
    options = parse_options(BenchOptions, args, command)
    from offdiff import planner_speed, results
    from offdiff.core import numerics
    from offdiff.data.load import load_dataset

    device = numerics.choose_device(options.device)
    dataset = load_dataset(options.dataset)
    kernels = numerics.use_fastest_exact_matmul() if device.type == "cpu" else "cublas"
    contenders = [
        planner_speed.contender(source, dataset, device, config)
        for source, config in _sources(options)
    ]
    settings = (
        planner_speed.Setting(),
        planner_speed.Setting(candidates=options.candidates),
        planner_speed.Setting(environments=options.environments),
    )
    with numerics.threads(options.threads):
        machine = results.system(device, kernels)
        found = planner_speed.measure(
            contenders,
            dataset,
            settings,
            repeats=options.repeats,
            warmup=options.warmup,
            seed=options.seed,
            progress=sys.stderr.isatty(),
        )
    if options.json:
        print(json.dumps({"system": machine, "planners": [asdict(one) for one in found]}, indent=1))
        return 0
    where = machine["cpu"] if device.type == "cpu" else machine["device"]
    print(
        f"{where}, {machine['threads']} CPU threads, torch {machine['torch']}, float32; "
        f"observations of {dataset.info.name}; {options.repeats} decisions each"
    )
    _print(found)
    return 0


def _sources(options: BenchOptions) -> "list[tuple[str | Path, PlannerConfig | None]]":
    """Folders of runs, and names with their configs."""
    from offdiff.checkpoint import planner_config
    from offdiff.reevaluate import seed_folders

    folders = {
        name: seed_folders(Path(name))[0] for name in options.planners if Path(name).is_dir()
    }
    configs = {name: planner_config(name, {}) for name in options.planners if name not in folders}
    if options.preset == "paper":
        configs = {name: config.at_paper_size() for name, config in configs.items()}
    for setting in options.settings:
        configs |= _changed(configs, setting)
    return [(folders.get(name, name), configs.get(name)) for name in options.planners]


def _changed(configs: "dict[str, PlannerConfig]", setting: str) -> "dict[str, PlannerConfig]":
    """The configs that one setting changes, changed."""
    path, equals, value = setting.partition("=")
    name, _, field = path.rpartition(".")
    if name and name not in configs:
        raise InputError(f"--settings {setting}: {name!r} is not among the planners given by name")
    chosen = {
        one: config
        for one, config in configs.items()
        if name in ("", one) and field in (known.name for known in fields(config))
    }
    if not (equals and chosen):
        raise InputError(
            f"--settings {setting} is not FIELD=VALUE or PLANNER.FIELD=VALUE with a field of a "
            "planner given by name; `offdiff run --planner NAME --help` shows them"
        )
    return {
        one: tyro.cli(
            type(config),
            args=[f"--{field}", *value.split(",")],
            default=config,
            prog=f"offdiff bench planners --settings {setting}: {one}",
            config=(tyro.conf.FlagConversionOff,),
        )
        for one, config in chosen.items()
    }


def _print(found: "list[PlannerSpeed]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "planner", "setting", "p50 ms", "p95 ms", "mean ms", "first ms", "plans/s", "calls",
        f"time over that of {found[0].planner}",
    )  # fmt: skip
    for one in found:
        for i, t in enumerate(one.timings):
            table.add_row(
                one.planner if i == 0 else "",
                t.setting,
                *(f"{ms:.2f}" for ms in (t.p50_ms, t.p95_ms, t.mean_ms, t.first_ms)),
                f"{t.plans_per_second:.0f}",
                f"{t.calls:g}",
                f"{t.ratio:.2f} [{t.ratio_low:.2f}, {t.ratio_high:.2f}]",
                end_section=i == len(one.timings) - 1,
            )
    sizes = Table("planner", "parameters", "sizes", "environments at 50 Hz")
    for one in found:
        text = ", ".join(f"{name} {value}" for name, value in one.config.items())
        sizes.add_row(one.planner, f"{one.parameters:,}", text, str(one.served))
    # Off a terminal rich would cut everything to 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(table)
    console.print(sizes)
