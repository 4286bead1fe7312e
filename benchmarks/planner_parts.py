"""Takes planners apart: levels of Trajectory Diffuser and Diffuser, Veteran's candidates.

    python benchmarks/planner_parts.py RUN            adds lines to results/planners/*.json
    python benchmarks/planner_parts.py --table        results/tables/planner-parts.md from them

RUN is the seed folder of a `trajectory-diffuser`, `diffuser` or `veteran` run. Its one trained
model is played with other settings, 50 episodes each from the same starts, and the record holds
every episode's return. Times are those of the evaluation, ten environments at once on one thread,
others beside.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from offdiff.checkpoint import SavedPlanner, load_planner
from offdiff.core.files import write_text
from offdiff.data.catalogue import recognise
from offdiff.evaluate import evaluate
from offdiff.records import read_record
from offdiff.results import code_version, system

RESULTS = Path(__file__).parents[1] / "results"
EPISODES, SEED = 50, 1_000
PARTS: dict[str, tuple[dict[str, Any], ...]] = {
    "trajectory-diffuser": (
        {"levels": 0},
        {"levels": 1},
        {"levels": 2},
        {"levels": 2, "candidates": 1},
        {"levels": 2, "warm_start": True},
        {"start": "noise", "levels": 20},
        {"levels": 5},
        {"levels": 20},
        {"levels": 10},
        {"start": "noise", "levels": 5},
        {"levels": 2, "guidance": 0.0},
    ),
    "diffuser": (
        {"levels": 1, "unguided_levels": 0},
        {"levels": 2, "unguided_levels": 0},
        {"levels": 2, "unguided_levels": 1},
        {"levels": 5},
        {"levels": 20},
    ),
    "veteran": ({"candidates": 1}, {"candidates": 4}, {"candidates": 16}),
}


def altered(saved: SavedPlanner, part: dict[str, Any]) -> SavedPlanner:
    """The same weights under other settings."""
    config = replace(saved.config, **part)
    planner = config.build(saved.task)
    planner.load_state_dict(saved.planner.state_dict())
    return replace(saved, config=config, planner=planner.eval().requires_grad_(False))


def play(saved: SavedPlanner, part: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """One line of the record."""
    policy = altered(saved, part).policy(seed=0)
    result = evaluate(
        policy, run["env_id"], episodes=EPISODES, seed=SEED,
        max_episode_steps=run["max_episode_steps"], progress=False,
    )  # fmt: skip
    return {
        "settings": part,
        "returns": result.returns,
        "decision_seconds": policy.seconds / policy.decisions,
        "calls_per_decision": policy.calls / policy.decisions,
    }


def page(records: list[dict[str, Any]]) -> str:
    """The records as tables in Markdown."""
    lines = [
        "# What makes planners",
        "",
        f"One trained model each, {EPISODES} episodes from the same starts; score, 95 % interval",
        "over episodes (normal approximation).",
    ]
    for record in records:
        lines += ["", f"## {record['planner']} on {record['dataset']}", ""]
        lines += ["| settings | score | 95 % | calls | ms |", "| --- | --- | --- | --- | --- |"]
        lines += [_row(record["dataset"], part) for part in sorted(record["parts"], key=_order)]
    return "\n".join([*lines, ""])


def _row(dataset: str, part: dict[str, Any]) -> str:
    score_range = recognise(dataset, None).score_range
    assert score_range is not None
    scores = [score_range.score(value) for value in part["returns"]]
    mean, half = statistics.mean(scores), 1.96 * statistics.stdev(scores) / len(scores) ** 0.5
    settings = ", ".join(f"{k} {v}" for k, v in part["settings"].items())
    cost = f"{part['calls_per_decision']:.1f} | {1e3 * part['decision_seconds']:.1f}"
    return f"| {settings} | {mean:.1f} | [{mean - half:.1f}, {mean + half:.1f}] | {cost} |"


def _order(part: dict[str, Any]) -> tuple[bool, int, int]:
    """From the proposal before from noise, then by levels; what differs otherwise comes last."""
    settings = part["settings"]
    noise = settings.get("start", "proposal") == "noise"
    return noise, len(settings.keys() - {"levels", "start"}), settings.get("levels", 0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", help="seed folder of a run")
    parser.add_argument("--table", action="store_true", help="only write the table")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if not args.table:
        _play_all(args.run, args.results)
    records = [
        json.loads(p.read_text()) for p in sorted(args.results.glob("planners/*-parts.json"))
    ]
    write_text(args.results / "tables" / "planner-parts.md", page(records))


def _play_all(folder: Path, results: Path) -> None:
    torch.set_num_threads(1)
    saved, run = load_planner(folder), read_record(folder / "run.json")
    out = results / "planners" / f"{saved.name}-{run.data['dataset_id']}-parts.json"
    record: dict[str, Any] = {
        "planner": saved.name,
        "dataset": run.data["dataset_id"],
        "run_id": run.run_id,
        "code": code_version("python benchmarks/planner_parts.py"),
        "system": system(torch.device("cpu"), "default"),
        "parts": json.loads(out.read_text())["parts"] if out.exists() else [],
    }
    for part in PARTS[saved.name]:
        if part not in [line["settings"] for line in record["parts"]]:
            record["parts"].append(play(saved, part, run.eval))
            write_text(out, json.dumps(record, indent=1) + "\n")
            print(part, statistics.mean(record["parts"][-1]["returns"]), flush=True)


if __name__ == "__main__":
    main()
