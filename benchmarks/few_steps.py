"""World models at few network calls: quality of samples, plain and guided by fixed policies.

    offdiff model train --dataset D --out M/D-edm.safetensors          and so on: rf, reflow, one
    python benchmarks/few_steps.py --dataset D --models M --agents A   results/few-steps/D.json
    python benchmarks/few_steps.py --table                             results/tables/few-steps.md

D is a name in $D4RL_DATASET_DIR or a path; results/README.md has the commands that made the models,
`M/<dataset>-<kind>.safetensors`. A holds the policies, as for benchmarks/synthetic.py. All models
get the same noise, on one thread. Guided lines are means over the policies. What is stopped goes
on when repeated.
"""

import argparse
import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from synthetic import AGENTS, Agent

from offdiff.core.files import write_text
from offdiff.data.load import load_dataset
from offdiff.data.windows import episodes_hash
from offdiff.diffusion.solvers import Solver
from offdiff.diffusion.world_model import WorldModel, load_model
from offdiff.few_step_plots import plot_few_steps
from offdiff.few_steps import Comparison, Point, compare
from offdiff.results import code_version, system

RESULTS = Path(__file__).parents[1] / "results"
CALLS = (1, 2, 4, 8, 16, 32)
STRENGTHS = (1.0, 2.0)
WINDOWS = 256
CPU = torch.device("cpu")
CAPTION = f"""{WINDOWS} windows from the same noise. RMSE: to the exact ODE of the same noise (a
student's: its teacher's), in standard deviations of the data. Energy distance: to windows of
held-out episodes. Dynamics error: of successors, against the simulator, in variances of the data.
Seconds per 100,000 transitions, one CPU core that had other work."""


def models_of(folder: Path, dataset: str, data_hash: str) -> dict[str, WorldModel]:
    """Kind -> model, teachers first."""
    found = {
        path.name.removeprefix(f"{dataset}-").removesuffix(".safetensors"): path
        for path in folder.glob(f"{dataset}-*.safetensors")
        if ".pairs" not in path.name
    }
    return {kind: load_model(found[kind], CPU, data_hash=data_hash) for kind in sorted(found)}


def solvers_of(model: WorldModel) -> tuple[Solver, ...]:
    """Those worth comparing; a distilled model has one step to make."""
    return ("euler",) if model.lineage.max_calls else ("auto", "dpmpp", "unipc")


def guided_jobs(models: dict[str, WorldModel]) -> list[tuple[str, Solver, int]]:
    """Kind, solver and calls of the guided lines: a teacher in full, and ways to fewer calls."""
    jobs: list[tuple[str, Solver, int]] = [("edm", "heun", 31), ("edm", "unipc", 8)]
    jobs += [("edm", "unipc", 4), ("searched", "euler", 4)]
    jobs += [("reflow", "euler", calls) for calls in (2, 4, 8, 31)]
    return [job for job in jobs if job[0] in models]


def measure(name: str, folder: Path, agents: Path, file: Path) -> None:
    """One dataset's record, written part by part; what is there is not made again."""
    torch.set_num_threads(1)
    loaded = load_dataset(name)
    models = models_of(folder, loaded.info.name, episodes_hash(loaded.episodes))
    data = (loaded.episodes, loaded.info)
    record: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if not record:
        asked = {kind: (model, solvers_of(model)) for kind, model in models.items()}
        plain = compare(asked, *data, CALLS, windows=WINDOWS, progress=True)
        record = {
            "dataset": loaded.info.name,
            "windows": WINDOWS,
            "code": {**code_version(), "command": "python benchmarks/few_steps.py"},
            "system": system(CPU, "default"),
            "models": {kind: about(model) for kind, model in models.items()},
            "plain": plain.as_json(),
            "guided": [],
        }
        write_text(file, json.dumps(record, indent=1) + "\n")
    task = str(loaded.info.env_id).partition("-")[0]
    for agent in AGENTS if list(agents.glob(f"*_{task}.npz")) else ():
        policy = Agent(agents / f"{agent}_{task}.npz")
        for strength in STRENGTHS:
            for kind, solver, calls in guided_jobs(models):
                key = {"policy": agent, "strength": strength, "model": kind, "asked": calls}
                if any(key.items() <= row.items() for row in record["guided"]):
                    continue
                (point,) = compare(
                    {kind: (models[kind], (solver,))}, *data, (calls,), policy=policy,
                    strength=strength, windows=WINDOWS,
                ).points  # fmt: skip
                record["guided"].append({**key, **dataclasses.asdict(point)})
                write_text(file, json.dumps(record, indent=1) + "\n")


