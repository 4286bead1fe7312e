"""`offdiff eval`: a finished run again, with more episodes, on video, or without simulator."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from offdiff.cli.options import parse_options
from offdiff.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Evaluate the policies of a finished run.

    Examples:
      offdiff eval results/runs/hopper-mixed-sample/iql/0-1a2b3c4d --episodes 100
      offdiff eval RUN --video look.mp4
      offdiff eval RUN --fqe                 estimate the value from the data alone
    """

    run: Positional[Path]
    """Run folder, or one seed's folder inside it."""
    episodes: int = 100
    """Episodes per seed."""
    seed: int = 2_000
    """Episodes start from seeds derived from this one."""
    env: str = ""
    """Gymnasium environment; default: the one the run was evaluated in."""
    video: Path | None = None
    """Also record one episode of the first seed's policy here (.mp4 or .gif)."""
    fqe: bool = False
    """Fitted Q evaluation on the run's dataset instead of episodes: needs no simulator."""
    fqe_updates: int = 25_000
    """Gradient steps of the fitted Q evaluation."""
    json: bool = False
    """Print JSON, with every episode's return."""

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.fqe_updates < 1 or self.seed < 0:
            raise InputError("--episodes and --fqe-updates must be at least 1, --seed at least 0")


def main(command: str, args: list[str]) -> int:
    """Parses, evaluates, prints; the exit code."""
    options = parse_options(EvalOptions, args, command)
    from offdiff import reevaluate

    folders = reevaluate.seed_folders(options.run)
    show = sys.stderr.isatty()
    if options.video is not None:
        reevaluate.film(folders[0], options.env, options.video, options.seed, show)
    if options.fqe:
        outcomes = reevaluate.estimate_values(folders, options.fqe_updates, options.seed, show)
    else:
        outcomes = [
            reevaluate.play(folder, options.env, options.episodes, options.seed, show)
            for folder in folders
        ]
    if options.json:
        print(json.dumps(outcomes, indent=1))
    else:
        _print(outcomes, fqe=options.fqe)
    return 0


def _print(outcomes: list[dict[str, Any]], *, fqe: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    if fqe:
        columns = ("policy", "discounted value", "95 % interval", "TD error", "actions far off")
        table = Table(*columns, title="fitted Q evaluation")
        for o in outcomes:
            interval = f"[{o['low']:.2f}, {o['high']:.2f}]"
            far = f"{o['far_actions']:.0%}"
            table.add_row(
                _short(o["policy"]), f"{o['value']:.2f}", interval, f"{o['td_error']:.2f}", far
            )
    else:
        table = Table("policy", "environment", "episodes", "return", "lowest", "highest")
        for o in outcomes:
            numbers = (f"{o['mean']:.1f}", f"{min(o['returns']):.1f}", f"{max(o['returns']):.1f}")
            table.add_row(_short(o["policy"]), o["env_id"], str(o["n_episodes"]), *numbers)
    Console().print(table)


def _short(folder: str) -> str:
    """The run and the seed: the end of the path, which tells policies apart."""
    return "/".join(Path(folder).parts[-2:])
