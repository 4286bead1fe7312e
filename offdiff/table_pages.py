"""Tables as files: Markdown for people, CSV for programs, LaTeX for papers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from offdiff import tables
from offdiff.comparisons import Comparison, comparisons
from offdiff.core.files import write_text
from offdiff.lines import Line
from offdiff.markdown import markdown_table
from offdiff.records import UNSEALED, RunRecord

if TYPE_CHECKING:
    from pandas import DataFrame

Format = Literal["md", "csv", "latex"]
SHOWN = (0, 25, 50, 75, 100)
"""Thresholds of the profile that a page shows; the CSV has them all."""
Text = list[list[str]]
"""Header and rows."""


@dataclass(frozen=True)
class Page:
    """A title, words, and tables as text, each with a heading and a sentence that explains it."""

    title: str
    caption: str
    sections: Sequence[tuple[str, str, Text]]

    def markdown(self) -> str:
        """The page as Markdown."""
        parts = [f"# {self.title}", self.caption]
        for heading, words, table in self.sections:
            parts += [f"## {heading}", *([words] if words else []), markdown_table(table)]
        return "\n\n".join(parts) + "\n"

    def latex(self) -> str:
        """The tables, one `table` environment each (booktabs)."""
        about = " ".join(self.caption.split())
        parts = [f"% {self.title}. Needs \\usepackage{{booktabs}}.\n% {about}"]
        for heading, words, table in self.sections:
            frame = tables.frame(dict(zip(table[0], row, strict=True)) for row in table[1:])
            about = _escaped(f"{heading}. {words}".strip())
            parts.append(frame.to_latex(index=False, escape=True, caption=about, position="tbp"))
        return "\n".join(parts)


def write_tables(
    name: str,
    lines: Sequence[Line],
    refused: Sequence[str],
    folder: Path,
    formats: Iterable[Format],
    *,
    baseline: str | None = None,
    draws: int = 50_000,
) -> list[Path]:
    """Writes NAME.md, NAME.tex and NAME*.csv into a folder and gives their paths.

    refused: reasons why files count for nothing; only their number is written.
    """
    compared = comparisons(lines)
    frames = {
        "": tables.scores(lines),
        "-runs": tables.runs(lines),
        "-aggregates": tables.aggregates(compared, draws),
        "-improvement": tables.improvements(compared, baseline, draws),
        "-profile": tables.profiles(compared),
        "-budget": tables.budgets(lines),
    }
    page = page_of(name, lines, compared, frames, len(refused))
    texts: dict[str, str] = {}
    for format_ in formats:
        if format_ == "md":
            texts[f"{name}.md"] = page.markdown()
        elif format_ == "latex":
            texts[f"{name}.tex"] = page.latex()
        else:
            full = {end: frame for end, frame in frames.items() if len(frame)}
            texts |= {f"{name}{end}.csv": frame.to_csv(index=False) for end, frame in full.items()}
    for file, text in texts.items():
        write_text(folder / file, text)
    return [folder / file for file in texts]


def page_of(
    name: str,
    lines: Sequence[Line],
    compared: Sequence[Comparison],
    frames: Mapping[str, "DataFrame"],
    refused: int,
) -> Page:
    """Everything in words and numbers for reading."""
    sections = [
        (family, "", score_text(frames[""][frames[""]["family"] == family]))
        for family in sorted(set(frames[""]["family"]))
    ]
    if len(frames["-aggregates"]):
        words = (
            "Over tasks that all methods of a comparison have; 95 % stratified bootstrap "
            "intervals, none where there is one run per task. The optimality gap is the mean "
            "shortfall from 100."
        )
        sections.append(("Aggregates", words, aggregate_text(frames["-aggregates"])))
    if len(frames["-improvement"]):
        words = "Chance that a run of the method beats one of the baseline on the same task."
        sections.append(("Probability of improvement", words, _improved(frames["-improvement"])))
    if len(frames["-profile"]):
        words = "Share of runs and tasks with a score above the threshold."
        sections.append(("Performance profile", words, _profile(frames["-profile"])))
    if len(frames["-budget"]):
        words = (
            "EOP k: expected best of k configurations drawn with replacement. Episodes t: score of "
            "the policy that a bandit deploys after t episodes, choosing among at most 8 of the "
            "trained policies; area is its mean over log t."
        )
        sections.append(("Scores under a tuning budget", words, _budget(frames["-budget"])))
    return Page(f"Benchmark: {name}", caption(lines, refused, compared), sections)


def caption(lines: Sequence[Line], refused: int = 0, compared: Sequence[Comparison] = ()) -> str:
    """What the numbers are, what is not among them, and what they come from."""
    records = [run for line in lines for run in line.runs]
    played = [run for run in records if run.eval]
    unsealed = sum(run.digest == UNSEALED for run in records)
    failed = sum(len(line.failed) for line in lines)
    missing = sum(len(line.missing) for line in lines)
    facts = {
        "Simulators": {f"{r.eval['env_id']} ({r.eval['simulator_version']})" for r in played},
        "Constants of scores": {str(r.eval.get("constants_source", "none")) for r in played},
        "Data (SHA-256)": {f"{r.dataset} {r.data['file_sha256'][:12]}" for r in records},
        "Actions": {str(r.eval.get("action_mode")) for r in played},
        "Code": {_commit(r) for r in records},
        "Machines": {f"{r.system.get('cpu')}, {r.system.get('device')}" for r in records},
    }
    told = ". ".join(f"{k}: {', '.join(sorted(v))}" for k, v in facts.items() if v)
    return (
        "Last checkpoint, never the best one. Score (D4RL's: 0 random, 100 expert; return where "
        "there are no constants): mean ± standard deviation (ddof 1) over training seeds of each "
        "seed's mean over its final episodes, 95 % interval by Student's t; of a single seed the "
        "interval is over its episodes, by normal approximation, and says nothing about other "
        "seeds. Calls and ms: of one decision. Training: of the process, which may train several "
        "seeds at once. Published numbers are copied from their sources, on "
        "D4RL's own simulators; no number of ours is mixed with them, and their ± is "
        "what the source prints, a standard deviation or error."
        f"\n\n{len(records)} runs, {failed} failed, {missing} missing, {refused} files refused; "
        f"{unsealed} records are of schema 1 and carry no digest.{_left_out(compared)} {told}."
    )


def _left_out(compared: Sequence[Comparison]) -> str:
    """Who takes no part in comparisons, in words."""
    told = [f"{'; '.join(c.left_out)} on {', '.join(c.tasks)}" for c in compared if c.left_out]
    return f" Not compared for unequal numbers of runs: {' and '.join(told)}." if told else ""


def score_text(frame: "DataFrame") -> Text:
    """The scores of a family; columns that say nothing are left out."""
    rows: list[dict[str, str]] = []
    for row in frame.to_dict("records"):
        changed = f" ({row['changes']})" if row["changes"] else ""
        numbers = f"{row['mean']:.1f}" + ("" if _nan(row["std"]) else f" ± {row['std']:.1f}")
        lost = [f"{row[key]} {key}" for key in ("failed", "missing") if row[key]]
        rows.append(
            {
                "dataset": row["dataset"],
                "method": row["method"] + changed,
                "updates": f"{row['updates']:,}",
                row["unit"]: "-" if _nan(row["mean"]) else numbers,
                "95 %": _range(row["low"], row["high"], 1),
                "seeds": row["values"].replace(" ", ", ") if row["runs"] < 6 else "",
                "behaviour": _number(row["behaviour"], 1),
                "success": "" if _nan(row["success"]) else f"{row['success']:.0%}",
                "runs": ", ".join([str(row["runs"]), *lost]),
                "episodes": row["episodes"],
                "calls": _number(row["calls"], 0),
                "ms": _number(row["decision_ms"], 1),
                "training": "" if _nan(row["train_seconds"]) else f"{row['train_seconds']:.0f} s",
                "memory": "" if _nan(row["memory_mb"]) else f"{row['memory_mb']:,.0f} MB",
                "published": row["published"],
            }
        )
    order = (
        *("dataset", "method", "updates", "score", "return", "95 %", "seeds", "behaviour"),
        *("success", "runs", "episodes", "calls", "ms", "training", "memory", "published"),
    )
    used = [name for name in order if any(row.get(name) for row in rows)]
    return [used, *([row.get(name) or "-" for name in used] for row in rows)]


def aggregate_text(frame: "DataFrame") -> Text:
    """Aggregates with their intervals."""
    head = ["family", "tasks", "method", "runs per task", "mean", "median", "IQM",
            "optimality gap"]  # fmt: skip
    names = ("mean", "median", "iqm", "optimality_gap")
    return [
        head,
        *(
            [row["family"], row["tasks"].replace(" ", ", "), row["method"],
             str(row["runs_per_task"]), *(_estimated(row, name, 1) for name in names)]
            for row in frame.to_dict("records")
        ),
    ]  # fmt: skip


def _improved(frame: "DataFrame") -> Text:
    rows = [
        [row["family"], row["tasks"].replace(" ", ", "), row["method"], row["baseline"],
         _estimated(row, "probability", 2)]
        for row in frame.to_dict("records")
    ]  # fmt: skip
    return [["family", "tasks", "method", "baseline", "P(method > baseline)"], *rows]


def _profile(frame: "DataFrame") -> Text:
    wide = frame.pivot_table(
        index=["family", "tasks", "method"], columns="threshold", values="share"
    )
    rows = [
        [family, tasks.replace(" ", ", "), method, *(f"{row[t]:.2f}" for t in SHOWN)]
        for (family, tasks, method), row in wide.iterrows()
    ]
    return [["family", "tasks", "method", *(f"above {t}" for t in SHOWN)], *rows]


def _budget(frame: "DataFrame") -> Text:
    shown = [name for name in frame.columns if name.startswith(("eop_", "pulls_"))]
    heads = [n.replace("eop_", "EOP ").replace("pulls_", "episodes ") for n in shown]
    rows = [
        [row["dataset"], row["method"], str(row["configurations"]), str(row["policies"]),
         *(_number(row[name], 1) or "-" for name in shown), _number(row["area"], 1)]
        for row in frame.to_dict("records")
    ]  # fmt: skip
    return [["dataset", "method", "configurations", "policies", *heads, "area"], *rows]


_LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
          "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
          "\\": r"\textbackslash{}"}  # fmt: skip


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _commit(record: RunRecord) -> str:
    return str(record.code.get("git_commit"))[:8] + (" (changed)" if record.code["dirty"] else "")


def _estimated(row: Mapping[str, Any], name: str, digits: int) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.{digits}f} {_range(low, high, digits)}".rstrip()


def _range(low: float, high: float, digits: int) -> str:
    return "" if _nan(low) else f"[{low:.{digits}f}, {high:.{digits}f}]"


def _number(value: float, digits: int) -> str:
    return "" if _nan(value) else f"{value:.{digits}f}"


def _nan(value: float) -> bool:
    return math.isnan(value)
