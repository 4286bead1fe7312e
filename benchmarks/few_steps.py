"""World models at few network calls: quality of samples, plain, of several seeds, and guided.

    offdiff model train --dataset D --out M/D-edm.safetensors          and so on: rf, reflow, one
    python benchmarks/few_steps.py --dataset D --models M --agents A   results/few-steps/D.json
    python benchmarks/few_steps.py --table                             results/tables/few-steps.md

D is a name in $D4RL_DATASET_DIR or a path; results/README.md has the commands that made the models,
`M/<dataset>-<kind>.safetensors`, and those of further training seeds, `M/seed1/...`. A holds the
policies, as for benchmarks/synthetic.py; --policy RUN adds that of a run. All models get the same
noise, on one thread. Guided lines are means over the policies. What is stopped goes on when
repeated.
"""

import argparse
import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from few_steps_page import REFERENCE, page
from synthetic import AGENTS, Agent

from offdiff.checkpoint import load_policy
from offdiff.core.files import write_text
from offdiff.core.protocols import Policy
from offdiff.data.dataset import DatasetInfo
from offdiff.data.episodes import Episodes
from offdiff.data.load import load_dataset
from offdiff.data.windows import episodes_hash
from offdiff.diffusion.sampling import low_levels
from offdiff.diffusion.solvers import Solver
from offdiff.diffusion.world_model import WorldModel, load_model
from offdiff.few_step_plots import plot_few_steps
from offdiff.few_steps import Comparison, Point, compare
from offdiff.results import code_version, system

RESULTS = Path(__file__).parents[1] / "results"
COMMAND = "python benchmarks/few_steps.py"
WINDOWS, GUIDED_WINDOWS = 256, 1024
"""Guidance is compared by means, which few windows with large errors make uncertain."""
CALLS, LOW_CALLS = (1, 2, 4, 8, 16, 32), (2, 3, 4, 5, 6, 8)
STRENGTHS, REFERENCE_STRENGTHS = (1.0, 2.0), (0.5, 1.0, 2.0, 4.0)
CPU = torch.device("cpu")
Jobs = dict[str, tuple[WorldModel, tuple[Solver, ...]]]


def models_of(folder: Path, dataset: str, data_hash: str) -> dict[str, WorldModel]:
    """Kind -> model, as older ones are, and `<kind>-low`: the same from the data's Gaussian."""
    found = {
        path.name.removeprefix(f"{dataset}-").removesuffix(".safetensors"): path
        for path in sorted(folder.glob(f"{dataset}-*.safetensors"))
        if ".pairs" not in path.name
    }
    models: dict[str, WorldModel] = {}
    for kind, path in found.items():
        model = load_model(path, CPU, data_hash=data_hash)
        if model.grids or model.gaussian is None:
            models[kind] = model
        else:
            models[kind] = replace(model, gaussian=None)
            low = {calls: tuple(low_levels(calls)[:-1].tolist()) for calls in LOW_CALLS}
            models[f"{kind}-low"] = replace(model, grids=low)
    return models


def jobs_of(models: dict[str, WorldModel]) -> tuple[Jobs, Jobs]:
    """Models and solvers for all numbers of calls, and for the few that low levels are for."""
    usual: dict[str, tuple[Solver, ...]] = {
        "edm": ("heun", "dpmpp", "unipc"), "rf": ("heun", "unipc"), "reflow": ("euler", "unipc"),
        "one": ("euler",),
    }  # fmt: skip
    low = ("edm-low", "rf-low", "reflow-low", "searched")
    return (
        {kind: (models[kind], solvers) for kind, solvers in usual.items() if kind in models},
        {kind: (models[kind], ("unipc",)) for kind in low if kind in models},
    )


def guided_jobs(models: dict[str, WorldModel]) -> list[tuple[str, Solver, int, float]]:
    """Guided lines: kind, solver, calls, and the level of noise if they start from the data."""
    jobs: list[tuple[str, Solver, int, float]] = []
    jobs += [(kind, "unipc", calls, 0.0) for kind in ("edm-low", "rf-low") for calls in (4, 8)]
    jobs += [("reflow", "euler", calls, 0.0) for calls in (4, 8)]
    jobs += [("edm", "unipc", 4, noised) for noised in (1.5, 3.0, 6.0)]
    return [job for job in jobs if job[0] in models]


