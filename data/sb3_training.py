"""Trains a stable-baselines3 agent in legs, so that a killed training continues exactly.

Every leg begins with a fresh reset and random numbers of its own, derived from the seed and the
leg's number; what precedes it is saved whole: weights, optimisers, replay buffer. A kill therefore
costs the current leg, and playing it again gives the same agent (on the CPU of one machine; GPU
kernels are not always reproducible). The price is one episode cut short per leg.
"""

import pickle
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from offdiff.core.errors import InputError
from offdiff.core.files import replacing
from offdiff.core.seeding import derive_seed
from offdiff.data.recorder import ActorSource, PolicyActor
from offdiff.data.sb3 import SB3Policy, import_sb3

if TYPE_CHECKING:
    import gymnasium
    from stable_baselines3.common.base_class import BaseAlgorithm

Algorithm = Literal["sac", "td3", "ppo"]
MakeEnv = Callable[[], "gymnasium.Env[Any, Any]"]

DAMAGE = (OSError, ValueError, KeyError, RuntimeError, EOFError, zipfile.BadZipFile)
"""What numpy and torch raise for files that are not whole."""

BUFFER_FIELDS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How an agent is trained; SB3's own hyperparameters but for what is here."""

    algorithm: Algorithm
    seed: int
    steps: int
    """Environment steps at most."""
    target_return: float | None
    """Stop after the first leg whose evaluation reaches it; None trains all steps."""
    leg: int = 10_000
    """Environment steps between two evaluations and checkpoints."""
    learning_starts: int = 10_000
    """Uniform random actions before learning begins (SAC, TD3)."""
    eval_episodes: int = 10
    """Episodes of the deterministic policy per evaluation."""
    device: str = "auto"


@dataclass
class TrainedAgent:
    """An agent and how it got there."""

    model: "BaseAlgorithm"
    curve: list[tuple[int, float]] = field(default_factory=list)
    """(environment steps, mean return of the deterministic policy) after every leg."""

    def reached(self, target: float | None) -> bool:
        """Whether the latest evaluation is at `target` or above."""
        return target is not None and bool(self.curve) and self.curve[-1][1] >= target


