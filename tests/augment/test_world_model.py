"""Rollouts in dynamics that are known: where they begin, act, end and escape."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from offdiff.augment.base import Source
from offdiff.augment.believable import observed_range
from offdiff.augment.dynamics import DynamicsConfig, DynamicsEnsemble, Scaling
from offdiff.augment.networks import Networks
from offdiff.augment.world_model import WorldModel, WorldModelConfig
from offdiff.core.errors import InputError
from offdiff.core.types import Trajectories
from offdiff.data.dataset import DatasetInfo
from offdiff.data.episodes import Episodes

CPU = torch.device("cpu")
TINY = DynamicsConfig(members=3, elites=2, hidden=(8,), updates=3, batch_size=16)


class Constant:
    """Always the same action."""

    def __init__(self, action: list[float]) -> None:
        self.action = torch.tensor(action)
        self.resets = 0

    def act(self, obs: Tensor, /) -> Tensor:
        assert obs.isfinite().all()
        return self.action.expand(len(obs), -1)

    def reset(self, which: Tensor, /) -> None:
        self.resets += int(which.sum())


class Spread(Constant):
    """Gaussian around it."""

    def distribution(self, obs: Tensor, /) -> tuple[Tensor, Tensor]:
        mean = self.act(obs)
        return mean, torch.full_like(mean, 0.5)


def counter(step: float = 1.0, noise: float = 0.0) -> DynamicsEnsemble:
    """One number that grows by `step`; reward 2; the task ends above 4.5. Two equal elites."""
    networks = Networks(
        [torch.zeros(2, 2, 5)],
        [torch.zeros(2, 1, 5)],
        torch.full((2,), 9.0),
        torch.full((2,), -9.0),
    )
    std = torch.full((2,), noise)
    scaling = Scaling(torch.zeros(2), torch.ones(2), torch.tensor([step, 2.0]), std)
    ended = lambda next_obs: next_obs[..., 0] > 4.5  # noqa: E731
    return DynamicsEnsemble(networks, scaling, torch.zeros(2), torch.arange(2), ended)


def model(
    ensemble: DynamicsEnsemble, highest: float = 100.0, penalty: float = 0.0, horizon: int = 8
) -> WorldModel:
    config = WorldModelConfig(horizon=horizon, penalty=penalty)
    bounds = (torch.tensor([-100.0]), torch.tensor([highest]))
    return WorldModel(ensemble, torch.tensor([[0.0], [3.0]]), 1, bounds, config)


def generate(world: WorldModel, policy: Constant, n: int = 100, seed: int = 0) -> Trajectories:
    return world.generate(n, policy, generator=torch.Generator().manual_seed(seed))


def test_rollouts_stop_at_terminals() -> None:
    policy = Constant([0.5])
    made = generate(model(counter()), policy)
    assert made.obs.shape == (100, 9, 1)
    assert policy.resets == 100
    for obs, terminal, mask in zip(made.obs[..., 0], made.terminal, made.mask, strict=True):
        steps = 5 if obs[0] == 0 else 2
        assert mask.tolist() == [True] * steps + [False] * (8 - steps)
        assert terminal.nonzero().flatten().tolist() == [steps - 1]
        assert obs[: steps + 1].tolist() == [obs[0] + k for k in range(steps + 1)]
    assert (made.reward[made.mask] == 2).all()
    assert (made.action == 0.5).all()
    # Both rows of the dataset were started from, about as often.
    assert 30 < int((made.obs[:, 0, 0] == 3).sum()) < 70


def test_escapes_are_cut_off_without_a_terminal() -> None:
    made = generate(model(counter(), highest=3.5), Constant([0.0]))
    assert not made.terminal.any()
    lengths = torch.where(made.obs[:, 0, 0] == 0, 3, 0)
    assert torch.equal(made.mask.sum(1), lengths)
    assert made.obs.max() == 3


@pytest.mark.parametrize("step", [float("nan"), float("inf")])
def test_broken_dynamics_leave_nothing_but_finite_values(step: float) -> None:
    made = generate(model(counter(step)), Constant([0.0]))
    assert not made.mask.any()
    assert made.obs.isfinite().all()
    assert made.reward.isfinite().all()
    reward_breaks = counter()
    scaling = reward_breaks.scaling._replace(target_mean=torch.tensor([1.0, step]))
    made = generate(model(replace(reward_breaks, scaling=scaling)), Constant([0.0]))
    assert not made.mask.any()
    assert made.reward.isfinite().all()


def test_the_seed_decides_every_bit() -> None:
    world = model(counter(0.1, noise=0.3))
    first, second = (generate(world, Spread([0.2])) for _ in range(2))
    for name, value in vars(first).items():
        assert torch.equal(value, getattr(second, name)), name
    assert not torch.equal(first.obs, generate(world, Spread([0.2]), seed=1).obs)


def test_gaussian_policies_are_sampled_and_clamped() -> None:
    made = generate(model(counter(0.0)), Spread([0.7]), n=1000)
    assert made.action.max() == 1
    at_the_border = float((made.action == 1).float().mean())
    assert at_the_border == pytest.approx(0.274, abs=0.03)  # P(z > 0.6)
    assert float(made.action.median()) == pytest.approx(0.7, abs=0.03)


def test_penalty_takes_the_elites_noise_off_the_reward() -> None:
    calm = generate(model(counter(0.0, noise=0.1)), Constant([0.0]))
    wary = generate(model(counter(0.0, noise=0.1), penalty=3.0), Constant([0.0]))
    noise = 0.1 * 2**0.5  # log-variances are 0
    torch.testing.assert_close(calm.reward - wary.reward, torch.full((100, 8), 3 * noise))
    assert torch.equal(calm.obs, wary.obs)


def test_bad_input_is_refused() -> None:
    world = model(counter())
    with pytest.raises(InputError, match="2 numbers, the dataset's 1"):
        generate(world, Constant([0.0, 0.0]))
    with pytest.raises(InputError, match="needs a policy"):
        world.generate(3, None, generator=torch.Generator())
    for wrong in ({"horizon": 0}, {"penalty": -1.0}, {"penalty": float("nan")}, {"start": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            WorldModelConfig(**wrong)


def walk() -> Episodes:
    """20 episodes of 10 steps; the last row observes 190 + 9, its successor is at 1000."""
    n = 200
    obs = np.arange(n, dtype=np.float32)[:, None]
    last = np.arange(n) % 10 == 9
    next_obs = obs + 1
    next_obs[-1] = 1000
    return Episodes(
        obs=obs,
        action=np.sin(obs),
        reward=np.ones(n, np.float32),
        next_obs=next_obs,
        terminal=np.zeros(n, bool),
        truncated=last,
        successor_known=np.ones(n, bool),
    )


def test_the_observed_range_holds_successors_and_a_margin() -> None:
    low, high = observed_range(walk())
    margin = 3 * np.arange(200).std()
    assert float(low) == pytest.approx(-margin, rel=1e-5)
    assert float(high) == pytest.approx(1000 + margin, rel=1e-5)


def test_builds_from_data_and_starts_on_its_rows(tmp_path: Path) -> None:
    info = DatasetInfo(
        name="walk", suite="hdf5", source="", sha256="", family="other", env_id=None,
        max_episode_steps=None, score_range=None,
    )  # fmt: skip
    source = Source(episodes=walk(), info=info, device=CPU, cache=tmp_path)
    config = WorldModelConfig(dynamics=TINY, horizon=4)
    world = config.build(source)
    assert world.window == 4
    made = generate(world, Constant([0.1]))
    assert made.obs.shape == (100, 5, 1)
    assert set(made.obs[:, 0, 0].tolist()) <= set(range(200))
    assert world.provenance()["task_end"] == "predicted"
    assert len(world.provenance()["holdout_error"]) == 2
    again = generate(config.build(source), Constant([0.1]))
    assert torch.equal(made.obs, again.obs)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
