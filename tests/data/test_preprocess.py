import json
from pathlib import Path

import numpy as np
import pytest
import torch

from offdiff.core.errors import InputError
from offdiff.data.episodes import Episodes
from offdiff.data.preprocess import ObservationStats, reward_transform

GOLDEN = Path(__file__).parents[1] / "golden" / "learner_golden.json"


def episodes(reward: list[float], ends: str) -> Episodes:
    """ends: one letter a row, "t"erminal, time"o"ut, or "." inside an episode."""
    n = len(reward)
    obs = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    return Episodes(
        obs=obs,
        action=np.zeros((n, 1), np.float32),
        reward=np.array(reward, np.float32),
        next_obs=obs + 1000,
        terminal=np.array([end == "t" for end in ends]),
        truncated=np.array([end == "o" for end in ends]),
        successor_known=np.ones(n, bool),
    )


def test_iql_scale_golden() -> None:
    golden = json.loads(GOLDEN.read_text())["iql_reward_scale"]
    low, high = golden["min_traj_return"], golden["max_traj_return"]
    # Returns add up over rows and are cut at time limits, too.
    data = episodes([low - 1, 1, high / 2, high / 2, 5.0], ".o.tt")
    transform = reward_transform("iql_return_range", data)
    assert transform.scale == pytest.approx(golden["scale"], rel=1e-6)
    assert transform.shift == 0
    assert transform.details["min_return"] == pytest.approx(low)
    assert transform.details["max_return"] == pytest.approx(high)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", [1.0, 2.0, 3.0]),
        ("minus_one", [0.0, 1.0, 2.0]),
        ("scale_shift(10,-5)", [5.0, 15.0, 25.0]),
        ("scale_shift(0.5, 1e0)", [1.5, 2.0, 2.5]),
        ("standardise", [-(1.5**0.5), 0.0, 1.5**0.5]),
    ],
)
def test_transforms(text: str, expected: list[float]) -> None:
    reward = torch.tensor([1.0, 2.0, 3.0])
    transform = reward_transform(text, episodes([1, 2, 3], "..t"))
    torch.testing.assert_close(transform(reward), torch.tensor(expected))
    assert transform.name == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("minus_onee", "did you mean 'minus_one'"),
        ("scale_shift(1)", "with two numbers"),
        ("scale_shift(a,b)", "with two numbers"),
        ("scale_shift(-1,0)", "positive scale"),
        ("scale_shift(nan,0)", "positive scale"),
        ("scale_shift(1,inf)", "positive scale"),
        ("iql_return_range", "episodes of different return, all of these have 4"),
        ("standardise", "rewards that differ, all of these are 4"),
    ],
)
def test_bad_transforms(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        reward_transform(text, episodes([4, 4], "to"))


def test_statistics_are_of_observations_alone_with_population_std() -> None:
    stats = ObservationStats.of(episodes([0, 0, 0], "..t"))
    # Columns 0, 2, 4 and 1, 3, 5; the successors, 1000 higher, have no part in it.
    assert stats.mean.tolist() == [2.0, 3.0]
    assert stats.std.tolist() == pytest.approx([(8 / 3) ** 0.5 + 1e-3] * 2, rel=1e-6)


def test_identity_changes_nothing() -> None:
    stats = ObservationStats.identity(3)
    assert stats.mean.tolist() == [0, 0, 0]
    assert stats.std.tolist() == [1, 1, 1]


def test_statistics_of_a_million_rows_do_not_drift() -> None:
    data = episodes([0.0] * 4, "...t")
    large = Episodes(
        **{
            name: np.tile(
                getattr(data, name), (250_000, 1) if getattr(data, name).ndim == 2 else 250_000
            )
            for name in data.__dataclass_fields__
        }
        | {"obs": np.full((1_000_000, 2), 1000.1, np.float32)}
    )
    stats = ObservationStats.of(large)
    assert stats.mean.tolist() == [np.float32(1000.1)] * 2
    assert stats.std.tolist() == pytest.approx([1e-3] * 2)