def train_agent(
    plan: TrainingPlan, make_env: MakeEnv, folder: Path, *, show: bool = True
) -> TrainedAgent:
    """Trains to the plan's end; takes up what an earlier call left in `folder`.

    The replay buffer keeps every step. A longer plan or another target continues the training.
    Raises InputError if the target is not reached in the plan's steps; what was learnt is kept.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    saved = _load(folder)
    room = max(plan.steps, saved["num_timesteps"] if saved else 0)
    agent = TrainedAgent(_new_model(plan, make_env(), room))
    if saved is not None:
        _take_up(agent, saved)
    judge = make_env()
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    returns = TextColumn("return {task.fields[latest]}")
    with Progress(*columns, returns, console=Console(stderr=True), disable=not show) as bar:
        task = bar.add_task("training", total=plan.steps, latest="?")
        while not agent.reached(plan.target_return) and agent.model.num_timesteps < plan.steps:
            start = agent.model.num_timesteps
            bar.update(task, completed=start)
            _learn(agent.model, plan, len(agent.curve), lambda: bar.advance(task))
            latest = _mean_return(agent.model, judge, plan)
            agent.curve.append((agent.model.num_timesteps, latest))
            bar.update(task, completed=agent.model.num_timesteps, latest=f"{latest:.1f}")
            _save(agent, folder, start)
    judge.close()
    if plan.target_return is not None and not agent.reached(plan.target_return):
        best = max(value for _, value in agent.curve)
        raise InputError(
            f"after {agent.model.num_timesteps} training steps the agent's return is "
            f"{agent.curve[-1][1]:.1f} (best {best:.1f}), the target {plan.target_return:.1f}; "
            "continue with --resume and a larger --train-steps or a lower --target-return"
        )
    return agent


def _new_model(plan: TrainingPlan, env: "gymnasium.Env[Any, Any]", room: int) -> "BaseAlgorithm":
    sb3 = import_sb3(f"training {plan.algorithm}")
    from gymnasium.spaces import Dict
    from stable_baselines3.common.noise import NormalActionNoise

    arguments: dict[str, Any] = {
        "device": plan.device,
        "seed": derive_seed(plan.seed, "agent") % 2**31,
    }
    if plan.algorithm != "ppo":
        # Room for every step: the buffer itself is a dataset (medium-replay), and never wraps.
        arguments["buffer_size"] = room + 1
        arguments["learning_starts"] = plan.learning_starts
    if plan.algorithm == "td3":
        size = int(np.prod(env.action_space.shape or ()))
        arguments["action_noise"] = NormalActionNoise(np.zeros(size), np.full(size, 0.1))
    policy = "MultiInputPolicy" if isinstance(env.observation_space, Dict) else "MlpPolicy"
    model: BaseAlgorithm = getattr(sb3, plan.algorithm.upper())(policy, env, **arguments)
    return model


def _learn(
    model: "BaseAlgorithm", plan: TrainingPlan, leg: int, on_step: Callable[[], None]
) -> None:
    """One leg; PPO rounds it up to whole rollouts."""
    model.set_random_seed(derive_seed(plan.seed, f"leg {leg}") % 2**31)
    # Without a last observation SB3 resets the environment, with the seed just given.
    model._last_obs = None
    steps = min(plan.leg, plan.steps - model.num_timesteps)

    def go_on(*_: object) -> bool:
        on_step()
        return True

    model.learn(steps, callback=go_on, reset_num_timesteps=False)


def _mean_return(
    model: "BaseAlgorithm", env: "gymnasium.Env[Any, Any]", plan: TrainingPlan
) -> float:
    """Mean return of the deterministic policy, on the same episodes every time."""
    source = ActorSource(env, PolicyActor(SB3Policy(model)), derive_seed(plan.seed, "evaluation"))
    episodes = [source.play(k, sys.maxsize) for k in range(plan.eval_episodes)]
    return float(np.mean([episode.returns[0] for episode in episodes]))


def _save(agent: TrainedAgent, folder: Path, start: int) -> None:
    """The leg's share of the replay buffer, then the agent; without the latter it is void."""
    model: Any = agent.model
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        new = slice(start, buffer.pos)
        path = _replay_path(folder, len(agent.curve))
        with replacing(path) as temporary, temporary.open("wb") as file:
            share: dict[str, Any] = {name: a[new] for name, a in _stored_fields(buffer).items()}
            np.savez(file, **share)
    state = {
        "parameters": model.get_parameters(),
        "log_ent_coef": getattr(model, "log_ent_coef", None),
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        "curve": agent.curve,
        "has_replay": buffer is not None,
    }
    with replacing(folder / "agent.pt") as temporary:
        torch.save(state, temporary)


def _load(folder: Path) -> dict[str, Any] | None:
    """What the last saved leg left, None before the first."""
    path = folder / "agent.pt"
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        legs = range(1, len(state["curve"]) + 1) if state["has_replay"] else ()
        state["replay"] = [_load_replay(_replay_path(folder, leg)) for leg in legs]
    except (*DAMAGE, pickle.UnpicklingError) as error:
        raise InputError(
            f"{folder} holds a damaged training; delete the folder and train again"
        ) from error
    return state


def _load_replay(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _take_up(agent: TrainedAgent, state: dict[str, Any]) -> None:
    """Puts a new model where the saved leg ended."""
    model: Any = agent.model
    model.set_parameters(state["parameters"], device=model.device)
    if state["log_ent_coef"] is not None:
        model.log_ent_coef.data.copy_(state["log_ent_coef"])
    model.num_timesteps, model._n_updates = state["num_timesteps"], state["n_updates"]
    agent.curve = [(int(steps), float(value)) for steps, value in state["curve"]]
    for share in state["replay"]:
        buffer = model.replay_buffer
        rows = slice(buffer.pos, buffer.pos + len(share["dones"]))
        for name, stored in _stored_fields(buffer).items():
            stored[rows] = share[name]
        buffer.pos = rows.stop


def _stored_fields(buffer: Any) -> dict[str, NDArray[Any]]:
    """The buffer's arrays by name, those of dict observations one by one."""
    arrays: dict[str, NDArray[Any]] = {}
    for name in BUFFER_FIELDS:
        stored = getattr(buffer, name)
        if isinstance(stored, dict):
            arrays |= {f"{name}/{part}": array for part, array in stored.items()}
        else:
            arrays[name] = stored
    return arrays


def _replay_path(folder: Path, leg: int) -> Path:
    return folder / f"replay-{leg:05}.npz"
