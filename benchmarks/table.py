"""Writes results/tables/ from records alone: scores, of augmenters too, parity with d3rlpy.

    python benchmarks/table.py        reads results/runs/**/run.json and results/peer/*.json

A line is a dataset, a learner, its hyperparameters and a number of updates. Its score is the mean
over training seeds of the mean over the episodes of each seed's final policy; beside it stand the
standard deviation over seeds (ddof 1), the 95 % interval of the mean (Student's t over seeds), the
seeds' own means and the score of the behaviour in the data. What the grid of `scores.py` asks for
and has no record is counted as missing, never left out. In the parity table a pair agrees if the
intervals overlap. The same records give the same bytes; .csv holds the numbers unrounded.
"""

import argparse
import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scores import AUGMENT, PARITY, RESULTS, SCORES, Cell

from offdiff.core.files import write_text
from offdiff.data.catalogue import recognise

PEER = "d3rlpy 2.8.1"
T_975 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
)
"""97.5 % quantiles of Student's t for 1 to 20 degrees of freedom; beyond, the last is used."""

Record = Mapping[str, Any]
Key = tuple[str, str, int, str]
"""Dataset, learner, updates, hyperparameters that differ from the defaults."""


@dataclass(frozen=True)
class Line:
    """One learner on one dataset."""

    key: Key
    library: str
    seed_scores: Mapping[int, float]
    """Training seed -> mean score of its final policy."""
    missing: tuple[int, ...]
    """Seeds that have no record."""
    episodes: tuple[int, ...]
    """Final episodes per seed, all that occur."""
    behaviour: float | None
    """Score of the data."""

    @property
    def mean(self) -> float | None:
        """Over seeds."""
        return statistics.mean(self.seed_scores.values()) if self.seed_scores else None

    @property
    def std(self) -> float | None:
        """Over seeds, ddof 1; None below two seeds."""
        return statistics.stdev(self.seed_scores.values()) if len(self.seed_scores) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean; None below two seeds."""
        if self.mean is None or self.std is None:
            return None
        n = len(self.seed_scores)
        half = T_975[min(n - 2, len(T_975) - 1)] * self.std / math.sqrt(n)
        return self.mean - half, self.mean + half


def learner_lines(records: Iterable[Record], grid: Iterable[Cell]) -> list[Line]:
    """The grid's lines in its order, then those of other records, sorted."""
    groups: dict[Key, list[Record]] = {}
    for record in records:
        if "scores" in record["eval"]:
            groups.setdefault(_key(record), []).append(record)
    wanted = {_cell_key(cell): cell.seeds for cell in grid}
    keys = [*wanted, *sorted(groups.keys() - wanted.keys())]
    return [_line(key, groups.get(key, []), wanted.get(key, ())) for key in keys]


def parity_lines(
    records: Iterable[Record], peers: Iterable[Record], grid: Iterable[Cell]
) -> list[tuple[Line, Line]]:
    """Ours and the peer's for every cell of the grid."""
    cells = tuple(grid)
    keys = {_cell_key(cell) for cell in cells}
    ours = learner_lines((r for r in records if _key(r) in keys), cells)
    return [
        (line, _peer_line(cell, line.key, peers)) for line, cell in zip(ours, cells, strict=True)
    ]


def verdict(ours: Line, peer: Line) -> str:
    """Whether the 95 % intervals overlap, and if not, who is higher."""
    if ours.missing or peer.missing or ours.interval is None or peer.interval is None:
        return "incomplete"
    (low, high), (peer_low, peer_high) = ours.interval, peer.interval
    if low > peer_high:
        return "ours higher"
    return "overlap" if high >= peer_low else "ours lower"


def learners_table(lines: Iterable[Line]) -> list[list[str]]:
    """Header and rows as text."""
    head = ["dataset", "learner", "updates", "score", "95 %", "behaviour", "seeds' scores",
            "episodes", "runs"]  # fmt: skip
    return [head, *([*_name(line), *_numbers(line)] for line in lines)]


def parity_table(pairs: Iterable[tuple[Line, Line]]) -> list[list[str]]:
    """Header and rows as text, two lines per pair."""
    head = ["dataset", "learner", "updates", "library", "score", "95 %", "behaviour",
            "seeds' scores", "episodes", "runs", "verdict"]  # fmt: skip
    rows = []
    for ours, peer in pairs:
        rows.append([*_name(ours), ours.library, *_numbers(ours), verdict(ours, peer)])
        rows.append([*_name(peer), peer.library, *_numbers(peer), ""])
    return [head, *rows]


def markdown(title: str, caption: str, table: Sequence[Sequence[str]]) -> str:
    """A page with one table."""
    head, *rows = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join(
        [f"# {title}", "", caption, "", head, "|" + " --- |" * len(table[0]), *rows, ""]
    )


