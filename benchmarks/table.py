"""Writes results/tables/ from records alone: scores of the learners, and parity with d3rlpy.

    python benchmarks/table.py            reads results/runs/**/run.json and results/peer/*.json

Every cell is a mean over training seeds of the mean return of each seed's final policy. Behind it:
the 95 % interval of that mean (Student's t over seeds), the seeds' own means, and the score by
D4RL's constants. Run again on the same records it writes the same bytes. Runs of another length
are another line; what was not run is not in the table.
"""

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

HEAD = ("data", "learner", "updates", "seeds", "return", "95 %", "per seed", "score", "behaviour")
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Two-sided 97.5 % quantile of Student's t for so many seeds."""


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean over seeds; None for a single one."""
    if len(values) < 2:
        return None
    half = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values) - half, statistics.mean(values) + half


def learner_rows(records: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """One line per dataset, learner and number of updates."""
    groups: dict[tuple[str, str, int], list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        if record["eval"]:
            algo = record["algo"]
            key = (record["data"]["dataset_id"], algo["name"], algo["n_gradient_steps"])
            groups[key].append(record)
    rows = []
    for (data, learner, updates), group in sorted(groups.items()):
        group.sort(key=lambda record: record["seeds"]["train"])
        means = [record["eval"]["mean"] for record in group]
        scores = [r["eval"]["score_mean"] for r in group if "score_mean" in r["eval"]]
        behaviour = group[0]["data"]["behaviour"]
        score = f"{statistics.mean(scores):.1f}" if len(scores) == len(group) else "-"
        base = f"{behaviour['return_mean']:.0f}"
        if "score_mean" in behaviour:
            base += f" ({behaviour['score_mean']:.1f})"
        rows.append((data, learner, f"{updates}", f"{len(group)}", *_spread(means), score, base))
    return rows


def parity_rows(
    records: Iterable[Mapping[str, Any]], peers: Iterable[Mapping[str, Any]]
) -> list[tuple[str, ...]]:
    """Ours and the peer's on the same file, learner and updates, where both were run."""
    mine: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    theirs: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for record in records:
        if record["eval"]:
            algo = record["algo"]
            key = (record["data"]["dataset_id"], algo["name"], algo["n_gradient_steps"])
            mine[key].append(record["eval"]["mean"])
    for record in peers:
        key = (Path(record["data"]).stem, record["algo"], record["updates"])
        theirs[key].append(statistics.mean(record["returns"]))
    rows = []
    for key in sorted(mine.keys() & theirs.keys()):
        data, learner, updates = key
        for name, means in (("offdiff", mine[key]), ("d3rlpy 2.8.1", theirs[key])):
            rows.append((data, learner, f"{updates}", name, f"{len(means)}", *_spread(means)))
    return rows


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """A Markdown table under its caption."""
    lines = [caption, "", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _spread(means: Sequence[float]) -> tuple[str, str, str]:
    spread = f" ± {statistics.stdev(means):.0f}" if len(means) > 1 else ""
    bounds = interval(means)
    return (
        f"{statistics.mean(means):.0f}{spread}",
        f"[{bounds[0]:.0f}, {bounds[1]:.0f}]" if bounds else "-",
        ", ".join(f"{mean:.0f}" for mean in sorted(means)),
    )


def _caption(records: Sequence[Mapping[str, Any]]) -> str:
    """What all numbers of a table have in common, or in what they differ."""
    finals = [record["eval"] for record in records if record["eval"]]
    facts = {
        "simulator": {f"{e['env_id']} ({e['simulator_version']})" for e in finals},
        "final episodes per seed": {str(e["n_episodes"]) for e in finals},
        "commit": {str(record["code"]["git_commit"])[:7] for record in records},
    }
    listed = "; ".join(f"{name}: {', '.join(sorted(values))}" for name, values in facts.items())
    return f"Last checkpoint, mean action, mean ± std (ddof 1) over seeds. {listed}."


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path("results"))
    args = parser.parse_args()
    records = [json.loads(p.read_text()) for p in sorted(args.results.glob("runs/**/run.json"))]
    peers = [json.loads(p.read_text()) for p in sorted(args.results.glob("peer/*.json"))]
    tables = args.results / "tables"
    tables.mkdir(exist_ok=True)
    caption = _caption(records)
    (tables / "learners.md").write_text(markdown(HEAD, learner_rows(records), caption))
    head = ("data", "learner", "updates", "library", "seeds", "return", "95 %", "per seed")
    (tables / "parity.md").write_text(markdown(head, parity_rows(records, peers), caption))


if __name__ == "__main__":
    main()
