"""Every measure of synthetic experience on data for which it is known."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from offdiff.core.types import Trajectories
from offdiff.data.dataset import Dataset, DatasetInfo
from offdiff.data.episodes import Episodes
from offdiff.data.load import load_dataset
from offdiff.data.windows import Windows
from offdiff.diagnostics import Diagnostics, Inspector, policy_agreement

CPU = torch.device("cpu")
HORIZON = 8
STD = 0.3


class Linear:
    """Acts by a fixed linear map of the first observations."""

    def act(self, obs: Tensor, /) -> Tensor:
        return 0.1 * obs[:, :2]

    def reset(self, which: Tensor, /) -> None:
        pass


class Gaussian(Linear):
    """The same with a spread."""

    def distribution(self, obs: Tensor, /) -> tuple[Tensor, Tensor]:
        mean = self.act(obs)
        return mean, torch.full_like(mean, STD)


class Broken(Linear):
    """A policy whose training diverged."""

    def act(self, obs: Tensor, /) -> Tensor:
        return torch.full((len(obs), 2), math.nan)


def info(env_id: str | None = None) -> DatasetInfo:
    return DatasetInfo(
        name="made",
        suite="hdf5",
        source="",
        sha256="",
        family="other",
        env_id=env_id,
        max_episode_steps=None,
        score_range=None,
    )


def noise(episodes: int, seed: int, *, length: int = 30, shift: float = 0.0) -> Episodes:
    """White noise, O = 3 of which the last is constant, A = 2; every fourth episode terminal."""
    random = np.random.default_rng(seed)
    n = episodes * length
    obs = random.standard_normal((n + 1, 3)).astype(np.float32) + np.float32(shift)
    obs[:, 2] = 4
    last = np.arange(n) % length == length - 1
    terminal = last & (np.arange(n) // length % 4 == 3)
    return Episodes(
        obs=obs[:-1],
        action=random.uniform(-1, 1, (n, 2)).astype(np.float32),
        reward=random.standard_normal(n).astype(np.float32),
        next_obs=obs[1:],
        terminal=terminal,
        truncated=last & ~terminal,
        successor_known=np.ones(n, np.bool_),
    )


def windows(episodes: Episodes, n: int = 200, *, terminals: bool = False) -> Trajectories:
    cut = Windows.of(episodes, HORIZON, CPU, terminals=terminals)
    return cut.sample(n, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def inspector() -> Inspector:
    return Inspector(info(), noise(60, seed=0), samples=200, seed=1)


@pytest.fixture(scope="module")
def hopper() -> Dataset:
    return load_dataset("sample")


@pytest.fixture(scope="module")
def hopper_inspector(hopper: Dataset) -> Inspector:
    return Inspector(hopper.info, hopper.episodes, samples=100)


def test_recorded_windows_pass_every_test(hopper: Dataset, hopper_inspector: Inspector) -> None:
    made = windows(hopper.episodes, terminals=True)
    found = hopper_inspector.inspect(made, None)
    assert found.dynamics is not None
    assert found.floor is not None
    assert found.dynamics.mean < 1e-12
    assert found.floor.mean < 1e-12
    assert len(found.dynamics.by_row) == HORIZON
    assert found.dynamics.wrong_ends == found.floor.wrong_ends == 0
    assert found.broken == found.not_finite == found.outside == found.beyond == 0
    assert found.length == pytest.approx(float(made.mask.sum()) / len(made))
    assert found.terminal_rate == pytest.approx(float(made.terminal[made.mask].mean()), rel=1e-5)
    assert found.data_terminal_rate == pytest.approx(hopper.episodes.terminal.mean())
    assert found.policy is found.behaviour is None


def test_noise_and_inverted_ends_are_seen(hopper: Dataset, hopper_inspector: Inspector) -> None:
    made = windows(hopper.episodes)
    std = torch.from_numpy(hopper.episodes.obs.std(0))
    # The successor alone is moved: every second observation, of transitions that start at others.
    even = torch.arange(HORIZON) % 2 == 0
    shift = torch.zeros(HORIZON + 1, 1)
    shift[1::2] = 0.2
    changed = replace(
        made,
        obs=made.obs + shift * std,
        terminal=1 - made.terminal,
        mask=made.mask & even,
    )
    found = hopper_inspector.inspect(changed, None).dynamics
    assert found is not None
    assert found.mean == pytest.approx(0.2**2, rel=1e-4)
    assert found.p95 == pytest.approx(0.2**2, rel=1e-4)
    assert [error is None for error in found.by_row] == [False, True] * (HORIZON // 2)
    assert found.reward < 1e-10
    assert found.wrong_ends == 1


def test_terminal_rows_without_successor_are_no_floor(hopper: Dataset) -> None:
    some = hopper.episodes.select(np.arange(20))
    unknown = replace(
        some,
        next_obs=np.where(some.terminal[:, None], some.obs, some.next_obs),
        successor_known=~some.terminal,
    )
    found = Inspector(hopper.info, unknown).inspect(windows(some), None)
    assert found.floor is not None
    assert found.floor.mean < 1e-12


def test_without_simulator(inspector: Inspector) -> None:
    found = inspector.inspect(windows(noise(60, seed=0)), None)
    assert found.dynamics is found.floor is None


def test_actions_of_the_policy_have_its_entropy() -> None:
    made = noise(200, seed=3)
    batch = made.transitions("strict")
    policy = Gaussian()
    drawn = torch.randn(batch.action.shape, generator=torch.Generator().manual_seed(0))
    batch = batch._replace(action=policy.act(batch.obs) + STD * drawn)
    found = policy_agreement(policy, batch, policy_std=math.nan)
    assert found is not None
    # Of 12,000 numbers, with standard errors of 0.65 % and below.
    assert found.residual_std == pytest.approx(1, abs=0.03)
    assert found.residual_mean == pytest.approx(0, abs=0.04)
    entropy = math.log(STD * math.sqrt(2 * math.pi * math.e))
    assert found.log_likelihood == pytest.approx(-2 * entropy, abs=0.05)
    assert found.action_mse == pytest.approx(2 * STD**2, rel=0.05)
    twice = policy_agreement(Linear(), batch, policy_std=2 * STD)
    assert twice is not None
    assert twice.residual_std == pytest.approx(found.residual_std / 2)
    assert twice.action_mse == pytest.approx(found.action_mse)


def test_collapsed_actions_and_the_recorded_ones(inspector: Inspector) -> None:
    made = windows(noise(60, seed=0))
    action = Linear().act(made.obs[:, :-1].reshape(-1, 3)).view_as(made.action)
    found = inspector.inspect(replace(made, action=action), Gaussian())
    assert found.policy is not None
    assert found.behaviour is not None
    assert found.policy.residual_std == pytest.approx(0, abs=1e-6)
    density = -2 * math.log(STD * math.sqrt(2 * math.pi))
    assert found.policy.log_likelihood == pytest.approx(density, rel=1e-5)
    # Uniform actions, means of variance 0.01.
    assert found.behaviour.action_mse == pytest.approx(2 * (1 / 3 + 0.01), rel=0.05)


def test_shares_of_broken_windows(inspector: Inspector) -> None:
    made = windows(noise(60, seed=0))
    obs, action, mask = made.obs.clone(), made.action.clone(), made.mask.clone()
    obs[:20, HORIZON] = math.inf  # 10 % of 200
    obs[20:50, 3, 2] = 4 + 3.1  # of a constant number, which counts as of variance 1
    action[40:80, 0, 0] = 1.01
    action[100:, 5] = math.nan
    mask[100:, 5:] = False  # not part of the window
    changed = replace(made, obs=obs, action=action, mask=mask)
    found = inspector.inspect(changed, Gaussian())
    assert found.not_finite == pytest.approx(0.1)
    assert found.outside == pytest.approx(0.1 + 0.15), "infinite ones are outside too"
    assert found.beyond == pytest.approx(0.2)
    assert found.broken == pytest.approx(0.4)
    assert found.policy is not None, "of the transitions that are finite"
    json.dumps(found.as_json(), allow_nan=False)


def test_nothing_finite_is_still_a_record(inspector: Inspector) -> None:
    made = windows(noise(60, seed=0))
    found = inspector.inspect(replace(made, obs=made.obs * math.nan), Gaussian())
    assert found.not_finite == found.broken == 1
    assert found.policy is found.novelty is found.wasserstein_obs is None
    assert inspector.inspect(made, Broken()).policy is None
    huge = inspector.inspect(replace(made, obs=made.obs * 1e37), Gaussian())
    json.dumps((found.as_json(), huge.as_json()), allow_nan=False)
    assert huge.outside == 1
    assert found.summary().keys() < huge.summary().keys()
    assert inspector.inspect(replace(made, mask=made.mask & False), None).length == 0


def test_copies_are_not_novel_and_other_data_are() -> None:
    data = noise(60, seed=0)
    inspector = Inspector(info(), data, samples=200)
    copies = inspector.inspect(windows(data), None).novelty
    assert copies is not None
    # All windows of nine tenths of the episodes are references: their copies are at 0.
    assert copies == pytest.approx(0.1, abs=0.06)
    fresh = inspector.inspect(windows(noise(60, seed=9)), None).novelty
    assert fresh == pytest.approx(1, abs=0.02)
    far = inspector.inspect(windows(noise(60, seed=9, shift=10)), None).novelty
    assert far is not None
    assert far > 5


def test_copies_of_references_are_at_zero() -> None:
    data = noise(2, seed=0)
    found = [
        Inspector(info(), data).inspect(windows(data.select(np.array([e]))), None).novelty
        for e in range(2)
    ]
    # One of two episodes is the reference, the other the yardstick.
    assert sorted(found) == [pytest.approx(0), pytest.approx(1, abs=0.1)]


@pytest.mark.parametrize("episodes", [noise(1, seed=0), noise(20, seed=0, length=HORIZON - 1)])
def test_no_novelty_without_windows_to_compare(episodes: Episodes) -> None:
    assert Inspector(info(), episodes).inspect(windows(noise(4, seed=1)), None).novelty is None


def test_distances_to_the_data(inspector: Inspector) -> None:
    found = inspector.inspect(windows(noise(60, seed=5, shift=2.0)), None)
    # Two of three numbers are shifted, by 2 standard deviations.
    assert found.wasserstein_obs == pytest.approx(4 / 3, abs=0.05)
    assert found.wasserstein_action == pytest.approx(0, abs=0.05)


def test_the_same_twice_and_from_json(inspector: Inspector) -> None:
    made = windows(noise(60, seed=7), 300)
    found = inspector.inspect(made, Gaussian())
    assert inspector.inspect(made, Gaussian()) == found
    read = json.loads(json.dumps({"update": 3, **found.as_json()}))
    assert Diagnostics.from_json(read) == found


def test_json_of_a_simulated_one(hopper: Dataset, hopper_inspector: Inspector) -> None:
    found = hopper_inspector.inspect(windows(hopper.episodes, 20), None)
    assert Diagnostics.from_json(json.loads(json.dumps(found.as_json()))) == found
    summary = found.summary()
    assert found.floor is not None
    assert summary["floor_mean"] == found.floor.mean
    assert summary["terminal_rate"] == found.terminal_rate
    assert all(math.isfinite(value) for value in summary.values())
    assert "dynamics_by_row" not in summary
    assert "dynamics error" in found.sentence()
