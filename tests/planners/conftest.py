"""Data of two behaviours: one moves up and is rewarded, the other moves down and is not."""

import numpy as np
import pytest

from offdiff.core.types import Spec
from offdiff.data.dataset import Dataset, DatasetInfo
from offdiff.data.episodes import Episodes

STEPS, EPISODES = 20, 200
STEP = 0.2
"""x' = x + STEP * action."""


@pytest.fixture(scope="session")
def two_modes() -> Dataset:
    """Observations (x, a constant of the episode), actions of about 0.5 or -0.5."""
    random = np.random.default_rng(0)
    up = np.arange(EPISODES) % 2 == 0
    action = np.where(up, 0.5, -0.5)[:, None] + 0.1 * random.standard_normal((EPISODES, STEPS))
    start = 0.3 * random.standard_normal((EPISODES, 1))
    x = np.concatenate((start, start + np.cumsum(STEP * action, axis=1)), axis=1)
    constant = np.repeat(random.standard_normal((EPISODES, 1)), STEPS + 1, axis=1)
    obs = np.stack((x, constant), axis=-1).astype(np.float32)
    last = np.tile(np.arange(STEPS) == STEPS - 1, EPISODES)
    episodes = Episodes(
        obs=obs[:, :-1].reshape(-1, 2),
        action=action.reshape(-1, 1).astype(np.float32),
        reward=np.repeat(up, STEPS).astype(np.float32),
        next_obs=obs[:, 1:].reshape(-1, 2),
        terminal=np.zeros(len(last), np.bool_),
        truncated=last,
        successor_known=np.ones(len(last), np.bool_),
    )
    assert episodes.spec == Spec(2, 1)
    info = DatasetInfo(
        name="two-modes", suite="hdf5", source="made here", sha256="", family="other", env_id=None,
        max_episode_steps=None, score_range=None,
    )  # fmt: skip
    return Dataset(info=info, episodes=episodes)