def plain(
    models: dict[str, WorldModel], episodes: Episodes, info: DatasetInfo, seed: int
) -> Comparison:
    """All points without guidance."""
    usual, low = jobs_of(models)
    found = compare(usual, episodes, info, CALLS, windows=WINDOWS, seed=seed, progress=True)
    more = compare(low, episodes, info, LOW_CALLS, windows=WINDOWS, seed=seed, progress=True)
    few = [p for p in more.points if p.model != "searched" or p.levels == "searched"]
    return replace(found, points=(*found.points, *map(_named, few)))


def _named(point: Point) -> Point:
    """Nobody searched the levels of `low_levels`."""
    return replace(point, levels="low") if point.model.endswith("-low") else point


def measure(name: str, folder: Path, policies: dict[str, Policy], file: Path) -> None:
    """One dataset's record, written part by part; what is there is not made again."""
    torch.set_num_threads(1)
    loaded = load_dataset(name)
    data_hash = episodes_hash(loaded.episodes)
    models = models_of(folder, loaded.info.name, data_hash)
    data = (loaded.episodes, loaded.info)
    record: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if not record:
        record = {
            "dataset": loaded.info.name,
            "windows": WINDOWS,
            "guided_windows": GUIDED_WINDOWS,
            "code": code_version(COMMAND),
            "system": system(CPU, "default"),
            "models": {k: about(m) for k, m in models.items() if not k.endswith("-low")},
            "plain": plain(models, *data, seed=0).as_json(),
            "guided": [],
            "seeds": {},
        }
        write_text(file, json.dumps(record, indent=1) + "\n")
    for place in sorted(folder.glob("seed*")):
        others = models_of(place, loaded.info.name, data_hash)
        seed = place.name.removeprefix("seed")
        if {"edm", "reflow"} <= others.keys() and seed not in record["seeds"]:
            record["models"] |= {
                f"{k} {place.name}": about(m) for k, m in others.items() if not k.endswith("-low")
            }
            record["seeds"][seed] = plain(others, *data, seed=int(seed)).as_json()
            write_text(file, json.dumps(record, indent=1) + "\n")
    record.setdefault(
        "guided_code", code_version(COMMAND)
    )  # parts may be made by different commits
    for policy_name, policy in policies.items():
        for strength in REFERENCE_STRENGTHS:
            others_too = guided_jobs(models) if strength in STRENGTHS else []
            for kind, solver, calls, noised in [(*REFERENCE, 0.0), *others_too]:
                key = {"policy": policy_name, "strength": strength, "model": kind,
                       "solver": solver, "asked": calls, "noised": noised}  # fmt: skip
                if any(key.items() <= row.items() for row in record["guided"]):
                    continue
                (point,) = compare(
                    {kind: (models[kind], (solver,))}, *data, (calls,), policy=policy,
                    strength=strength, noised=noised, windows=GUIDED_WINDOWS,
                ).points  # fmt: skip
                record["guided"].append({**key, **dataclasses.asdict(_named(point))})
                write_text(file, json.dumps(record, indent=1) + "\n")


def policies_of(agents: Path | None, run: Path | None, dataset: str) -> dict[str, Policy]:
    """Name -> policy: those of the dataset's task, and that of a run."""
    policies: dict[str, Policy] = {}
    for name in AGENTS if agents else ():
        for path in (agents or Path()).glob(f"{name}_*.npz"):
            if dataset.startswith(path.stem.partition("_")[2].lower()):
                policies[name] = Agent(path)
    if run is not None:
        policies[run.parts[-3]] = load_policy(run)
    return policies


def about(model: WorldModel) -> dict[str, Any]:
    """What a model is, for the record."""
    return {
        "hash": model.hash,
        "config": dataclasses.asdict(model.config),
        "lineage": dataclasses.asdict(model.lineage),
        "grids": {str(k): list(v) for k, v in model.grids.items()},
        "validation_loss": model.validation[-1][1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset")
    parser.add_argument("--models", type=Path, help="folder of the models")
    parser.add_argument("--agents", type=Path, help="folder of the policies' arrays")
    parser.add_argument("--policy", type=Path, help="seed folder of a run whose policy guides")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only write table and plots")
    args = parser.parse_args()
    folder = args.results / "few-steps"
    if not args.table:
        if not (args.dataset and args.models):
            parser.error("--dataset and --models are needed, or --table")
        name = Path(args.dataset).stem
        policies = policies_of(args.agents, args.policy, name)
        measure(args.dataset, args.models, policies, folder / f"{name}.json")
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    write_text(args.results / "tables" / "few-steps.md", page(records))
    for record in records:
        found = record["plain"]
        points = tuple(Point(**point) for point in found["points"])
        plot_few_steps(
            Comparison(**{**found, "points": points}), folder / f"{record['dataset']}.png"
        )


if __name__ == "__main__":
    main()
