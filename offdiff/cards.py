"""A card for a result: what was trained on what, how it was judged, what it does not show.

Written from the records of one line alone, as Markdown (after Mitchell et al. 2019, model cards,
and Gebru et al. 2021, datasheets).
"""

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from offdiff import tables
from offdiff.core.files import write_text
from offdiff.lines import Line
from offdiff.markdown import markdown_table
from offdiff.publishable import publishable
from offdiff.records import UNSEALED, RunRecord


def write_cards(lines: Sequence[Line], folder: Path) -> list[Path]:
    """One file per line that has runs; gives their paths."""
    paths = []
    for line in lines:
        if line.runs:
            hash_ = line.runs[0].config["config_hash"]
            path = folder / f"{line.dataset}-{_slug(line.method.name)}-{hash_}.md"
            write_text(path, card(line))
            paths.append(path)
    return paths


def card(line: Line) -> str:
    """The card of a line. It must have at least one run."""
    first = line.runs[0]
    parts = [
        f"# {line.method.name} on {line.dataset}",
        _table(_summary(line)),
        "## Data",
        _table(_data(first)),
        "## Training",
        _table(_training(line)),
        "## Evaluation",
        _table(_evaluation(line)),
        _scores(line),
    ]
    if first.augment:
        parts += ["## Synthetic experience", _table(_synthetic(line))]
    parts += [
        "## What this does not show",
        "\n".join(f"- {text}" for text in limits(line)),
        "## To repeat it",
        "\n".join(f"    {command}" for command in _commands(line)),
        "Records: " + ", ".join(f"`{run.run_id}` ({run.digest[:12]})" for run in line.runs) + ".",
    ]
    text: str = publishable("\n\n".join(part for part in parts if part) + "\n")
    return text


def limits(line: Line) -> Iterator[str]:
    """What the records themselves say against the result."""
    first = line.runs[0]
    if len(line.runs) == 1:
        yield "One training seed: nothing is known about others."
    elif len(line.runs) < 5:
        yield f"{len(line.runs)} training seeds: the interval over seeds is wide and uncertain."
    lost = [*line.failed, *line.missing]
    if lost:
        yield f"Seeds {', '.join(map(str, lost))} failed or are missing."
    if not first.eval:
        yield "There is no simulator: the policy was never played."
    elif not str(first.eval.get("fidelity", "")).startswith("exact"):
        yield f"The simulator is not that of the data: {first.eval.get('fidelity')}."
    if first.eval and line.unit == "return":
        yield "There are no constants for a score; returns compare within this environment alone."
    if any(run.code.get("dirty") for run in line.runs):
        yield "The code had changes that were not committed."
    if any(run.digest == UNSEALED for run in line.runs):
        yield "Records of schema 1 carry no digest: an edit would not be noticed."
    yield "Trained on recorded data of one task; it was tried on no other and is not for real use."


def _summary(line: Line) -> dict[str, str]:
    values = line.values
    result = "not played"
    if values:
        cells = tables.score_row(line)
        over = "seeds" if len(values) > 1 else "episodes"
        interval = f"[{cells['low']:.1f}, {cells['high']:.1f}], 95 % over {over}"
        result = f"{cells['mean']:.1f} {interval}"
    return {
        line.unit: result,
        "behaviour in the data": "unknown" if line.behaviour is None else f"{line.behaviour:.1f}",
        "seeds": ", ".join(str(run.seed) for run in line.runs),
        "updates": f"{line.method.updates:,}",
    }


def _data(run: RunRecord) -> dict[str, str]:
    data = run.data
    behaviour = data.get("behaviour", {})
    transform = data.get("reward_transform", {})
    facts = {
        "source": data.get("source"),
        "SHA-256": data["file_sha256"],
        "transitions": f"{data.get('n_transitions', 0):,}",
        "episodes": data.get("n_episodes"),
        "recorded by": behaviour.get("description") or "unknown",
        "return of its episodes": _spread(behaviour, "return_mean", "return_std"),
        "share used": f"{data.get('subset_fraction', 1.0):.0%}",
        "conversion": data.get("conversion_mode"),
        "rewards": transform.get("name", "none"),
        "observations": data.get("obs_layout") or "as recorded",
        "notes": "; ".join(data.get("notes", [])),
    }
    return {name: str(fact) for name, fact in facts.items() if fact}


