"""Rolls a policy out in its environment and keeps what every single episode brought.

Dimension letters: B rows of the policy's batch, O observation, A action.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from offdiff.core.errors import InputError
from offdiff.core.numerics import default_products
from offdiff.core.protocols import Policy, RewardObserver
from offdiff.core.seeding import derive_seed
from offdiff.core.types import Spec
from offdiff.environments import Simulator, make_simulator
from offdiff.planners.policy import PlannerPolicy
from offdiff.policy import DeployedPolicy

MIN_ROWS = 4
"""Smallest batch a policy is asked for: below it BLAS takes other kernels, of other rounding."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The outcome of an evaluation, ready for a run record."""

    env_id: str
    fidelity: str
    """How near the environment is to D4RL's: "exact", "close" or "approximate", and why."""
    simulator_version: str
    max_episode_steps: int
    action_mode: str
    """How actions were chosen, in words."""
    n_episodes: int
    seed: int
    seeds: list[int]
    """Seed that every episode's reset was given."""
    returns: list[float]
    """Undiscounted return of every episode, summed in float64."""
    lengths: list[int]
    success: list[bool] | None
    """Whether an episode reported success at any of its steps; None if the environment does not."""


def evaluate(
    policy: Policy,
    env_id: str,
    *,
    episodes: int,
    seed: int,
    max_episode_steps: int | None = None,
    num_envs: int = 10,
    device: torch.device | str | None = None,
    spec: Spec | None = None,
    action_mode: str = "deterministic",
    progress: bool = True,
) -> Evaluation:
    """Plays a fixed list of episodes to their ends and reports all of them.

    Episode k starts from a seed that depends on `seed` and k alone, so a deterministic policy
    gets the same returns whatever `num_envs` is (a planner up to rounding, where
    `use_fastest_exact_matmul` chose oneDNN). Environments are stepped one after another (for these
    simulators faster than worker processes on few cores), the policy acts on all of them at once.
    An environment that is done takes the next episode of the list; no episode is cut off or
    replaced, so short ones are not favoured.

    max_episode_steps: horizon; None takes D4RL's, else the environment's own.
    device: where the policy lives. spec: the sizes it was made for. Both are known for a
    DeployedPolicy; otherwise the CPU, and sizes that are only seen to differ when it acts.
    progress: show a bar on stderr.
    Raises InputError if the environment cannot be made or does not fit the policy.
    """
    if episodes < 1 or num_envs < 1:
        raise InputError(f"episodes and num_envs must be at least 1, got {episodes} and {num_envs}")
    if max_episode_steps is not None and max_episode_steps < 1:
        raise InputError(f"max_episode_steps must be at least 1, got {max_episode_steps}")
    spec = spec or known_spec(policy)
    seeds = [episode_seed(seed, k) for k in range(episodes)]
    with ExitStack() as stack:
        if not isinstance(policy, PlannerPolicy):  # planners multiply too much to miss oneDNN
            stack.enter_context(default_products())
        simulators = [
            stack.enter_context(
                make_simulator(env_id, max_episode_steps=max_episode_steps, spec=spec)
            )
            for _ in range(min(num_envs, episodes))
        ]
        returns, lengths, success = _play(
            policy, simulators, seeds, device or known_device(policy), progress=progress
        )
        return Evaluation(
            env_id=env_id,
            fidelity=simulators[0].fidelity,
            simulator_version=simulator_version(),
            max_episode_steps=simulators[0].max_episode_steps,
            action_mode=action_mode,
            n_episodes=episodes,
            seed=seed,
            seeds=seeds,
            returns=returns.tolist(),
            lengths=lengths.tolist(),
            success=success,
        )


def episode_seed(seed: int, k: int) -> int:
    """What the reset of an evaluation's episode k is given."""
    # Some simulators refuse seeds of more than 31 bits.
    return derive_seed(seed, f"episode {k}") % 2**31


def known_spec(policy: Policy) -> Spec | None:
    """The sizes a policy was made for, where it tells."""
    if isinstance(policy, DeployedPolicy):
        return Spec(len(policy.obs_mean), len(policy.action_low))
    return policy.spec if isinstance(policy, PlannerPolicy) else None


def known_device(policy: Policy) -> torch.device:
    """Where a policy lives, if it tells; else the CPU."""
    if isinstance(policy, DeployedPolicy):
        return policy.obs_mean.device
    return policy.device if isinstance(policy, PlannerPolicy) else torch.device("cpu")


def simulator_version() -> str:
    """Versions that returns depend on, e.g. "gymnasium 1.4.0, mujoco 3.11.0"."""
    return f"gymnasium {version('gymnasium')}, mujoco {version('mujoco')}"


def _play(
    policy: Policy,
    simulators: list[Simulator],
    seeds: list[int],
    device: torch.device | str,
    *,
    progress: bool,
) -> tuple[NDArray[np.float64], NDArray[np.int64], list[bool] | None]:
    """Returns (K,), lengths (K,) and successes of K episodes."""
    returns = np.zeros(len(seeds))
    lengths = np.zeros(len(seeds), np.int64)
    success: list[bool | None] = [None] * len(seeds)
    waiting = iter(range(len(simulators), len(seeds)))
    playing = dict(enumerate(range(len(simulators))))  # simulator -> episode
    # Simulators that have no episode left keep their row: a policy with a memory knows it by place.
    rows = max(len(simulators), MIN_ROWS)
    obs = np.zeros((rows, simulators[0].spec.obs_dim), np.float32)
    began = np.ones(rows, np.bool_)
    for index, simulator in enumerate(simulators):
        obs[index] = simulator.reset(seeds[index])
    with Progress(console=Console(stderr=True), disable=not progress, transient=True) as bar:
        task = bar.add_task("evaluating", total=len(seeds))
        while playing:
            if began.any():
                policy.reset(torch.from_numpy(began).to(device))
                began = np.zeros(rows, np.bool_)
            action = _act(policy, obs, simulators[0], device)
            reward = np.zeros(rows, np.float32)
            for index, episode in list(playing.items()):
                step = simulators[index].step(action[index])
                obs[index] = step.obs
                returns[episode] += step.reward
                reward[index] = step.reward
                lengths[episode] += 1
                if step.success is not None:
                    success[episode] = bool(success[episode]) or step.success
                if not step.ended:
                    continue
                bar.advance(task)
                del playing[index]
                following = next(waiting, None)
                if following is not None:
                    playing[index] = following
                    obs[index] = simulators[index].reset(seeds[following])
                    began[index] = True
            if isinstance(policy, RewardObserver):
                policy.observe(torch.from_numpy(reward).to(device))
    reported = [value for value in success if value is not None]
    return returns, lengths, reported if len(reported) == len(seeds) else None


def _act(
    policy: Policy, obs: NDArray[np.float32], simulator: Simulator, device: torch.device | str
) -> NDArray[np.float32]:
    """(B, O) -> (B, A), checked."""
    # A copy: the policy may keep what it was given, and `obs` is overwritten.
    action = policy.act(torch.from_numpy(obs.copy()).to(device)).cpu().numpy()
    expected = (len(obs), simulator.spec.action_dim)
    if action.shape != expected:
        raise InputError(
            f"the policy gave actions of shape {action.shape}, the environment takes {expected}; "
            "evaluate it in the environment of its data"
        )
    if not np.isfinite(action).all():
        raise InputError("the policy gave an action that is not finite; its training diverged")
    return action
