"""A planner and an environment whose outcomes are known, as another package would bring them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from offdiff.core.planning import Plan, Situation
from offdiff.data.episodes import Episodes
from offdiff.data.hdf5 import write_hdf5
from offdiff.data.plan_windows import PlanBatch
from offdiff.planners.base import PlannerConfig, PlannerModule
from offdiff.planners.task import Task

PUSH = (0.5, -0.25)
SPEED = 0.125
"""Way of an action of 1; a power of two, so that sums are exact."""
CALLS = 3


class Drift(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A point that every action moves by SPEED times itself; success beyond x = 0.5."""

    metadata = {"render_modes": []}  # noqa: RUF012 (as gymnasium declares it)

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-100, 100, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self.place = np.zeros(2, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.place = np.zeros(2, np.float32)
        return self.place.copy(), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self.place = self.place + np.float32(SPEED) * action
        success = bool(self.place[0] > 0.5)
        return self.place.copy(), float(action[0]), False, False, {"success": success}


gymnasium.register("Drift-v0", entry_point=Drift, max_episode_steps=20)


def record_drift(path: Path, env_id: str = "Drift-v0") -> None:
    """Writes a dataset of 8 episodes of 20 steps with random actions."""
    action = np.random.default_rng(0).uniform(-1, 1, (8, 20, 2)).astype(np.float32)
    place = np.concatenate((np.zeros((8, 1, 2)), SPEED * action.cumsum(1)), axis=1)
    obs = place.astype(np.float32)
    last = np.tile(np.arange(20) == 19, 8)
    episodes = Episodes(
        obs=obs[:, :-1].reshape(-1, 2),
        action=action.reshape(-1, 2),
        reward=action[..., 0].reshape(-1),
        next_obs=obs[:, 1:].reshape(-1, 2),
        terminal=np.zeros(160, bool),
        truncated=last,
        successor_known=np.ones(160, bool),
    )
    write_hdf5(path, episodes, {"env_id": env_id, "max_episode_steps": 20})


@dataclass(frozen=True, kw_only=True)
class StraightConfig(PlannerConfig):
    """Straight on by PUSH, or to the goal where observations hold one."""

    candidates: int = 2
    staged: bool = True
    keeps_pins: bool = True
    imagines: bool = True

    def build(self, task: Task, /) -> "Straight":
        return Straight(self, task)


class Straight(PlannerModule):
    """Candidate n, and the proposal, lie 0.5 beside the plan; the first row is the present."""

    push: Tensor

    def __init__(self, config: StraightConfig, task: Task) -> None:
        super().__init__()
        self.config, self.task = config, task
        self.register_buffer("push", torch.tensor(PUSH))
        self.unused = nn.Parameter(torch.zeros(7), requires_grad=False)

    def losses(self, batch: PlanBatch, /, *, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def plan(self, situation: Situation, /, *, generator: torch.Generator) -> Plan:
        obs, config, goal = situation.obs, self.config, self.task.goal
        rows = obs[:, None].repeat(1, config.horizon, 1)
        ahead = torch.arange(config.horizon, device=obs.device)[:, None]
        if goal is None:
            action = self.push.expand(len(obs), 2)
            rows = rows + SPEED * config.stride * ahead * self.push
        else:
            way = obs[:, list(goal.wanted)] - obs[:, list(goal.reached[0])]
            action = way.clamp(-1, 1)
            for columns in goal.reached:
                share = ahead / max(1, config.horizon - 1)
                rows[:, :, list(columns)] = rows[:, :, list(columns)] + share * way[:, None]
        if situation.pins is not None and config.keeps_pins:
            rows = torch.where(situation.pins.which, situation.pins.values, rows)
        if not config.imagines:
            return Plan(action=action[:, None], calls=CALLS)
        beside = rows + 0.5 * (ahead > 0)
        others = beside[:, None].repeat(1, config.candidates - 1, 1, 1)
        return Plan(
            action=action[:, None],
            obs=rows,
            stride=config.stride,
            stages={"proposal": beside} if config.staged else {},
            candidates=torch.cat((rows[:, None], others), dim=1),
            calls=CALLS,
        )
