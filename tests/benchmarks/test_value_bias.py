"""Discounted returns of recorded episodes, against sums written out."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from offdiff.data.episodes import Episodes

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "value_bias.py"


@pytest.fixture
def value_bias() -> ModuleType:
    spec = importlib.util.spec_from_file_location("value_bias", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def episodes() -> Episodes:
    """Two steps to a fall, then 700 to the end of time, a reward of 1 each but for the first."""
    n = 702
    reward = np.ones(n, np.float32)
    reward[0] = 3
    terminal, truncated = np.arange(n) == 1, np.arange(n) == n - 1
    zeros = np.zeros((n, 1), np.float32)
    return Episodes(
        obs=zeros, action=zeros, reward=reward, next_obs=zeros, terminal=terminal,
        truncated=truncated, successor_known=~truncated,
    )  # fmt: skip


def test_returns_to_go_stop_at_the_end_of_their_episode(
    value_bias: ModuleType, episodes: Episodes
) -> None:
    found = value_bias.returns_to_go(episodes, 0.9)
    assert found[:2] == pytest.approx([3.9, 1.0])
    left = np.arange(700, 0, -1)
    assert found[2:] == pytest.approx((1 - 0.9**left) / 0.1)


def test_only_rows_whose_return_was_recorded_are_asked(
    value_bias: ModuleType, episodes: Episodes
) -> None:
    rows = value_bias.complete(episodes)
    # Both rows of the fall; of the cut episode those with 500 steps after them.
    assert rows.tolist() == [0, 1, *range(2, 702 - 500)]
