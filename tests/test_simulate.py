"""Restoring the simulator from recorded observations gives the recorded successors again."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from offdiff.core.errors import InputError
from offdiff.core.types import Batch
from offdiff.data.episodes import Episodes
from offdiff.data.load import load_dataset
from offdiff.environments import make_simulator
from offdiff.simulate import CLIPPED_VELOCITY, DynamicsError, Restorer, can_restore, dynamics_error


@pytest.fixture(scope="module")
def sample() -> Episodes:
    episodes = load_dataset("sample").episodes
    return episodes.select(np.arange(0, episodes.n_episodes, 40))


def test_recorded_hopper_steps_are_reproduced(sample: Episodes) -> None:
    with Restorer("Hopper-v4") as restorer:
        found = restorer.successors(sample.obs, sample.action)
    speed = np.abs(sample.obs[:, 5:]).max(1)
    np.testing.assert_array_equal(found.valid, speed < CLIPPED_VELOCITY)
    assert 0.5 < found.valid.mean() < 1, "there are clipped rows to leave out, and others"
    ok = found.valid
    error = (found.next_obs - sample.next_obs)[ok] / sample.obs.std(0)
    # The file holds float32: 1e-14 is its rounding, carried through four simulator steps.
    assert (error**2).mean() < 1e-12
    assert np.abs(found.reward - sample.reward)[ok].max() < 1e-5
    np.testing.assert_array_equal(found.terminated[ok], sample.terminal[ok])
    assert found.terminated[ok].any()


@pytest.mark.parametrize(
    "env_id",
    [
        *(f"{b}-{v}" for b in ("Hopper", "HalfCheetah", "Walker2d") for v in ("v4", "v5")),
        "PointMaze_Medium-v3",
    ],
)
def test_every_body_is_put_back_exactly(env_id: str) -> None:
    random = np.random.default_rng(0)
    rows = []
    with make_simulator(env_id) as simulator:
        env = simulator.env.unwrapped
        obs = flat(env.reset(seed=0)[0])
        for _ in range(60):
            action = random.uniform(-1, 1, simulator.spec.action_dim)
            following, reward, terminated, _, _ = env.step(action)
            rows.append((obs, action, flat(following), reward, terminated))
            obs = flat(env.reset(seed=1)[0] if terminated else following)
    obs, action, following, reward, terminated = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    with Restorer(env_id) as restorer:
        found = restorer.successors(obs, action)
    ok = found.valid
    assert ok.any()
    # Float64 throughout; what differs is where MuJoCo's contact solver starts from.
    np.testing.assert_allclose(found.next_obs[ok], following[ok], atol=1e-9)
    np.testing.assert_allclose(found.reward[ok], reward[ok], atol=1e-9)
    np.testing.assert_array_equal(found.terminated[ok], terminated[ok])


def flat(obs: Any) -> NDArray[np.float64]:
    """A goal environment's observation in the datasets' order, any other as it is."""
    return np.concatenate([obs[name] for name in sorted(obs)]) if isinstance(obs, dict) else obs


def test_the_goal_of_a_maze_is_put_back() -> None:
    here = [0.5, 0.5]
    obs = np.array([[*here, 0.6, 0.5, *here, 0, 0], [*here, 2.5, 0.5, *here, 0, 0]])
    with Restorer("PointMaze_UMaze-v3") as restorer:
        found = restorer.successors(obs, np.zeros((2, 2)))
    assert found.reward.tolist() == [1, 0], "within 0.45 of the goal, and not"
    np.testing.assert_array_equal(found.next_obs[:, 2:4], obs[:, 2:4])


def test_rows_do_not_depend_on_each_other(sample: Episodes) -> None:
    rows = np.arange(50)
    with Restorer("Hopper-v4") as restorer:
        there = restorer.successors(sample.obs[rows], sample.action[rows])
        back = restorer.successors(sample.obs[rows[::-1]], sample.action[rows[::-1]])
    np.testing.assert_array_equal(there.next_obs, back.next_obs[::-1])


def test_impossible_states_are_told_and_leave_no_trace(
    sample: Episodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    obs, action = sample.obs[:6].copy(), sample.action[:6].copy()
    obs[0, 0] = np.nan
    obs[1, 2:5] = 1e5  # MuJoCo goes on from its initial pose, after a warning
    obs[2, 1] = 1e11
    obs[3, 7] = -10
    action[4, 0] = np.inf
    with Restorer("Hopper-v4") as restorer:
        found = restorer.successors(obs, action)
        again = restorer.successors(sample.obs[5:6], sample.action[5:6])
    assert found.valid.tolist() == [False] * 5 + [True]
    assert not found.next_obs[:5].any()
    np.testing.assert_array_equal(found.next_obs[5:], again.next_obs)
    assert os.listdir(tmp_path) == [], "MuJoCo's log"
    assert capfd.readouterr() == ("", "")


def test_actions_beyond_the_bounds_are_clipped(sample: Episodes) -> None:
    with Restorer("Hopper-v4") as restorer:
        far = restorer.successors(sample.obs[:3], np.full((3, 3), 5.0))
        bound = restorer.successors(sample.obs[:3], np.ones((3, 3)))
    np.testing.assert_array_equal(far.next_obs, bound.next_obs)


def test_what_cannot_be_restored(sample: Episodes) -> None:
    assert can_restore("Walker2d-v5")
    assert can_restore("PointMaze_Medium-v3")
    assert not can_restore("Ant-v4")
    assert not can_restore("Hopper-v3")
    assert not can_restore(None)
    with pytest.raises(InputError, match=r"Ant-v4 cannot be restored"):
        Restorer("Ant-v4")
    with (
        Restorer("Hopper-v4") as restorer,
        pytest.raises(InputError, match=r"11 observation numbers"),
    ):
        restorer.successors(sample.obs[:, 1:], sample.action)


def test_known_noise_is_the_error(sample: Episodes) -> None:
    std, reward_std = sample.obs.std(0, dtype=np.float64), 2.0
    n = len(sample)
    row = np.arange(n) % 2
    noise = np.random.default_rng(0).standard_normal((n, 11)) * np.where(row, 0.3, 0.1)[:, None]
    right = sample.transitions("strict")
    wrong = right._replace(
        next_obs=right.next_obs + torch.from_numpy(noise * std),
        reward=right.reward + 0.5,
        terminal=1 - right.terminal,
    )

    def judge(batch: Batch) -> DynamicsError | None:
        return dynamics_error("Hopper-v4", batch, row, 3, obs_std=std, reward_std=reward_std)

    found = judge(wrong)
    # Some 1,000 rows of 11 numbers: a relative standard error of 1.4 %.
    assert found.mean == pytest.approx((0.1**2 + 0.3**2) / 2, rel=0.07)
    assert found.by_row == [
        pytest.approx(0.1**2, rel=0.07),
        pytest.approx(0.3**2, rel=0.07),
        None,
    ]
    assert found.median < found.mean < found.p95
    assert found.reward == pytest.approx((0.5 / 2) ** 2, rel=1e-4)
    assert found.reward_median == pytest.approx(found.reward_p95, rel=1e-4)
    assert found.wrong_ends == 1
    exact = judge(right)
    assert exact.mean < 1e-12
    assert exact.wrong_ends == 0
    assert 0.5 < exact.judged < 1
    assert judge(right._replace(obs=right.obs * torch.nan)) is None
