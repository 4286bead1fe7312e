"""When the tasks of Gymnasium end, as functions of the observation that a step leads to.

Read from the sources of gymnasium 1.2 and gymnasium-robotics 1.4, environments with their default
arguments. Left out on purpose, hence unknown: AntMaze (its goal is not observed), FrankaKitchen
(remembers which tasks were done), AdroitHandPen (D4RL's ends when the pen drops, Gymnasium's does
not) and InvertedDoublePendulum (judged by a position one simulator step older than the
observation).

Dimension letter: O observation.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor

from offdiff.data.episodes import Episodes

Termination = Callable[[Tensor], Tensor]
"""(..., O) observations after a step -> (...,) bool, True where the task ended."""


def termination(env_id: str | None) -> Termination | None:
    """How this environment's task ends; None if that is unknown or not to be told from one state.

    env_id: of Gymnasium, with its version, e.g. "Hopper-v4"; None: there is no simulator.
    """
    for pattern, ended in KNOWN.items():
        if re.fullmatch(pattern, env_id or ""):
            return ended
    return None


def known_end(episodes: Episodes, env_id: str | None) -> Termination | None:
    """The environment's own end of the task, unless the data contradict it.

    They do where the environment was made with other options than its default ones.
    """
    ended = termination(env_id)
    if ended is None:
        return None
    known = episodes.successor_known
    recorded = torch.from_numpy(episodes.terminal[known])
    wrong = ended(torch.from_numpy(episodes.next_obs[known])) != recorded
    # Some rows may be wrong: float32 at a bound, a fall at the moment when time ran out.
    return ended if int(wrong.sum()) <= 1 + 0.05 * int(recorded.sum()) else None


def hopper(next_obs: Tensor) -> Tensor:
    """Fallen or out of bounds. Observation: height, angle, other positions, velocities.

    The simulator bounds velocities before it clips those observed to +-10: a speed of 100, which
    would end the task, cannot be told. 712,832 recorded steps of Hopper-v4 held none.
    """
    height, angle, state = next_obs[..., 0], next_obs[..., 1], next_obs[..., 1:]
    upright = (height > 0.7) & (height < torch.inf) & (angle.abs() < 0.2)
    # Not NaN either: comparisons with NaN are false, here as in the simulators.
    return ~(upright & (state.abs() < 100).all(-1))


def walker2d(next_obs: Tensor) -> Tensor:
    """Fallen. Observation: height, angle, other positions, velocities."""
    height, angle = next_obs[..., 0], next_obs[..., 1]
    return ~((height > 0.8) & (height < 2.0) & (angle.abs() < 1.0))


def ant(next_obs: Tensor) -> Tensor:
    """Torso too low or too high, or the simulation diverged. Observation: height, others."""
    height = next_obs[..., 0]
    return ~((height >= 0.2) & (height <= 1.0) & next_obs.isfinite().all(-1))


def humanoid(next_obs: Tensor) -> Tensor:
    """Torso too low or too high. Observation: height, others."""
    height = next_obs[..., 0]
    return ~((height > 1.0) & (height < 2.0))


def inverted_pendulum(next_obs: Tensor) -> Tensor:
    """Fallen, or the simulation diverged. Observation: position, angle, velocities."""
    return ~((next_obs[..., 1].abs() <= 0.2) & next_obs.isfinite().all(-1))


def never(next_obs: Tensor) -> Tensor:
    """Time limits only, which end no task."""
    return torch.zeros(next_obs.shape[:-1], dtype=torch.bool, device=next_obs.device)


KNOWN: dict[str, Termination] = {
    "Hopper-v[45]": hopper,
    "Walker2d-v[45]": walker2d,
    "Ant-v[45]": ant,
    "Humanoid-v[45]": humanoid,
    "InvertedPendulum-v[45]": inverted_pendulum,
    "(HalfCheetah|Swimmer|Reacher|Pusher|HumanoidStandup)-v[45]": never,
    "PointMaze_.*": never,  # offdiff and D4RL's data let it go on at the goal
    "AdroitHand(Door|Hammer|Relocate).*": never,
    "(Fetch|HandReach|HandManipulate).*": never,
}
"""Regular expression that an environment id matches as a whole -> how its task ends."""