def about(model: WorldModel) -> dict[str, Any]:
    """What a model is, for the record."""
    return {
        "hash": model.hash,
        "config": dataclasses.asdict(model.config),
        "lineage": dataclasses.asdict(model.lineage),
        "grids": {str(k): list(v) for k, v in model.grids.items()},
        "validation_loss": model.validation[-1][1],
    }


def page(records: list[dict[str, Any]]) -> str:
    """All records as Markdown."""
    lines = ["# World models at few network calls", "", CAPTION, ""]
    for record in records:
        plain = record["plain"]
        floor = plain["dynamics_floor"]
        lines += [
            f"## {record['dataset']}",
            "",
            f"The data: energy distance {plain['energy_floor']:.2g} between two samples, terminals "
            f"{plain['terminal_rate']:.2%}" + (f", dynamics error {floor:.1g}." if floor else "."),
            "",
            *_rows(
                ["model", "solver", "levels", "calls", "RMSE", "energy distance",
                 "dynamics error", "median", "terminals", "s per 100k"],
                [
                    [p["model"], p["solver"], p["levels"], str(p["calls"]),
                     *map(_number, (p["paired"], p["energy"], p["dynamics"], p["dynamics_median"])),
                     f"{p['terminal_rate']:.2%}", f"{p['seconds_per_100k']:.3g}"]
                    for p in plain["points"]
                ],
            ),
            "",
        ]  # fmt: skip
        if record["guided"]:
            lines += ["Guided, calibrated:", "", *_guided(record["guided"]), ""]
    return "\n".join(lines)


def _guided(rows: list[dict[str, Any]]) -> list[str]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = (row["model"], row["solver"], row["levels"], row["calls"], row["strength"])
        groups.setdefault(key, []).append(row)

    def mean(group: list[dict[str, Any]], name: str) -> float | None:
        known = [row[name] for row in group if row[name] is not None]
        return statistics.mean(known) if known else None

    head = ["model", "solver", "levels", "calls", "strength", "dynamics error", "median",
            "log-likelihood", "residual std", "s per 100k"]  # fmt: skip
    names = ("dynamics", "dynamics_median", "log_likelihood", "residual_std", "seconds_per_100k")
    return _rows(
        head,
        [[*map(str, key), *(_number(mean(group, name)) for name in names)]
         for key, group in groups.items()],
    )  # fmt: skip


def _rows(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset")
    parser.add_argument("--models", type=Path, help="folder of the models")
    parser.add_argument("--agents", type=Path, help="folder of the policies' arrays")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only write table and plots")
    args = parser.parse_args()
    folder = args.results / "few-steps"
    if not args.table:
        if not (args.dataset and args.models and args.agents):
            parser.error("--dataset, --models and --agents are needed, or --table")
        file = folder / f"{Path(args.dataset).stem}.json"
        measure(args.dataset, args.models, args.agents, file)
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    write_text(args.results / "tables" / "few-steps.md", page(records))
    for record in records:
        plain = record["plain"]
        points = tuple(Point(**point) for point in plain["points"])
        plot_few_steps(
            Comparison(**{**plain, "points": points}), folder / f"{record['dataset']}.png"
        )


if __name__ == "__main__":
    main()
