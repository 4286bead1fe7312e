"""The ensemble against dynamics that are known, its formulas, its cache, and the filter on it."""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from offdiff.augment import dynamics
from offdiff.augment.base import Source
from offdiff.augment.dynamics import (
    DynamicsConfig,
    DynamicsEnsemble,
    Scaling,
    load_or_train,
    train_dynamics,
)
from offdiff.augment.filtering import Filtered, drop_implausible
from offdiff.augment.networks import CHUNK, Networks, Rows, loss
from offdiff.augment.terminations import Termination, hopper, known_end, never
from offdiff.core.errors import InputError
from offdiff.core.types import Trajectories
from offdiff.data.dataset import DatasetInfo
from offdiff.data.episodes import Episodes
from offdiff.data.windows import hold_out

CPU = torch.device("cpu")
SMALL = DynamicsConfig(members=4, elites=2, hidden=(64, 64), updates=600)
TINY = DynamicsConfig(members=3, elites=2, hidden=(8,), updates=3, batch_size=16)
NOISE = torch.tensor([0.1, 0.3, 0.1])
"""Of the linear MDP: two observation numbers and the reward."""


def linear_mean(obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Expected successor and reward of a damped, driven point with a linear reward."""
    change = torch.stack((-0.3 * obs[:, 0] + 0.5 * action[:, 0], 0.4 * obs[:, 0]), dim=1)
    change[:, 1] -= 0.2 * obs[:, 1]
    return obs + change, 5.0 + obs[:, 0] - 0.5 * action[:, 0]


def linear_episodes(n: int = 200, length: int = 20) -> Episodes:
    """Uniformly random actions; the task ends where the first number passes 0.6."""
    generator = torch.Generator().manual_seed(1)
    obs = torch.randn(n, 2, generator=generator)
    columns: list[list[Tensor]] = []
    for _ in range(length):
        action = 2 * torch.rand(n, 1, generator=generator) - 1
        next_obs, reward = linear_mean(obs, action)
        noise = NOISE * torch.randn(n, 3, generator=generator)
        next_obs, reward = next_obs + noise[:, :2], reward + noise[:, 2]
        columns.append([obs, action, reward, next_obs])
        obs = next_obs
    obs, action, reward, next_obs = (
        torch.stack(part, dim=1).flatten(0, 1) for part in zip(*columns, strict=True)
    )
    last = np.arange(n * length) % length == length - 1
    return Episodes(
        obs=obs.numpy(),
        action=action.numpy(),
        reward=reward.numpy(),
        next_obs=next_obs.numpy(),
        terminal=np.zeros_like(last),
        truncated=last,
        successor_known=np.ones_like(last),
    )


def hand_made(biases: list[list[float]], ended: Termination | None = None) -> DynamicsEnsemble:
    """Members that output constants, whatever goes in: O = 1, A = 1, unit scaling."""
    bias = torch.tensor(biases, dtype=torch.float32)[:, None]
    bounds = torch.full((2,), 10.0), torch.full((2,), -10.0)
    networks = Networks([torch.zeros(len(bias), 2, bias.shape[-1])], [bias], *bounds)
    scaling = Scaling(torch.zeros(2), torch.ones(2), torch.zeros(2), torch.ones(2))
    elites = torch.arange(len(bias))
    return DynamicsEnsemble(networks, scaling, torch.zeros(len(bias)), elites, ended)


def source(episodes: Episodes, cache: Path, env_id: str | None = None) -> Source:
    info = DatasetInfo(
        name="toy", suite="hdf5", source="", sha256="", family="other", env_id=env_id,
        max_episode_steps=None, score_range=None,
    )  # fmt: skip
    return Source(episodes=episodes, info=info, device=CPU, cache=cache)


@pytest.fixture(scope="module")
def episodes() -> Episodes:
    return linear_episodes()


@pytest.fixture(scope="module")
def trained(episodes: Episodes) -> DynamicsEnsemble:
    return train_dynamics(episodes, None, SMALL, CPU)


def test_recovers_linear_gaussian_dynamics(episodes: Episodes, trained: DynamicsEnsemble) -> None:
    batch = linear_episodes(50).transitions("strict")
    expected_obs, expected_reward = linear_mean(batch.obs, batch.action)
    expected = torch.cat((expected_obs - batch.obs, expected_reward[:, None]), dim=1)
    mean, std = trained.predict(batch.obs, batch.action)
    mean = mean.mean(0) * trained.scaling.target_std + trained.scaling.target_mean
    error = (mean - expected).square().mean(0).sqrt()
    assert (error < 0.35 * NOISE).all(), error
    spread = (std * trained.scaling.target_std).square().mean((0, 1)).sqrt()
    assert ((spread / NOISE - 1).abs() < 0.2).all(), spread

    # Many draws from one state have the MDP's moments.
    many = batch._replace(
        obs=batch.obs[:1].repeat(4000, 1), action=batch.action[:1].repeat(4000, 1)
    )
    next_obs, reward = trained.step(
        many.obs, many.action, generator=torch.Generator().manual_seed(0)
    )
    drawn = torch.cat((next_obs - many.obs, reward[:, None]), dim=1)
    assert ((drawn.mean(0) - expected[0]).abs() < 0.5 * NOISE).all()
    assert ((drawn.std(0) / NOISE - 1).abs() < 0.3).all()


def test_loss_of_zeroed_networks_has_a_closed_form() -> None:
    members, n, width = 3, 5, 4
    bounds = torch.full((width,), 0.5), torch.full((width,), -10.0)
    networks = Networks(
        [torch.zeros(members, 2, 7), torch.zeros(members, 7, 2 * width + 1)],
        [torch.zeros(members, 1, 7), torch.zeros(members, 1, 2 * width + 1)],
        *bounds,
    )
    target = torch.randn(members, n, width, generator=torch.Generator().manual_seed(0))
    rows = Rows(torch.ones(members, n, 2), target, torch.zeros(members, n), torch.ones(members, n))
    below = 0.5 - math.log1p(math.exp(0.5))
    log_variance = -10 + math.log1p(math.exp(below + 10))
    gaussian = members * (float(target.square().mean()) * math.exp(-log_variance) + log_variance)
    expected = gaussian + members * math.log(2) + 0.01 * width * 10.5
    assert float(loss(networks, rows)) == pytest.approx(expected, rel=1e-6)

    # What is not known to have followed counts for the end only.
    unknown = float(loss(networks, rows._replace(known=torch.zeros(members, n))))
    assert unknown == pytest.approx(members * math.log(2) + 0.01 * width * 10.5, rel=1e-6)


def test_elites_have_the_lowest_error_on_held_out_episodes(
    episodes: Episodes, trained: DynamicsEnsemble
) -> None:
    batch = hold_out(episodes, SMALL.holdout, SMALL.seed)[1].transitions("strict")
    target = trained.scaling.target(batch.obs, batch.next_obs, batch.reward)
    errors = []
    for member in range(SMALL.members):
        x = trained.scaling.inputs(batch.obs, batch.action)
        weights = [w[member] for w in trained.networks.weights]
        biases = [b[member] for b in trained.networks.biases]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            x = (x @ weight + bias).relu()
        mean = (x @ weights[-1] + biases[-1])[:, :3]
        errors.append(float((mean - target).square().mean()))
    assert trained.holdout_error.tolist() == pytest.approx(errors, rel=1e-4)
    assert trained.elites.tolist() == np.argsort(errors)[: SMALL.elites].tolist()


def test_formulas_of_hand_made_members() -> None:
    # Means (1, 0) and (3, 4) of (change, reward); log-variances 0 and 2; no ends.
    ensemble = hand_made([[1, 0, 0, 0, -50], [3, 4, 2, 2, -50]])
    obs, action = torch.zeros(3, 1), torch.zeros(3, 1)
    half_distance = math.hypot(2, 4) / 2
    assert ensemble.disagreement(obs, action).tolist() == pytest.approx([half_distance] * 3)
    assert ensemble.noise(obs, action).tolist() == pytest.approx([math.e * 2**0.5] * 3, rel=1e-3)

    # (change, reward) = (1, 2) is off by (0, 2) and (2, 2).
    claimed = ensemble.implausibility(obs, action, torch.ones(3, 1), torch.full((3,), 2.0))
    assert claimed.tolist() == pytest.approx([(0 + 4 + 4 + 4) / 4] * 3)

    normal = torch.distributions.Normal
    next_obs, reward = torch.tensor([[0.5], [3.0], [-9.0]]), torch.tensor([0.0, 4.0, 1.0])
    each = [
        normal(m, s).log_prob(next_obs[:, 0]) + normal(r, s).log_prob(reward)
        for m, r, s in ((1.0, 0.0, 1.0), (3.0, 4.0, math.e))
    ]
    expected = torch.stack(each).logsumexp(0) - math.log(2)
    found = ensemble.log_prob(obs, action, next_obs, reward)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_scores_are_in_the_units_of_the_environment_and_of_the_data() -> None:
    ensemble = hand_made([[0, 0, 0, 0, 0]])
    scaled = ensemble.scaling._replace(target_std=torch.tensor([10.0, 0.1]))
    point = (torch.zeros(1, 1), torch.zeros(1, 1), torch.tensor([[5.0]]), torch.tensor([0.1]))
    found = float(replace(ensemble, scaling=scaled).log_prob(*point))
    normal = torch.distributions.Normal
    obs_std = replace(ensemble, scaling=scaled._replace(input_std=torch.tensor([2.0, 1.0])))
    # 5 / 2 and 0.1 / 0.1 standard deviations of observation and reward.
    assert float(obs_std.implausibility(*point)) == pytest.approx((2.5**2 + 1) / 2)
    expected = normal(0.0, 10.0).log_prob(torch.tensor(5.0)) + normal(0.0, 0.1).log_prob(
        torch.tensor(0.1)
    )
    assert found == pytest.approx(float(expected), abs=1e-3)


def test_every_row_draws_its_own_elite() -> None:
    ensemble = hand_made([[-5, 0, -9, -9, 0], [5, 0, -9, -9, 0]])
    n = CHUNK + 100  # more than pass through at once
    obs = torch.zeros(n, 1)
    next_obs, _ = ensemble.step(obs, obs, generator=torch.Generator().manual_seed(0))
    assert 0.47 < float((next_obs > 0).float().mean()) < 0.53
    assert (next_obs.abs() - 5).abs().max() < 0.1
    again, _ = ensemble.step(obs, obs, generator=torch.Generator().manual_seed(0))
    assert torch.equal(next_obs, again)
    other, _ = ensemble.step(obs, obs, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(next_obs, other)


@pytest.mark.parametrize("successor_known", [True, False])
def test_unknown_ends_are_learned(episodes: Episodes, successor_known: bool) -> None:
    # Every step is an episode, half of them end the task: what was learned is when.
    terminal = episodes.obs[:, 0] > 0
    ending = replace(
        episodes,
        terminal=terminal,
        truncated=~terminal,
        # Old files lack what followed a terminal: its end is to be learned all the same.
        successor_known=~terminal | successor_known,
    )
    ensemble = train_dynamics(ending, None, replace(SMALL, updates=300), CPU)
    batch = ending.transitions("strict")
    ended = ensemble.ends(
        batch.obs, batch.action, batch.next_obs, generator=torch.Generator().manual_seed(0)
    )
    right = ended == batch.terminal.bool()
    assert right[batch.obs[:, 0].abs() > 0.2].float().mean() > 0.95


def test_data_that_contradict_the_environment_are_believed(episodes: Episodes) -> None:
    assert known_end(episodes, "Swimmer-v4") is never
    # This point "hops" below 0.7 all the time: the environment was made with other options.
    assert known_end(episodes, "Hopper-v4") is None
    ends = episodes.terminal.copy()
    ends[episodes.last] = True
    ending = replace(episodes, terminal=ends, truncated=episodes.truncated & ~ends)
    assert known_end(ending, "Swimmer-v4") is None
    standing = replace(episodes, next_obs=episodes.next_obs * 0 + np.float32([1.2, 0.0]))
    assert known_end(standing, "Hopper-v4") is hopper


def test_numbers_that_never_change_stay_as_they_are(episodes: Episodes) -> None:
    constant = np.full((len(episodes), 1), 7, np.float32)
    wide = replace(
        episodes,
        obs=np.concatenate((episodes.obs, constant), axis=1),
        next_obs=np.concatenate((episodes.next_obs, constant), axis=1),
        reward=np.zeros(len(episodes), np.float32),
    )
    ensemble = train_dynamics(wide, None, TINY, CPU)
    batch = wide.transitions("strict")
    next_obs, reward = ensemble.step(batch.obs, batch.action, generator=torch.Generator())
    assert next_obs.isfinite().all()
    assert (next_obs[:, 2] - 7).abs().max() < 1e-4
    assert reward.abs().max() < 1e-4


def test_training_repeats_and_is_cached(
    episodes: Episodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = source(episodes, tmp_path / "new" / "cache", "Swimmer-v4")
    first = load_or_train(given, TINY)
    fresh = train_dynamics(episodes, None, TINY, CPU)
    assert first.termination is never
    assert first.provenance()["task_end"] == "never"
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name]), name

    load_or_train(given, replace(TINY, seed=1))
    other_data = replace(episodes, reward=episodes.reward + 1)
    load_or_train(replace(given, episodes=other_data), TINY)
    assert len(list(given.cache.glob("dynamics-*.safetensors"))) == 3

    monkeypatch.setattr(dynamics, "train_dynamics", None)  # calling it would raise
    second = load_or_train(given, TINY)
    assert second.termination is never
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_two_runs_at_once_train_once(
    episodes: Episodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = []

    def slow(*arguments: Any) -> DynamicsEnsemble:
        trainings.append(arguments)
        time.sleep(0.3)  # long enough for the other to find no file yet
        return train_dynamics(*arguments)

    monkeypatch.setattr(dynamics, "train_dynamics", slow)
    given = source(episodes, tmp_path)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: load_or_train(given, TINY), range(2))
    assert len(trainings) == 1
    assert torch.equal(first.holdout_error, second.holdout_error)


def test_filter_drops_exactly_the_corrupted_transitions(trained: DynamicsEnsemble) -> None:
    batch = linear_episodes(50, 20).transitions("strict")
    obs = batch.obs.view(50, 20, 2)
    windows = Trajectories(
        obs=torch.cat((obs, batch.next_obs.view(50, 20, 2)[:, -1:]), dim=1),
        action=batch.action.view(50, 20, 1),
        reward=batch.reward.view(50, 20).clone(),
        terminal=torch.zeros(50, 20),
        mask=torch.ones(50, 20, dtype=torch.bool),
    )
    windows.mask[:10, 15:] = False
    corrupt = torch.zeros(50, 20, dtype=torch.bool)
    corrupt[::2, 3] = True
    windows.reward[corrupt] += 5.0
    windows.reward[49, 19] = torch.nan
    corrupt[49, 19] = True
    # Worse still, but outside the mask: nothing there is ranked.
    windows.reward[:10, 16] += 100.0

    share = (int(corrupt.sum()) + 0.5) / int(windows.mask.sum())
    kept = drop_implausible(windows, trained, share)
    assert torch.equal(kept.mask, windows.mask & ~corrupt)
    assert torch.equal(drop_implausible(windows, trained, 0.0).mask, windows.mask)
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        drop_implausible(windows, trained, 1.0)

    class Fixed:
        window = 20

        def generate(self, n: int, policy: object, *, generator: torch.Generator) -> Trajectories:
            return windows

        def provenance(self) -> dict[str, object]:
            return {"made_by": "hand"}

    filtered = Filtered(Fixed(), trained, share)
    assert filtered.window == 20
    assert torch.equal(filtered.generate(50, None, generator=torch.Generator()).mask, kept.mask)
    assert filtered.provenance()["made_by"] == "hand"
    assert filtered.provenance()["filter"]["dropped_share"] == share


def test_bad_input_is_refused(episodes: Episodes) -> None:
    with pytest.raises(InputError, match="single episode"):
        train_dynamics(episodes.select(np.array([0])), None, TINY, CPU)
    for wrong in (
        {"elites": 8},
        {"elites": 0},
        {"hidden": ()},
        {"updates": 0},
        {"batch_size": 0},
        {"holdout": 1.0},
        {"learning_rate": 0.0},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DynamicsConfig(**wrong)
