"""Does a learner's value stay near what is earned when it sees synthetic experience alone?

Trains IQL on synthetic transitions only (share 1), and on the data only beside it. At every point
of the curve the record of `offdiff run` then also holds

- q_recorded, recorded: Q of recorded transitions, and the discounted return recorded from there;
- q_start, earned: Q of the learner's own action where episodes start, and what it then earns,
  discounted.

    python benchmarks/value_bias.py             every line that has no record yet; resumable
    python benchmarks/value_bias.py --table     only results/tables/value-bias.md and the picture

The HDF5 file lies in $D4RL_DATASET_DIR. Records go to results/value-bias. `released` is the sampler
and the layout of PGD's code: actions through atanh, no transition terminal, steps of unit length.
"""

import argparse
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offdiff.algos.iql import IQL, IQLConfig
from offdiff.cli.run import parse
from offdiff.core.files import replacing, write_text
from offdiff.core.numerics import default_products
from offdiff.core.protocols import Learner, Policy
from offdiff.data.episodes import Episodes
from offdiff.data.load import load_dataset
from offdiff.environments import make_simulator
from offdiff.evaluate import episode_seed
from offdiff.markdown import markdown_table
from offdiff.prepare import Prepared, Transitions, prepare
from offdiff.records import RECORD, RunRecord, read_record
from offdiff.run import run
from offdiff.training import Row

RESULTS = Path(__file__).parent.parent / "results"
DATASET = "hopper-medium-zoo"
EPISODES = 5
"""Played per seed and point of the curve, for their discounted returns."""
ROWS = 4096
HORIZON = 500
"""Steps after which a discounted return is taken to be complete: 0.99^500 is 0.7 %."""
# The curve has no point at the end, so that the end lies beyond 100,000.
RUN = "--algo iql --updates 101_000 --log-every 1_000 --eval-every 10_000 --final-episodes 50"
SYNTHETIC = (
    "--augment.share 1 --augment.every 10_000 --augment.transitions 16_000 "
    "--augment.model.steps 6_000"
)
LAYOUT = "--augment.model.action-map tanh --augment.model.no-terminals"
LINES = {
    "data": f"{RUN} --seeds 0 1 2",
    "unguided": f"{RUN} --seeds 0 1 2 --augment unguided {SYNTHETIC}",
    "pgd": f"{RUN} --seeds 0 1 2 --augment pgd {SYNTHETIC}",
    "unguided, released layout": f"{RUN} --seeds 0 1 2 --augment unguided {SYNTHETIC} {LAYOUT}",
    "released": f"{RUN} --seeds 0 --augment pgd-released {SYNTHETIC} {LAYOUT}",
}
"""Options of `offdiff run`. Of the released sampler one seed, for what it costs."""
CAPTION = f"""IQL on {DATASET}, on the data or on synthetic transitions alone; means over seeds. Q,
the lesser of two critics, of recorded transitions beside the discounted return recorded from there
on (rows from which it was recorded completely); Q of the policy's action where episodes start,
beside what it then earns in {EPISODES} episodes, discounted. Expectile 0.7 values better actions
than the recorded ones, so that Q of recorded transitions may lie above their return and be right.
The largest Q is that of any seed and point of the curve. Score: 50 episodes."""


class Probe:
    """Q beside what is earned: further numbers for a run's curve. For rewards as they are."""

    def __init__(self, transitions: Transitions, env_id: str, discount: float) -> None:
        self.env_id, self.discount = env_id, discount
        episodes = transitions.episodes
        rows = complete(episodes)
        rows = rows[np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).astype(np.int64)]
        self.recorded = float(returns_to_go(episodes, discount)[rows].mean())
        self.batch = transitions.view(transitions.episodes.transitions_at(rows, "strict"))

    def __call__(self, learner: Learner, prepared: Prepared, update: int) -> list[Row]:
        """One mapping per seed."""
        assert isinstance(learner, IQL)
        assert learner.config.reward == "none"
        critic = learner.values.critic
        seeds = len(learner.random)

        @torch.no_grad()
        def values(obs: Tensor, action: Tensor) -> list[float]:  # (B, O), (B, A) -> one per seed
            rows = (t.expand(seeds, *t.shape) for t in (obs, action))
            return critic(*rows).amin(1).mean(1).tolist()

        q_recorded = values(self.batch.obs, self.batch.action)
        points = []
        for i in range(seeds):
            policy = prepared.deploy(learner.policy(i))
            starts, earned = play(policy, self.env_id, update, self.discount)
            with torch.no_grad():
                action = policy.act(starts)
            scaled = (starts - policy.obs_mean) / policy.obs_std
            points.append(
                {
                    "q_recorded": q_recorded[i],
                    "recorded": self.recorded,
                    "q_start": values(scaled, action)[i],
                    "earned": earned,
                }
            )
        return points


