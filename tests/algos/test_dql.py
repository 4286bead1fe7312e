"""Diffusion-QL: what its target, its averages and its gradients are, and that it climbs."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from offdiff.algos.diffusion_policy import CandidatePolicy, SmallestQ
from offdiff.algos.dql import DQL, DQLConfig, ValueWeights, clip_by_seed
from offdiff.algos.nets import MLP
from offdiff.checkpoint import load_policy, save_policy
from offdiff.core.seeding import SeedStreams
from offdiff.core.types import Batch, Spec
from offdiff.export import export_policy
from offdiff.policy import deploy

CPU = torch.device("cpu")
SPEC = Spec(3, 1)
SMALL = DQLConfig(hidden=(32, 32), candidates=4, batch_size=64)


def learner(config: DQLConfig, *seeds: int) -> DQL:
    return config.build(SPEC, random=SeedStreams(seeds, "learner", CPU), updates=100, device=CPU)


def two_modes(streams: SeedStreams, n: int) -> Batch:
    """One-step episodes with actions about -0.6 and 0.6; only the latter are rewarded."""
    obs, sign = streams.normal(n, 3), streams.integers(2, n, 1) * 2 - 1
    action = 0.6 * sign + 0.03 * streams.normal(n, 1)
    reward, ones = (action.squeeze(-1) > 0).float(), torch.ones(action.shape[:2])
    return Batch(obs, action, reward, obs, ones, action)


def share_of_the_better_mode(eta: float) -> float:
    config = DQLConfig(
        hidden=(32, 32), batch_size=128, eta=eta, learning_rate=3e-3, candidates=1, ema_from=10_000
    )
    dql, streams = learner(config, 0), SeedStreams([0], "data", CPU)
    for _ in range(400):
        dql.update(two_modes(streams, config.batch_size))
    with torch.no_grad():
        action = dql.policy(0)(streams.normal(1000, 3)[0])
    return float((action > 0.3).float().mean())


def test_value_moves_all_samples_to_the_better_mode_and_imitation_leaves_them() -> None:
    assert 0.3 < share_of_the_better_mode(eta=0.0) < 0.7
    assert share_of_the_better_mode(eta=3.0) > 0.95


def test_target_critics_follow_slowly() -> None:
    dql, streams = learner(SMALL, 0, 1), SeedStreams([0, 1], "data", CPU)
    before = dql.critic.net.flat.detach().clone()
    dql.update(two_modes(streams, 64))
    after = dql.critic.net.flat.detach()
    assert float((after - before).abs().max()) > 1e-4
    assert_close(dql.target_critic.net.flat, before + 0.005 * (after - before), rtol=0, atol=1e-8)


def test_the_average_copies_first_and_then_follows_when_due() -> None:
    config = DQLConfig(hidden=(32,), ema_from=3, ema_every=2, ema_rate=0.1)
    dql, streams = learner(config, 0), SeedStreams([0], "data", CPU)
    net, average = dql.actor.net.flat, dql.actor.average.flat
    for done in range(1, 7):
        before = average.clone()
        dql.update(two_modes(streams, 16))
        if done < 3:
            assert torch.equal(average, net.detach())
        elif done % 2:
            assert torch.equal(average, before)
        else:
            assert_close(average, 0.9 * before + 0.1 * net.detach(), rtol=0, atol=1e-7)
            assert not torch.equal(average, before)


@pytest.mark.parametrize("samples", [1, 3])
def test_the_target_takes_the_best_of_the_samples_and_the_least_of_the_critics(
    samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dql = learner(DQLConfig(hidden=(32,), backup_samples=samples), 0, 1)
    net = dql.target_critic.net
    for kind in net.split(net.flat):
        for piece in kind:
            piece[1::2] = piece[::2]
    net.weights[-1][1::2] *= -1  # critics that disagree: the best of one is the worst of the other
    streams = SeedStreams([0, 1], "data", CPU)
    obs, actions = streams.normal(5, 3), streams.uniform(5 * samples, 1, low=-1.0)

    def given(net: MLP, repeated: Tensor) -> Tensor:
        assert net is dql.actor.average
        assert torch.equal(repeated[:, ::samples], obs)
        return actions

    monkeypatch.setattr(dql.actor, "sample", given)
    got = dql._next_value(obs)
    for seed in range(2):
        for row in range(5):
            values = torch.stack([
                dql.target_critic(obs[:, row : row + 1], actions[:, i : i + 1])[seed, :, 0]
                for i in range(row * samples, (row + 1) * samples)
            ])  # fmt: skip
            assert_close(got[seed, row], values.max(0).values.min())


def test_the_scale_of_rewards_does_not_matter_to_the_actors_step() -> None:
    stepped = []
    for scale in (1.0, 8.0):  # a power of two: the scaling is exact in floating point
        dql, streams = learner(SMALL, 0), SeedStreams([0], "data", CPU)
        with torch.no_grad():
            dql.critic.net.weights[-1].mul_(scale)
            dql.critic.net.biases[-1].mul_(scale)
        dql._step_actor(two_modes(streams, 64))
        stepped.append(dql.actor.net.flat.detach())
    assert torch.equal(*stepped)


def test_the_critics_swap_roles_by_the_seeds_own_draw() -> None:
    """One critic is 1 and the other 2 everywhere: the normalised value tells which is climbed."""
    dql, streams = learner(SMALL, 0, 1, 2), SeedStreams([0, 1, 2], "data", CPU)
    with torch.no_grad():
        dql.critic.net.flat.zero_()
        dql.critic.net.biases[-1].copy_(torch.tensor([1.0, 2.0] * 3).view(6, 1, 1))
    values = torch.stack(
        [dql._step_actor(two_modes(streams, 8))["policy_value"] for _ in range(30)]
    )
    assert set(values.flatten().tolist()) == {0.5, 2.0}
    assert ((values == 2.0).sum(0) > 5).all()
    assert ((values == 2.0).sum(0) < 25).all()
    assert (values != values[:, :1]).any(), "seeds draw for themselves"


def test_gradients_are_shortened_per_seed_as_torch_does() -> None:
    net = MLP((4, 8, 1), 2 * 3)  # three seeds of two members
    gradient = torch.randn(net.flat.shape, generator=torch.Generator().manual_seed(0))
    for kind in net.split(gradient):
        for piece in kind:
            piece[2:4] *= 0.01  # the second seed's gradient is short
    clipped = gradient.clone()
    clip_by_seed(net, clipped, 3, 1.0)
    for seed in range(3):
        members = slice(2 * seed, 2 * seed + 2)
        parts, got = (
            [piece[members].clone() for kind in net.split(flat) for piece in kind]
            for flat in (gradient, clipped)
        )
        leaves = [torch.zeros_like(part, requires_grad=True) for part in parts]
        for leaf, part in zip(leaves, parts, strict=True):
            leaf.grad = part.clone()
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        for leaf, mine, part in zip(leaves, got, parts, strict=True):
            assert_close(mine, leaf.grad, rtol=1e-4, atol=1e-7)
            assert (seed == 1) == torch.equal(mine, part)


def test_candidates_weigh_by_the_exponential_of_the_least_q() -> None:
    critics = [torch.nn.Linear(2, 1, bias=False) for _ in range(2)]
    with torch.no_grad():
        critics[0].weight.copy_(torch.tensor([[0.0, 1.0]]))
        critics[1].weight.copy_(torch.tensor([[0.0, -1.0]]))
    weights = ValueWeights(SmallestQ(critics), 3.0)(
        torch.zeros(1, 3, 1), torch.tensor([[[-0.5], [0.0], [1.0]]])
    )
    assert_close(weights, torch.tensor([[-1.5, 0.0, -3.0]]))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # levels are constants of the graph
def test_a_saved_policy_acts_as_the_trained_one(tmp_path: Path) -> None:
    dql, streams = learner(SMALL, 0, 1), SeedStreams([0, 1], "data", CPU)
    for _ in range(3):
        dql.update(two_modes(streams, 64))
    policy = dql.policy(1)
    deployed = deploy(
        policy,
        obs_mean=torch.full((3,), 0.5),
        obs_std=torch.full((3,), 2.0),
        action_low=-torch.ones(1),
        action_high=torch.ones(1),
    )
    save_policy(tmp_path / "policy.safetensors", deployed, "dql", SMALL)
    loaded = load_policy(tmp_path)
    obs = streams.normal(20, 3)[0]
    assert isinstance(loaded.network, CandidatePolicy)
    assert int(loaded.network.seed) == dql.actor.noise_seeds[1] != dql.actor.noise_seeds[0]
    assert torch.equal(loaded.act(obs), deployed.act(obs))
    check = export_policy(loaded, tmp_path / "policy.pt", "torchscript")
    assert check.max_abs_difference < 1e-5, "the same draws in the exported graph"
    kept = policy(obs)
    dql.update(two_modes(streams, 64))
    assert torch.equal(policy(obs), kept), "independent of later updates"
