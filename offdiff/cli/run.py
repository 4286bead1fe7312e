"""`offdiff run`: train learners on a dataset and evaluate them."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from offdiff.core.errors import InputError, unknown_name
from offdiff.core.registry import names, resolve

if TYPE_CHECKING:
    from offdiff.augment.base import AugmentConfig
    from offdiff.config import RunConfig
    from offdiff.records import RunRecord

INTRODUCTION = """Train a learner on a dataset and evaluate the policy it ends with.

Examples:
  offdiff run --algo iql                                  the bundled sample: minutes on a laptop
  offdiff run --algo td3bc --dataset hopper-medium-v2 --preset paper --seeds 0 1 2 3
  offdiff run --algo iql --dataset my.hdf5 --algo.expectile 0.8
  offdiff run --algo iql --augment pgd                    with policy-guided synthetic experience
  offdiff run --planner trajectory-diffuser               plan with a diffusion model instead
  offdiff run --algo my_package:MyConfig                  a learner of your own
  offdiff run --algo iql --resume                         continue where a stopped run left off

Chosen before the rest:
  --algo NAME        learner: {algos}, or module:Class (default iql)
  --planner NAME     plan instead of learning a policy: {planners}, or module:Class
  --augment NAME     synthetic experience: {augmenters}, or module:Class (default none)
  --preset NAME      laptop: minutes on two cores (default); paper: 1M updates, 100 final episodes,
                     and the augmenter at the sizes of its paper
  --published NAME   hyperparameters published for a D4RL dataset, e.g. hopper-medium-v2, or `auto`
                     for those of --dataset; what is given on the command line still wins
"""

PRESETS: dict[str, dict[str, int]] = {
    "laptop": {},
    "paper": {
        "updates": 1_000_000,
        "log_every": 1_000,
        "eval_every": 50_000,
        "eval_episodes": 10,
        "final_episodes": 100,
    },
}


def main(command: str, args: list[str]) -> int:
    """Parses, runs, prints; the exit code."""
    config = parse(args)
    from offdiff.run import run

    _print(run(config, progress=sys.stderr.isatty()), config.out)
    return 0


def parse(args: list[str]) -> "RunConfig":
    """The configuration that a command line stands for.

    Raises InputError for names and values that do not exist; leaves to tyro, which prints and
    exits with code 2, what is no option at all.
    """
    import tyro

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--algo", default="")
    first.add_argument("--planner", default="")
    first.add_argument("--augment", default="none")
    first.add_argument("--preset", default="laptop")
    first.add_argument("--published", default="")
    first.add_argument("--dataset", default="sample")
    try:
        chosen, rest = first.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise InputError(f"{error} (see offdiff run --help)") from error
    default = _default(chosen)
    return tyro.cli(
        type(default),
        args=rest,
        default=default,
        prog="offdiff run",
        description=INTRODUCTION.format(
            algos=", ".join(names("learners")),
            planners=", ".join(names("planners")),
            augmenters=", ".join(names("augmenters")),
        ),
        config=(tyro.conf.AvoidSubcommands,),
    )


def _default(chosen: argparse.Namespace) -> "RunConfig":
    """The configuration before the command line's other options."""
    from offdiff.checkpoint import config_from_json, planner_config
    from offdiff.config import RunConfig

    if chosen.preset not in PRESETS:
        raise unknown_name("preset", chosen.preset, PRESETS)
    if chosen.planner:
        if chosen.algo or chosen.published:
            raise InputError("--planner goes with neither --algo nor --published; choose one")
        planner = planner_config(chosen.planner, {})
        sizes: dict[str, int] = {"updates": planner.laptop_updates, **PRESETS[chosen.preset]}
        return RunConfig(
            dataset=chosen.dataset,
            planner=planner.at_paper_size() if chosen.preset == "paper" else planner,
            augment=augment_config(chosen.augment, paper=False),
            **sizes,  # type: ignore[arg-type]
        )
    algo = config_from_json(resolve("learners", chosen.algo or "iql"), {})
    config = RunConfig(
        dataset=chosen.dataset,
        algo=algo,
        augment=augment_config(chosen.augment, paper=chosen.preset == "paper"),
        **PRESETS[chosen.preset],  # type: ignore[arg-type]
    )
    if chosen.published:
        from offdiff.algos.published import published

        name = chosen.dataset if chosen.published == "auto" else chosen.published
        fields, source = published(chosen.algo or "iql", name)
        config = replace(config, algo=replace(algo, **fields), provenance=source)
    return config


def augment_config(name: str, *, paper: bool) -> "AugmentConfig | None":
    """The augmenter of this name with its defaults, or at the sizes of its paper.

    Raises InputError for unknown names and classes that are no augmenter's.
    """
    from offdiff.augment.base import AugmentConfig

    if name == "none":
        return None
    kind = resolve("augmenters", name)
    if not issubclass(kind, AugmentConfig):
        raise InputError(f"{name!r} is no augmenter config; it must derive from AugmentConfig")
    config = kind()
    return config.at_paper_size() if paper else config


def _print(records: "list[RunRecord]", out: Path) -> None:
    """The result beside the behaviour's, and where it is kept."""
    from rich.console import Console
    from rich.table import Table

    first = records[0]
    behaviour = first.data["behaviour"]
    updates = first.algo["n_gradient_steps"]
    method = first.algo["name"] + (f" + {first.augment['name']}" if first.augment else "")
    title = f"{method} on {first.data['dataset_id']}, {updates} updates"
    table = Table("policy", "episodes", "return", "D4RL score", title=title)
    table.add_row(
        "behaviour in the data",
        str(first.data["n_episodes"]),
        f"{behaviour['return_mean']:.1f} ± {behaviour['return_std']:.1f}",
        f"{behaviour['score_mean']:.1f}" if "score_mean" in behaviour else "-",
    )
    for record in records:
        result = record.eval
        table.add_row(
            f"seed {record.seeds['train']}",
            str(result["n_episodes"]) if result else "no simulator",
            f"{result['mean']:.1f} ± {result['std']:.1f}" if result else "-",
            f"{result['score_mean']:.1f}" if "score_mean" in result else "-",
        )
    Console().print(table)
    seconds = first.cost["train_seconds"]
    print(f"{first.cost['updates_per_second']:.0f} updates/s, {seconds:.0f} s of training")
    if "decision_seconds" in first.cost:
        calls = first.cost["calls_per_decision"]
        print(f"{1e3 * first.cost['decision_seconds']:.1f} ms and {calls:.0f} calls per decision")
    print(f"metrics, records and policies: {(out / first.run_id).parent}")
    if first.eval:
        scores = [r.eval.get("score_mean", r.eval["mean"]) for r in records]
        base = behaviour.get("score_mean", behaviour["return_mean"])
        what = "score" if "score_mean" in first.eval else "return"
        print(f"{what} {sum(scores) / len(scores):.1f} (behaviour {base:.1f})")
