"""Takes Trajectory Diffuser apart: the proposal alone, refined by so many levels, or noise instead.

    python benchmarks/planner_parts.py RUN --out results/planners/hopper-medium-zoo.json
    python benchmarks/planner_parts.py --table results/planners/hopper-medium-zoo.json

RUN is the seed folder of a `trajectory-diffuser` run. Its one trained model is played with other
settings, 50 episodes each from the same starts, and the record holds every episode's return. Times
are those of the evaluation, ten environments at once on one thread, other work beside.
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
from offdiff.results import code_version, read_record, system

EPISODES, SEED = 50, 1_000
PARTS: tuple[dict[str, Any], ...] = (
    {"levels": 0},
    {"levels": 2},
    {"levels": 1},
    {"levels": 5},
    {"levels": 10},
    {"levels": 20},
    {"levels": 5, "start": "noise"},
    {"levels": 20, "start": "noise"},
    {"levels": 2, "warm_start": True},
    {"levels": 2, "candidates": 1},
    {"levels": 2, "guidance": 0.0},
)


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


def page(record: dict[str, Any]) -> str:
    """The record as a table in Markdown."""
    score_range = recognise(record["dataset"], None).score_range
    assert score_range is not None
    lines = [
        f"# What makes Trajectory Diffuser ({record['dataset']})",
        "",
        f"One trained model (start level {record['start_level']:.3f} of the data's spreads), "
        f"{EPISODES} episodes from the same starts; score and 95 % interval over episodes.",
        "",
        "| start | levels | other | score | 95 % | calls | ms |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for part in sorted(record["parts"], key=_order):
        settings = dict(part["settings"])
        start, levels = settings.pop("start", "proposal"), settings.pop("levels")
        other = ", ".join(f"{k} {v}" for k, v in settings.items()) or "-"
        scores = [score_range.score(value) for value in part["returns"]]
        mean, half = statistics.mean(scores), 1.96 * statistics.stdev(scores) / EPISODES**0.5
        cost = f"{part['calls_per_decision']:.1f} | {1e3 * part['decision_seconds']:.1f}"
        interval = f"[{mean - half:.1f}, {mean + half:.1f}]"
        lines.append(f"| {start} | {levels} | {other} | {mean:.1f} | {interval} | {cost} |")
    return "\n".join([*lines, ""])


def _order(part: dict[str, Any]) -> tuple[bool, int, int]:
    """From the proposal before from noise, then by levels; what differs otherwise comes last."""
    settings = part["settings"]
    start = settings.get("start", "proposal") == "noise"
    return start, len(settings.keys() - {"levels", "start"}), settings["levels"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", help="seed folder of a run")
    parser.add_argument("--out", type=Path, help="record to write; lines in it are kept")
    parser.add_argument("--table", type=Path, help="record to make a table of")
    args = parser.parse_args()
    if args.table:
        path = args.table.resolve().parents[1] / "tables" / "planner-parts.md"
        write_text(path, page(json.loads(args.table.read_text())))
        print(path)
        return
    torch.set_num_threads(1)
    saved, run = load_planner(args.run), read_record(args.run / "run.json")
    record: dict[str, Any] = {
        "dataset": run.data["dataset_id"],
        "run_id": run.run_id,
        "start_level": float(saved.planner.start),
        "code": code_version() | {"command": "benchmarks/planner_parts.py"},
        "system": system(torch.device("cpu"), "default"),
        "parts": [],
    }
    if args.out.exists():
        record["parts"] = json.loads(args.out.read_text())["parts"]
    for part in PARTS:
        if part not in [line["settings"] for line in record["parts"]]:
            record["parts"].append(play(saved, part, run.eval))
            write_text(args.out, json.dumps(record, indent=1) + "\n")
            print(part, statistics.mean(record["parts"][-1]["returns"]), flush=True)


if __name__ == "__main__":
    main()