def comma_separated(lines: Iterable[Line]) -> str:
    """The lines' numbers, unrounded."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            *("dataset", "learner", "updates", "hyperparameters", "library"),
            *("mean", "std", "low", "high", "behaviour"),
            *("seeds", "scores", "missing_seeds", "episodes"),
        ]
    )
    for line in lines:
        low, high = line.interval or (None, None)
        scores = (
            " ".join(map(str, each)) for each in (line.seed_scores, line.seed_scores.values())
        )
        ends = (" ".join(map(str, each)) for each in (line.missing, line.episodes))
        spread = (line.mean, line.std, low, high, line.behaviour)
        writer.writerow([*line.key, line.library, *spread, *scores, *ends])
    return out.getvalue()


def caption(records: Sequence[Record]) -> str:
    """What the numbers are, and which simulators, data and code they come from."""
    facts = {
        "Simulator": {f"{r['eval']['env_id']} ({r['eval']['simulator_version']})" for r in records},
        "data (SHA-256)": {
            f"{r['data']['dataset_id']} {r['data']['file_sha256'][:12]}" for r in records
        },
        "score constants": {r["eval"]["constants_source"] for r in records},
        "offdiff": {
            f"{str(r['code']['git_commit'])[:8]}{' (changed)' if r['code']['dirty'] else ''}"
            for r in records
        },
    }
    found = "; ".join(f"{name}: {', '.join(sorted(v))}" for name, v in facts.items() if v)
    return (
        "Score of the last checkpoint, mean action: mean ± standard deviation (ddof 1) over "
        "training seeds of each seed's mean over its final episodes; 95 % intervals by Student's "
        f"t. {found or 'No records yet'}."
    )


def _key(record: Record) -> Key:
    algo, augment = record["algo"], record.get("augment") or {}
    name = algo["name"] + (f"+{augment['name']}" if augment else "")
    changed = record["config"]["diff_from_default"] | {
        f"augment.{k}": v for k, v in augment.get("diff_from_default", {}).items()
    }
    return record["data"]["dataset_id"], name, algo["n_gradient_steps"], _text(changed)


def _cell_key(cell: Cell) -> Key:
    options = {f"augment.{k}": v for k, v in cell.augment_options.items()}
    return cell.dataset, cell.method, cell.updates, _text(cell.hyperparameters | options)


def _text(hyperparameters: Mapping[str, Any]) -> str:
    """The same for a cell and, after JSON, for its record."""
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in hyperparameters.items()}
    return " ".join(f"{name}={values[name]}".replace(" ", "") for name in sorted(values))


def _line(key: Key, group: Sequence[Record], wanted: Sequence[int]) -> Line:
    by_seed = {record["seeds"]["train"]: record for record in group}
    if len(by_seed) < len(group):
        raise SystemExit(f"two records for one seed of {' '.join(map(str, key))}; remove one")
    found = sorted(by_seed)
    behaviours = {record["data"]["behaviour"].get("score_mean") for record in group}
    return Line(
        key=key,
        library="offdiff",
        seed_scores={seed: by_seed[seed]["eval"]["score_mean"] for seed in found},
        missing=tuple(seed for seed in wanted if seed not in by_seed),
        episodes=tuple(sorted({len(record["eval"]["returns"]) for record in group})),
        behaviour=behaviours.pop() if len(behaviours) == 1 else None,
    )


def _peer_line(cell: Cell, key: Key, peers: Iterable[Record]) -> Line:
    score_range = recognise(cell.dataset, None).score_range
    assert score_range is not None, cell
    name = (cell.dataset, cell.learner, cell.updates)
    group = [p for p in peers if (Path(p["data"]).stem, p["algo"], p["updates"]) == name]
    returns = {p["seed"]: p["returns"] for p in sorted(group, key=lambda p: p["seed"])}
    return Line(
        key=key,
        library=PEER,
        seed_scores={s: score_range.score(statistics.mean(r)) for s, r in returns.items()},
        missing=tuple(seed for seed in cell.seeds if seed not in returns),
        episodes=tuple(sorted({len(r) for r in returns.values()})),
        behaviour=None,
    )


def _name(line: Line) -> tuple[str, str, str]:
    dataset, learner, updates, changed = line.key
    return dataset, f"{learner} ({changed})" if changed else learner, f"{updates:,}"


def _numbers(line: Line) -> list[str]:
    """Score, interval, behaviour, seeds' scores, episodes, runs."""
    spread = f" ± {line.std:.1f}" if line.std is not None else ""
    interval = f"[{line.interval[0]:.1f}, {line.interval[1]:.1f}]" if line.interval else "-"
    runs = str(len(line.seed_scores))
    return [
        f"{line.mean:.1f}{spread}" if line.mean is not None else "-",
        interval,
        f"{line.behaviour:.1f}" if line.behaviour is not None else "-",
        ", ".join(f"{score:.1f}" for score in line.seed_scores.values()) or "-",
        ", ".join(map(str, line.episodes)) or "-",
        f"{runs}, {len(line.missing)} missing" if line.missing else runs,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    records = [json.loads(p.read_text()) for p in sorted(args.results.glob("runs/**/run.json"))]
    # Planners have a table of their own, by benchmarks/planners.py.
    learners = (record for record in records if record["algo"].get("kind") != "planner")
    scored = [record for record in learners if "scores" in record["eval"]]
    peers = [json.loads(p.read_text()) for p in sorted(args.results.glob("peer/*.json"))]
    augmented = learner_lines(
        (r for r in scored if _key(r) in set(map(_cell_key, AUGMENT))), AUGMENT
    )
    plain = [record for record in scored if not record.get("augment")]
    lines = learner_lines(plain, (*SCORES, *PARITY))
    pairs = parity_lines(scored, peers, PARITY)
    tables, words = args.results / "tables", caption(scored)
    pages = {
        "learners.md": markdown("Scores of the learners", words, learners_table(lines)),
        "learners.csv": comma_separated(lines),
        "augmenters.md": markdown("Scores with augmenters", words, learners_table(augmented)),
        "augmenters.csv": comma_separated(augmented),
        "parity.md": markdown(f"Parity with {PEER}", words, parity_table(pairs)),
        "parity.csv": comma_separated(line for pair in pairs for line in pair),
    }
    for name, text in pages.items():
        write_text(tables / name, text)
        print(tables / name)


if __name__ == "__main__":
    main()
