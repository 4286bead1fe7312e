"""IDQL: IQL's values, a cloned actor, and the choice that brings the two together."""

import math
from pathlib import Path

import torch
from torch import nn
from torch.testing import assert_close

from offdiff.algos.diffusion_policy import CandidatePolicy, SmallestQ
from offdiff.algos.idql import IDQL, ExpectileWeights, IDQLConfig, LargestValue
from offdiff.algos.iql import IQLConfig
from offdiff.checkpoint import load_policy, save_policy
from offdiff.core.seeding import SeedStreams
from offdiff.core.types import Batch, Spec
from offdiff.policy import deploy

CPU = torch.device("cpu")
SPEC = Spec(3, 1)
SMALL = IDQLConfig(hidden=(32, 32), actor_hidden=(32, 32), candidates=4, batch_size=64)


def learner(config: IDQLConfig, *seeds: int, updates: int = 100) -> IDQL:
    random = SeedStreams(seeds, "learner", CPU)
    return config.build(SPEC, random=random, updates=updates, device=CPU)


def two_modes(streams: SeedStreams, n: int) -> Batch:
    """One-step episodes with actions about -0.6 and 0.6; only the latter are rewarded."""
    obs, sign = streams.normal(n, 3), streams.integers(2, n, 1) * 2 - 1
    action = 0.6 * sign + 0.03 * streams.normal(n, 1)
    reward, ones = (action.squeeze(-1) > 0).float(), torch.ones(action.shape[:2])
    return Batch(obs, action, reward, obs, ones, action)


def linear(weight: float) -> nn.Linear:
    """(observation, action) -> weight * action, for one number of each."""
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, weight]]))
    return layer


def test_the_choice_improves_upon_an_actor_that_keeps_both_modes() -> None:
    config = IDQLConfig(
        hidden=(64, 64), actor_hidden=(64, 64), batch_size=128, learning_rate=2e-3, candidates=16,
        expectile=0.9, ema_rate=0.02, target_rate=0.05,
    )  # fmt: skip
    idql, streams = learner(config, 0, updates=1000), SeedStreams([0], "data", CPU)
    for _ in range(1000):
        idql.update(two_modes(streams, config.batch_size))
    obs, drawn = streams.normal(1000, 3)[0], idql.policy(0)
    best = IDQLConfig(**{**vars(config), "choice": "best"}).deployed(
        drawn.network, idql_q(drawn), nn.Identity(), SPEC, 0
    )
    with torch.no_grad():
        assert 0.35 < float((drawn.sample(obs) > 0).float().mean()) < 0.65
        assert float((best(obs) > 0.3).float().mean()) > 0.95
        # Half of the candidates weigh 0.9, half of them 0.1.
        assert 0.8 < float((drawn(obs) > 0).float().mean()) < 0.97


def idql_q(policy: nn.Module) -> SmallestQ:
    assert isinstance(policy, CandidatePolicy)
    assert isinstance(policy.judge, ExpectileWeights)
    return policy.judge.q


def test_weights_are_the_slopes_of_the_expectile_loss() -> None:
    obs, action = torch.tensor([[[0.1]] * 3]), torch.tensor([[[-0.5], [0.05], [0.7]]])
    judge = ExpectileWeights(SmallestQ([linear(1.0), linear(2.0)]), nn.Identity(), 0.7)
    # Least Q is -1, 0.05 and 0.7, V is 0.1.
    logs = [math.log(0.3), math.log(0.3), math.log(0.7)]
    assert_close(judge(obs, action), torch.tensor([logs]))


def test_the_best_is_the_largest_of_the_least_q() -> None:
    obs, action = torch.zeros(1, 3, 1), torch.tensor([[[-0.5], [0.2], [0.7]]])
    judge = LargestValue(SmallestQ([linear(1.0), linear(-1.0)]))
    assert judge(obs, action).argmax(1).tolist() == [1]
    assert judge(obs, action)[0, 0] == -torch.inf


def test_values_are_those_of_iql() -> None:
    idql = learner(SMALL, 0, 1)
    iql = IQLConfig(hidden=(32, 32)).build(
        SPEC, random=SeedStreams([0, 1], "learner", CPU), updates=100, device=CPU
    )
    streams = SeedStreams([0, 1], "data", CPU)
    for _ in range(5):
        batch = two_modes(streams, 64)
        a, b = idql.update(batch), iql.update(batch)
        assert all(torch.equal(a[name], b[name]) for name in ("value_loss", "critic_loss"))


def test_target_critics_and_the_average_follow_slowly() -> None:
    idql, streams = learner(SMALL, 0, 1), SeedStreams([0, 1], "data", CPU)
    pairs = [
        (idql.values.critic.net, idql.values.target_critic.net, 0.005),
        (idql.actor.net, idql.actor.average, 0.001),
    ]
    before = [online.flat.detach().clone() for online, _, _ in pairs]
    idql.update(two_modes(streams, 64))
    for (online, slow, rate), old in zip(pairs, before, strict=True):
        moved = online.flat.detach() - old
        assert float(moved.abs().max()) > 1e-4
        assert_close(slow.flat, old + rate * moved, rtol=0, atol=1e-7)


def test_a_saved_policy_acts_as_the_trained_one(tmp_path: Path) -> None:
    idql, streams = learner(SMALL, 0, 1), SeedStreams([0, 1], "data", CPU)
    for _ in range(3):
        idql.update(two_modes(streams, 64))
    obs = streams.normal(20, 3)[0]
    one = torch.ones(1)
    deployed = deploy(
        idql.policy(1),
        obs_mean=torch.zeros(3),
        obs_std=torch.ones(3),
        action_low=-one,
        action_high=one,
    )
    save_policy(tmp_path / "policy.safetensors", deployed, "idql", SMALL)
    assert torch.equal(load_policy(tmp_path).act(obs), deployed.act(obs))
