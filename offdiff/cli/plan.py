"""`offdiff plan`: one episode of a planner, what it imagined, and how far off that was."""

import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from offdiff.cli.options import parse_options
from offdiff.core.errors import InputError

if TYPE_CHECKING:
    from offdiff.planned_episode import Ahead, PlannedEpisode
    from offdiff.waypoints import Route


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Watch a planner plan: one episode, its plans, and what came of them.

    Examples:
      offdiff plan results/runs/hopper-mixed-sample/trajectory-diffuser/0-1a2b3c4d
      offdiff plan RUN --plot plans.png --video episode.mp4
      offdiff plan RUN --goal 1 -1                 get there, in a maze
      offdiff plan RUN --via 30 0 1                be at (0, 1) after 30 steps
    """

    run: Positional[Path]
    """Run folder (its first seed is taken), or one seed's folder inside it."""
    plot: Path | None = None
    """Draw plans and path here (.png)."""
    video: Path | None = None
    """Film the episode here (.mp4 or .gif)."""
    goal: tuple[float, ...] = ()
    """X Y: where to get, in a maze; default: as the environment draws it."""
    via: tuple[float, ...] = ()
    """STEP X Y: a position that plans must pass at this step; several one after the other."""
    seed: int = 2_000
    """The episode is the first one of offdiff eval with this seed."""
    steps: int | None = None
    """Steps of the episode at most; default: as in the run's evaluation."""
    env: str = ""
    """Gymnasium environment; default: the one the run was evaluated in."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if self.seed < 0 or (self.steps is not None and self.steps < 1):
            raise InputError("--seed must be at least 0, --steps at least 1")
        if not all(map(math.isfinite, (*self.goal, *self.via))):
            raise InputError("--goal and --via take finite numbers")


def main(command: str, args: list[str]) -> int:
    """Parses, plays, prints; the exit code."""
    options = parse_options(PlanOptions, args, command)
    from offdiff import reevaluate
    from offdiff.planned_episode import imagination

    folder = reevaluate.seed_folders(options.run)[0]
    episode, task, route = reevaluate.watch(
        folder,
        options.env,
        seed=options.seed,
        steps=options.steps,
        goal=options.goal,
        via=options.via,
        plot=options.plot,
        film=options.video,
        device=options.device,
        progress=sys.stderr.isatty(),
    )
    found = imagination(episode, task.obs_std)
    if options.json:
        print(json.dumps(_as_json(folder, episode, found, route), indent=1))
        return 0
    _print(episode, found, route)
    for path in filter(None, (options.plot, options.video)):
        print(path)
    return 0


def _as_json(
    folder: Path, episode: "PlannedEpisode", found: "list[Ahead]", route: "Route | None"
) -> dict[str, object]:
    return {
        "planner": str(folder),
        "env_id": episode.env_id,
        "seed": episode.seed,
        "return": episode.total,
        "steps": len(episode.rewards),
        "success": episode.success,
        "decisions": episode.decisions,
        "decision_seconds": episode.seconds / episode.decisions,
        "calls_per_decision": episode.calls / episode.decisions,
        "ahead": [asdict(one) for one in found],
        "way_point_distances": route.distances(episode.obs) if route else [],
    }


def _print(episode: "PlannedEpisode", found: "list[Ahead]", route: "Route | None") -> None:
    from rich.console import Console
    from rich.table import Table

    outcome = {True: ", goal reached", False: ", goal not reached", None: ""}[episode.success]
    print(
        f"{episode.env_id}: return {episode.total:.1f} in {len(episode.rewards)} steps{outcome}\n"
        f"{episode.decisions} decisions, {1e3 * episode.seconds / episode.decisions:.1f} ms and "
        f"{episode.calls / episode.decisions:.0f} calls each"
    )
    missed = zip(route.points, route.distances(episode.obs), strict=True) if route else ()
    for point, distance in missed:
        where = "the episode was over" if distance is None else f"{distance:.2f} away"
        print(f"way-point of step {point.step}: {where}")
    if not found:
        print("this planner imagines no observations")
        return
    table = Table(
        "steps ahead", "imagined to executed", "moved", "plans",
        title="root mean square distance in standard deviations of the data",
    )  # fmt: skip
    for one in found:
        table.add_row(str(one.steps), f"{one.distance:.3f}", f"{one.moved:.3f}", str(one.plans))
    Console().print(table)
