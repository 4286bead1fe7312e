"""Ends of tasks: the real simulators' `terminated`, their bounds, and what is left unknown."""

import warnings

import gymnasium
import numpy as np
import pytest
import torch

from offdiff.augment.terminations import hopper, termination, walker2d

STEPS = 600


def simulate(env_id: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations after random actions, in float32 as datasets store them, and `terminated`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # -v4 advertises -v5
        env = gymnasium.make(env_id, disable_env_checker=True)
    env.reset(seed=0)
    env.action_space.seed(0)
    observed, ended = [], []
    with env:
        for _ in range(STEPS):
            obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
            observed.append(obs)
            ended.append(terminated)
            if terminated or truncated:
                env.reset()
    return torch.from_numpy(np.array(observed, np.float32)), torch.tensor(ended)


@pytest.mark.parametrize(
    ("env_id", "ends"),
    [
        ("Hopper-v4", True),
        ("Hopper-v5", True),
        ("Walker2d-v4", True),
        ("Walker2d-v5", True),
        ("Ant-v4", True),
        ("Humanoid-v5", True),
        ("InvertedPendulum-v5", True),
        ("HalfCheetah-v4", False),
        ("Swimmer-v5", False),
    ],
)
def test_agrees_with_the_simulator_at_every_step(env_id: str, ends: bool) -> None:
    next_obs, terminated = simulate(env_id)
    ended = termination(env_id)
    assert ended is not None
    assert ended(next_obs).tolist() == terminated.tolist()
    # Without ends among the rollouts the test would show nothing.
    assert bool(terminated.any()) == ends


def test_bounds_are_exclusive_and_not_a_number_ends_the_task() -> None:
    healthy = torch.zeros(11)
    healthy[0] = 1.25
    assert not hopper(healthy)
    for entry, value in [(0, 0.69), (0, torch.inf), (1, 0.2), (1, -0.21), (5, -100.0)]:
        fallen = healthy.clone()
        fallen[entry] = value
        assert hopper(fallen)
    # The slip of older code, `abs(x < 100)`, lets a state of -101 pass and NaN too.
    for entry, value in [(7, -101.0), (7, torch.nan), (0, torch.nan)]:
        fallen = healthy.clone()
        fallen[entry] = value
        assert hopper(fallen)

    walking = torch.zeros(17)
    for height, ended in [(0.8, True), (0.81, False), (1.99, False), (2.0, True), (np.nan, True)]:
        walking[0] = height
        assert bool(walker2d(walking)) == ended


def test_shapes_follow_the_leading_dimensions() -> None:
    for env_id, width in [("Hopper-v4", 11), ("PointMaze_UMaze-v3", 4), ("Ant-v5", 105)]:
        ended = termination(env_id)
        assert ended is not None
        result = ended(torch.zeros(3, 5, width))
        assert result.shape == (3, 5)
        assert result.dtype == torch.bool


@pytest.mark.parametrize(
    "env_id", [None, "", "Hopper-v3", "MyHopper-v4", "AntMaze_UMaze-v4", "AdroitHandPen-v1"]
)
def test_unknown_environments_have_no_function(env_id: str | None) -> None:
    assert termination(env_id) is None