def complete(episodes: Episodes) -> NDArray[np.int64]:
    """Rows from which nearly all of the discounted return was recorded."""
    last = np.repeat(episodes.last, episodes.lengths)
    left = last - np.arange(len(episodes))
    return np.flatnonzero(episodes.terminal[last] | (left >= HORIZON))


def returns_to_go(episodes: Episodes, discount: float) -> NDArray[np.float64]:
    """(N,) discounted sum of the rewards from every row to the end of its episode."""
    total, following = np.empty(len(episodes)), 0.0
    last = episodes.terminal | episodes.truncated
    for i in reversed(range(len(episodes))):
        following = episodes.reward[i] + (0.0 if last[i] else discount * following)
        total[i] = following
    return total


def play(policy: Policy, env_id: str, seed: int, discount: float) -> tuple[Tensor, float]:
    """EPISODES episodes: where they start (EPISODES, O), and their mean discounted return."""
    starts, total = [], 0.0
    with make_simulator(env_id) as simulator, default_products(), torch.no_grad():
        for k in range(EPISODES):
            obs, ended, weight = simulator.reset(episode_seed(seed, k)), False, 1.0
            starts.append(torch.from_numpy(obs))
            while not ended:
                step = simulator.step(policy.act(torch.from_numpy(obs[None]))[0].numpy())
                total += weight * step.reward
                weight *= discount
                obs, ended = step.obs, step.ended
    return torch.stack(starts), total / EPISODES


def measure(line: str, results: Path) -> None:
    """Trains one line, or continues what a stopped call left; its records go to `results`."""
    out = results / "value-bias" / folder(line)
    config = parse(["--dataset", DATASET, "--out", str(out), *LINES[line].split()])
    config = replace(config, resume=any(out.rglob("config.json")))
    dataset = load_dataset(config.dataset)
    _, transitions = prepare(dataset, config.algo, config.conversion)
    assert isinstance(config.algo, IQLConfig)
    assert dataset.info.env_id is not None
    run(config, probe=Probe(transitions, dataset.info.env_id, config.algo.discount))


def page(lines: Mapping[str, list[RunRecord]]) -> str:
    """The table as Markdown: means over seeds, and the largest value of any seed and point."""
    points = (10_000, 50_000, 100_000)
    head = ["synthetic experience", "seeds"]
    head += [f"Q of recorded, {point // 1000}k" for point in points]
    head += ["recorded", "Q at starts, 100k", "earned, 100k", "largest Q", "final score"]
    table = [head]
    for line, records in lines.items():
        if not records:
            table.append([line, "not measured", *[""] * (len(head) - 2)])
            continue
        at = {row["update"]: mean_of(records, row["update"]) for row in records[0].curve}
        largest = max(max(row["q_recorded"], row["q_start"]) for r in records for row in r.curve)
        last = at[points[-1]]
        numbers = [at[point]["q_recorded"] for point in points]
        numbers += [last["recorded"], last["q_start"], last["earned"], largest]
        numbers.append(mean(record.eval["score_mean"] for record in records))
        table.append([line, str(len(records)), *(f"{number:.1f}" for number in numbers)])
    return "\n".join(["# Values learned from synthetic experience alone", "", CAPTION, "",
                      markdown_table(table), ""])  # fmt: skip


def mean_of(records: list[RunRecord], update: int) -> Row:
    """Every number of the curve at one update, mean over the seeds."""
    rows = [row for record in records for row in record.curve if row["update"] == update]
    return {name: mean(row[name] for row in rows) for name in rows[0]}


def plot(lines: Mapping[str, list[RunRecord]], path: Path) -> None:
    """Q of recorded transitions over the updates, a panel per line, every seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = {line: records for line, records in lines.items() if records}
    if not shown:
        return
    figure = Figure(figsize=(3 * len(shown), 3), dpi=100)
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for panel, (line, records) in zip(panels, shown.items(), strict=True):
        for record in records:
            updates = [row["update"] for row in record.curve]
            panel.plot(updates, [row["q_recorded"] for row in record.curve], color="#1f5fa8")
        panel.axhline(records[0].curve[0]["recorded"], color="#6b6b6b", linestyle=":")
        panel.set(title=line, xlabel="updates")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("Q of recorded transitions\n(dotted: their discounted return)")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", nargs="+", choices=LINES, default=list(LINES))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only write the table and its picture")
    args = parser.parse_args()
    if not args.table:
        for line in args.lines:
            measure(line, args.results)
    found = {line: found_in(args.results / "value-bias" / folder(line)) for line in LINES}
    write_text(args.results / "tables" / "value-bias.md", page(found))
    plot(found, args.results / "value-bias" / "values.png")


def folder(line: str) -> str:
    """Where a line's records are."""
    return line.replace(", ", "-").replace(" ", "-")


def found_in(place: Path) -> list[RunRecord]:
    """The records below a folder, in the order of their seeds."""
    found = [read_record(path) for path in sorted(place.rglob(RECORD))]
    return sorted(found, key=lambda record: record.seeds["train"])


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
