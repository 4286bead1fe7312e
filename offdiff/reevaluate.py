"""Finished runs looked at again: more episodes, fitted Q evaluation, films, plans."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from offdiff.checkpoint import POLICY, load_planner, load_policy
from offdiff.core.errors import InputError
from offdiff.core.files import require_writable
from offdiff.core.numerics import choose_device
from offdiff.core.protocols import Policy
from offdiff.data.load import load_dataset
from offdiff.environments import make_simulator
from offdiff.evaluate import episode_seed, evaluate
from offdiff.ope import FQEConfig, fitted_q_evaluation
from offdiff.plan_plots import plot_plans, require_picture
from offdiff.planned_episode import PlannedEpisode, play_planned
from offdiff.planners.policy import PlannerPolicy
from offdiff.planners.task import Task
from offdiff.policy import DeployedPolicy
from offdiff.records import RECORD, read_record
from offdiff.video import film_actions, record_video, require_encoder
from offdiff.waypoints import Route


class Watched(NamedTuple):
    """An episode of a planner, what it was told of its data, and the way-points if it had any."""

    episode: PlannedEpisode
    task: Task
    route: Route | None


def seed_folders(run: Path) -> list[Path]:
    """The folders of a run's seeds; `run` may be one of them.

    Raises InputError if there is no finished run.
    """
    folders = [run] if (run / POLICY).exists() else sorted(run.glob("seed-*"))
    finished = [folder for folder in folders if (folder / RECORD).exists()]
    if not finished:
        raise InputError(f"{run} holds no finished run; give the folder that `offdiff run` named")
    return finished


def play(folder: Path, env_id: str, episodes: int, seed: int, progress: bool) -> dict[str, Any]:
    """Evaluates one seed's policy. env_id: "" for the run's own. Gives an evaluation as JSON."""
    env_id, steps = _task(folder, env_id)
    policy = _policy(folder)
    result = evaluate(
        policy,
        env_id,
        episodes=episodes,
        seed=seed,
        max_episode_steps=steps,
        action_mode=f"a plan every {policy.replan_every} steps"
        if isinstance(policy, PlannerPolicy)
        else "deterministic",
        progress=progress,
    )
    return {"policy": str(folder), "mean": sum(result.returns) / episodes, **asdict(result)}


def estimate_values(
    folders: Sequence[Path], updates: int, seed: int, progress: bool
) -> list[dict[str, Any]]:
    """Fitted Q evaluation of all policies on the dataset that they were trained on."""
    why = "fitted Q evaluation asks for actions at single observations; leave --fqe out"
    policies = {str(folder): network(folder, why) for folder in folders}
    settings = read_record(folders[0] / RECORD).config["resolved"]
    dataset = load_dataset(settings["dataset"], clip_actions=settings["clip_actions"])
    estimates = fitted_q_evaluation(
        policies, dataset.episodes, FQEConfig(updates=updates), seed=seed, progress=progress
    )
    return [{"policy": name, **asdict(estimate)} for name, estimate in estimates.items()]


def film(folder: Path, env_id: str, path: Path, seed: int, progress: bool) -> None:
    """Records one episode of a policy. env_id: "" for the run's own."""
    env_id, steps = _task(folder, env_id)
    policy = _policy(folder)
    record_video(policy, env_id, path, seed=seed, max_episode_steps=steps, progress=progress)


def network(folder: Path, why: str) -> DeployedPolicy:
    """The policy of a learner's seed. Raises InputError for a planner's, which says `why`."""
    if _holds_planner(folder):
        raise InputError(f"{folder} holds a planner, which is no memoryless policy, and {why}")
    return load_policy(folder)


def watch(
    folder: Path,
    env_id: str,
    *,
    seed: int,
    steps: int | None = None,
    goal: Sequence[float] = (),
    via: Sequence[float] = (),
    plot: Path | None = None,
    film: Path | None = None,
    device: str = "auto",
    progress: bool = False,
) -> Watched:
    """Plays one episode of a planner and keeps its plans.

    It begins as the first episode of `play` with the same seed. env_id: "" for the run's own.
    steps: horizon, None for the evaluation's. goal: where to get in a maze, () as drawn. via:
    numbers of `Route.of`. plot, film: files to write.
    Raises InputError, before anything is played where that can be told, for what cannot be had.
    """
    if not _holds_planner(folder):
        raise InputError(
            f"{folder} holds a policy network, which makes no plans; film it with "
            "offdiff eval --video, or give the run of a planner"
        )
    env_id, horizon = _task(folder, env_id)
    if plot is not None:
        require_picture(plot)
    if film is not None:
        require_encoder(film)
    for path in filter(None, (plot, film)):
        require_writable(path.parent)
    saved = load_planner(folder, choose_device(device))
    task, config = saved.task, saved.config
    with make_simulator(env_id, max_episode_steps=steps or horizon, spec=task.spec) as simulator:
        if goal and simulator.maze and task.goal is None:
            raise InputError(
                f"the planner of {folder} does not see the goal; train it on data whose "
                "observations hold one, such as offdiff data generate makes by default"
            )
        route = Route.of(via, task, config.horizon, config.stride) if via else None
        if route is not None and simulator.maze is not None:
            for point in route.points:
                simulator.maze.free_cell(point.position, "way-point")
        episode = play_planned(
            saved.policy(_train_seed(folder)),
            simulator,
            seed=episode_seed(seed, 0),
            goal=goal,
            route=route,
            progress=progress,
        )
    if plot is not None:
        plot_plans(episode, task, plot, points=route.points if route else ())
    if film is not None:
        film_actions(
            env_id,
            film,
            seeds=[episode.seed],
            actions=[episode.action],
            returns=[episode.total],
            max_episode_steps=episode.max_episode_steps,
            goal=goal,
            progress=progress,
        )
    return Watched(episode, task, route)


def _policy(folder: Path) -> Policy:
    """What the run evaluated: a planner begins with the same random numbers, on the best device."""
    if _holds_planner(folder):
        return load_planner(folder, choose_device("auto")).policy(_train_seed(folder))
    return load_policy(folder)


def _holds_planner(folder: Path) -> bool:
    return read_record(folder / RECORD).algo.get("kind") == "planner"


def _train_seed(folder: Path) -> int:
    seed: int = read_record(folder / RECORD).seeds["train"]
    return seed


def _task(folder: Path, env_id: str) -> tuple[str, int | None]:
    """Environment and horizon: as asked for, else as in the run's own evaluation."""
    own = read_record(folder / RECORD).eval
    if env_id:
        return env_id, None
    if not own:
        raise InputError(
            f"{folder} was trained on data without a simulator; name one with --env, or estimate "
            "a learner's value from the data with --fqe"
        )
    return own["env_id"], own["max_episode_steps"]
