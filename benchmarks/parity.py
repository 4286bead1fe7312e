"""Learners beside those of d3rlpy 2.8.1: trains the peer's half, tabulates both.

    offdiff bench results/grids/parity.toml               our half, see results/README.md
    python benchmarks/parity.py --data FOLDER --peer-python peer/bin/python
    python benchmarks/parity.py                           only the table, results/tables/parity.md

FOLDER holds the HDF5 files, `<dataset>.hdf5`. The peer needs an interpreter of its own
(`peer_d3rlpy.py` says which); it runs in a process per seed, one at a time, and what has a record
in results/peer is not run again. A pair agrees if its 95 % intervals (Student's t over seeds)
overlap.
"""

import argparse
import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from offdiff.cli.run import parse
from offdiff.core.files import write_text
from offdiff.data.catalogue import recognise
from offdiff.grid import read_grid
from offdiff.grid_plan import wanted
from offdiff.lines import Line, lines_of
from offdiff.markdown import markdown_table
from offdiff.records import read_records
from offdiff.tables import interval

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
PEER = "d3rlpy 2.8.1"
EPISODES = 50
CAPTION = f"""Score of the last checkpoint, mean action: mean ± standard deviation (ddof 1) over
training seeds of each seed's mean over {EPISODES} episodes; 95 % intervals by Student's t. Both
libraries play Hopper-v4; simulators and versions are in the records."""


@dataclass(frozen=True)
class Pair:
    """One line of ours and the peer's scores, by seed."""

    ours: Line
    peer: Mapping[int, float]

    @property
    def verdict(self) -> str:
        """Whether the intervals overlap, and if not, who is higher."""
        seeds = len(self.ours.runs) + len(self.ours.failed) + len(self.ours.missing)
        if not len(self.ours.values) == len(self.peer) == seeds > 1:
            return "incomplete"
        (low, high), (peer_low, peer_high) = (
            interval(self.ours.values),
            interval(list(self.peer.values())),
        )
        if low > peer_high:
            return "ours higher"
        return "overlap" if high >= peer_low else "ours lower"


def pairs_of(lines: Iterable[Line], peers: Iterable[Mapping[str, Any]]) -> list[Pair]:
    """Every line of the grid beside the peer's runs of the same learner, data and updates."""
    records = sorted(peers, key=lambda record: record["seed"])
    return [Pair(line, _peer_scores(line, records)) for line in lines]


def _peer_scores(line: Line, records: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    score_range = recognise(line.dataset, None).score_range
    assert score_range is not None, line.dataset
    name = (line.dataset, line.method.name, line.method.updates)
    return {
        record["seed"]: score_range.score(mean(record["returns"]))
        for record in records
        if (Path(record["data"]).stem, record["algo"], record["updates"]) == name
    }


def page(pairs: Iterable[Pair]) -> str:
    """The table as Markdown, two rows per pair."""
    head = ["dataset", "method", "library", "score", "95 %", "seeds", "verdict"]
    rows = [head]
    for pair in pairs:
        name = [pair.ours.dataset, pair.ours.method.label]
        rows.append([*name, "offdiff", *_numbers(pair.ours.values), pair.verdict])
        rows.append([*name, PEER, *_numbers(list(pair.peer.values())), ""])
    return "\n".join([f"# Parity with {PEER}", "", CAPTION, "", markdown_table(rows), ""])


def _numbers(values: list[float]) -> list[str]:
    if not values:
        return ["missing", "-", "-"]
    low, high = interval(values)
    several = len(values) > 1
    return [
        f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if several else ""),
        f"[{low:.1f}, {high:.1f}]" if several else "-",
        ", ".join(f"{value:.1f}" for value in values),
    ]


def run_peer(
    pairs: Iterable[Pair], seeds: Iterable[int], python: str, data: Path, out: Path
) -> int:
    """Runs what the peer has no record of; gives the number of failures."""
    failed = 0
    for pair in pairs:
        line = pair.ours
        for seed in sorted(set(seeds) - pair.peer.keys()):
            record = out / f"{line.dataset}-{line.method.name}-{seed}.json"
            command = [
                *(python, str(HERE / "peer_d3rlpy.py"), "--algo", line.method.name),
                *("--data", f"{line.dataset}.hdf5"),
                *("--env", str(recognise(line.dataset, None).env_id)),
                *("--seed", str(seed), "--updates", str(line.method.updates)),
                *("--episodes", str(EPISODES), "--out", str(record.resolve())),
            ]
            print(f"{PEER}: {line.method.name} on {line.dataset}, seed {seed}", flush=True)
            # In the data's folder: the record repeats the path, which is then nobody's.
            done = subprocess.run(
                command, cwd=data, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            failed += done.returncode != 0
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", help="run the peer, in this interpreter")
    parser.add_argument("--data", type=Path, help="folder of the HDF5 files, for the peer")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--grid", default=str(RESULTS / "grids" / "parity.toml"))
    args = parser.parse_args()
    if args.peer_python and not (args.data and args.data.is_dir()):
        parser.error("--peer-python needs --data, the folder of the HDF5 files")
    grid = wanted(read_grid(args.grid), parse)
    found = read_records([args.results / "runs"])
    lines = [
        line
        for line in lines_of(found.finished, found.failed, grid)
        if (line.dataset, line.method) in grid
    ]
    peers, failed = args.results / "peer", 0
    if args.peer_python:
        python = str(Path(args.peer_python).absolute())
        seeds = {seed for asked in grid.values() for seed in asked}
        failed = run_peer(_pairs(lines, peers), seeds, python, args.data, peers)
    write_text(args.results / "tables" / "parity.md", page(_pairs(lines, peers)))
    print(args.results / "tables" / "parity.md")
    if failed:
        raise SystemExit(f"{failed} runs of the peer failed; their messages are above")


def _pairs(lines: list[Line], peers: Path) -> list[Pair]:
    return pairs_of(lines, [json.loads(path.read_text()) for path in sorted(peers.glob("*.json"))])


if __name__ == "__main__":
    main()