def _training(line: Line) -> dict[str, str]:
    first = line.runs[0]
    seconds = [run.cost["train_seconds"] for run in line.runs]
    return {
        "method": line.method.name,
        "hyperparameters": first.algo["hyperparameter_provenance"],
        "changed": line.method.changes or "nothing",
        "batch": str(first.algo.get("batch_size")),
        "seconds": f"{statistics.mean(seconds):,.0f}, "
        f"{first.cost.get('replicas_in_process', 1)} seeds in one process",
        "machine": f"{first.system.get('cpu')}, {first.system.get('device')}, "
        f"{first.system.get('threads')} threads",
        "versions": f"torch {first.system.get('torch')}, Python {first.system.get('python')}, "
        f"offdiff {first.code.get('offdiff_version')} at {first.code.get('git_commit')}",
    }


def _evaluation(line: Line) -> dict[str, str]:
    outcome = line.runs[0].eval
    if not outcome:
        return {"environment": "none"}
    success = tables.score_row(line)["success"]
    facts = {
        "environment": f"{outcome['env_id']}, {outcome['simulator_version']}",
        "fidelity": outcome.get("fidelity"),
        "episodes": f"{outcome['n_episodes']} per seed, at most "
        f"{outcome.get('max_episode_steps')} steps",
        "checkpoint": outcome.get("checkpoint", "last"),
        "actions": outcome.get("action_mode"),
        "constants": outcome.get("constants_source", "none"),
        "success": "" if math.isnan(success) else f"{success:.0%}",
    }
    return {name: str(fact) for name, fact in facts.items() if fact}


def _scores(line: Line) -> str:
    """Quantiles over the episodes of every seed."""
    rows = [["seed", "mean", "lowest", "quarter", "median", "three quarters", "highest"]]
    for run in (run for run in line.runs if run.eval):
        episodes = run.eval["scores" if line.unit == "score" else "returns"]
        # Quantiles want two values; an episode counted twice has the quantiles it has alone.
        several = episodes if len(episodes) > 1 else episodes * 2
        cuts = statistics.quantiles(several, method="inclusive")
        numbers = [statistics.mean(episodes), min(episodes), *cuts, max(episodes)]
        rows.append([str(run.seed), *(f"{number:.1f}" for number in numbers)])
    return markdown_table(rows) if len(rows) > 1 else ""


def _synthetic(line: Line) -> dict[str, str]:
    augment = line.runs[0].augment
    generations = augment.get("generations", [])
    facts: dict[str, Any] = {
        "augmenter": augment["name"],
        "generations": len(generations),
        "changed": json.dumps(augment.get("diff_from_default", {}), sort_keys=True),
    }
    if generations:
        last = generations[-1]
        facts |= {
            "of the last, dynamics error (median)": last.get("dynamics", {}).get("median"),
            "log-likelihood under the policy": last.get("policy", {}).get("log_likelihood"),
            "model": last.get("provenance", {}).get("model_hash"),
        }
    return {name: _fact(fact) for name, fact in facts.items() if fact is not None}


def _fact(fact: Any) -> str:
    return f"{fact:.3g}" if isinstance(fact, float) else str(fact)


def _commands(line: Line) -> list[str]:
    return list(dict.fromkeys(str(run.code.get("command")) for run in line.runs))


def _spread(values: dict[str, Any], mean: str, std: str) -> str:
    return f"{values[mean]:.1f} ± {values[std]:.1f}" if mean in values and std in values else ""


def _table(facts: dict[str, str]) -> str:
    return markdown_table([["", ""], *([name, fact] for name, fact in facts.items())])


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
