"""Our policies where stable-baselines3 takes one."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from offdiff.policy import DeployedPolicy


def linear_policy(obs_dim: int, low: list[float], high: list[float]) -> DeployedPolicy:
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Linear(obs_dim, len(low)), nn.Tanh())
    with torch.no_grad():
        network[0].weight.copy_(torch.randn(len(low), obs_dim, generator=generator))
    return DeployedPolicy(
        network,
        obs_mean=torch.full((obs_dim,), 0.5),
        obs_std=torch.full((obs_dim,), 2.0),
        action_low=torch.tensor(low),
        action_high=torch.tensor(high),
    )


def test_actions_are_those_of_the_scaled_network_in_the_environments_box() -> None:
    policy = linear_policy(3, [-2.0, 0.0], [2.0, 10.0])
    obs = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    unit: Tensor = policy.network((torch.from_numpy(obs) - 0.5) / 2)
    action, state = policy.predict(obs)
    np.testing.assert_allclose(action[:, 0], 2 * unit[:, 0].detach(), rtol=1e-5)
    np.testing.assert_allclose(action[:, 1], 5 + 5 * unit[:, 1].detach(), rtol=1e-5)
    assert state is None


def test_one_observation_and_a_batch_of_them_agree() -> None:
    policy = linear_policy(3, [-2.0], [2.0])
    obs = np.random.default_rng(0).standard_normal((4, 3))
    batch, _ = policy.predict(obs)
    assert batch.shape == (4, 1)
    assert batch.dtype == np.float32
    for row, expected in zip(obs, batch, strict=True):
        single, _ = policy.predict(row)
        assert single.shape == (1,)
        np.testing.assert_allclose(single, expected, rtol=1e-5)


def test_a_given_state_passes_through() -> None:
    memory = (np.ones(2),)
    policy = linear_policy(3, [-1.0], [1.0])
    _, state = policy.predict(np.zeros((1, 3)), memory, np.ones(1, bool), deterministic=False)
    assert state is memory


@pytest.mark.parametrize(
    ("env_id", "obs_dim", "low"), [("Pendulum-v1", 3, [-2.0]), ("Hopper-v4", 11, [-1.0] * 3)]
)
@pytest.mark.filterwarnings("ignore")  # v4 says that there is a v5; bare environments lack Monitor
def test_sb3s_evaluation_gives_the_returns_of_a_plain_rollout(
    env_id: str, obs_dim: int, low: list[float]
) -> None:
    evaluation = pytest.importorskip(
        "stable_baselines3.common.evaluation", reason="needs the sb3 extra"
    )
    policy = linear_policy(obs_dim, low, [-bound for bound in low])
    env = gymnasium.make(env_id)
    env.reset(seed=5)
    expected = [_play(policy, env, seed) for seed in (5, None)]
    env.reset(seed=5)

    class Seeded(gymnasium.Wrapper[Any, Any, Any, Any]):
        """The first of SB3's unseeded resets gets the seed."""

        seed: int | None = 5

        def reset(self, **_: Any) -> Any:
            seed, self.seed = self.seed, None
            return self.env.reset(seed=seed)

    returns, lengths = evaluation.evaluate_policy(
        policy, Seeded(env), n_eval_episodes=2, return_episode_rewards=True
    )
    np.testing.assert_allclose(returns, [total for total, _ in expected], rtol=1e-5)
    assert lengths == [length for _, length in expected]


def _play(policy: DeployedPolicy, env: Any, seed: int | None) -> tuple[float, int]:
    obs, _ = env.reset(seed=seed)
    total, length, ended = 0.0, 0, False
    while not ended:
        obs, reward, terminated, truncated, _ = env.step(policy.predict(obs)[0])
        total, length, ended = total + float(reward), length + 1, terminated or truncated
    return total, length
