"""Every learner: seeds together equal seeds alone, resuming is exact, and it learns."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from offdiff.algos.bc import BCConfig
from offdiff.algos.cql import CQLConfig
from offdiff.algos.dql import DQLConfig
from offdiff.algos.idql import IDQLConfig
from offdiff.algos.iql import IQLConfig
from offdiff.algos.rebrac import ReBRACConfig
from offdiff.algos.td3bc import TD3BCConfig
from offdiff.core.protocols import Learner, LearnerConfig
from offdiff.core.seeding import SeedStreams
from offdiff.core.types import Batch, Spec
from offdiff.data.buffer import ReplayBuffer

CPU = torch.device("cpu")
SPEC = Spec(4, 2)
SMALL = (32, 32)
BIAS = 0.4
CONFIGS: list[LearnerConfig] = [
    BCConfig(batch_size=64, hidden=SMALL),
    TD3BCConfig(batch_size=64, hidden=SMALL),
    IQLConfig(batch_size=64, hidden=SMALL),
    IQLConfig(batch_size=64, hidden=SMALL, dropout=0.1),
    CQLConfig(batch_size=64, hidden=SMALL, samples=3),
    CQLConfig(batch_size=64, hidden=SMALL, samples=3, importance_sampling=False),
    CQLConfig(batch_size=64, hidden=SMALL, samples=3, max_target_backup=True, entropy_backup=True),
    ReBRACConfig(batch_size=64, hidden=SMALL),
    DQLConfig(batch_size=64, hidden=SMALL, candidates=5, ema_from=20, ema_every=3),
    DQLConfig(batch_size=64, hidden=SMALL, candidates=5, backup_samples=3),
    IDQLConfig(batch_size=64, hidden=SMALL, actor_hidden=SMALL, candidates=5),
    IDQLConfig(batch_size=64, hidden=SMALL, actor_hidden=SMALL, candidates=5, choice="best"),
]
IDS = [
    "bc", "td3bc", "iql", "iql-dropout", "cql", "cql-rho", "cql-max-entropy", "rebrac",
    "dql", "dql-max", "idql", "idql-best",
]  # fmt: skip


def bandit(n: int = 2000) -> Batch:
    """One-step episodes; reward peaks at the best action, which the behaviour misses by BIAS."""
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(n, 4, generator=generator)
    best = best_action(obs)
    action = (best + BIAS + 0.5 * torch.randn(n, 2, generator=generator)).clamp(-1, 1)
    reward = -(action - best).square().sum(-1)
    ones = torch.ones(n)
    return Batch(obs, action, reward, obs.roll(1, 0), ones, action.roll(1, 0))


def best_action(obs: Tensor) -> Tensor:
    return 0.6 * torch.tanh(obs[:, :2])


def start(
    config: LearnerConfig, seeds: Sequence[int], updates: int = 60
) -> tuple[Learner, ReplayBuffer, SeedStreams, SeedStreams]:
    replay = ReplayBuffer(2000, SPEC, CPU)
    replay.extend(bandit())
    noise, batches = SeedStreams(seeds, "learner", CPU), SeedStreams(seeds, "batches", CPU)
    return config.build(SPEC, random=noise, updates=updates, device=CPU), replay, noise, batches


def advance(
    learner: Learner, replay: ReplayBuffer, batches: SeedStreams, size: int, updates: int
) -> dict[str, Tensor]:
    metrics: dict[str, Tensor] = {}
    for _ in range(updates):
        metrics = dict(learner.update(replay.sample(size, random=batches)))
    return metrics


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_a_seed_learns_the_same_alone_and_in_company(config: LearnerConfig) -> None:
    joint, replay, _, batches = start(config, [3, 1, 4])
    joint_metrics = advance(joint, replay, batches, config.batch_size, 40)
    obs = torch.randn(50, 4, generator=torch.Generator().manual_seed(9))
    for position, seed in enumerate([3, 1, 4]):
        alone, replay, _, batches = start(config, [seed])
        metrics = advance(alone, replay, batches, config.batch_size, 40)
        for name, value in metrics.items():
            # Batched products may sum in another order than single ones: a few float32 roundings,
            # amplified by 40 steps of Adam (seen: 1e-6 after 100 updates at the papers' sizes).
            torch.testing.assert_close(
                value[0], joint_metrics[name][position], rtol=1e-4, atol=1e-4
            )
        torch.testing.assert_close(
            alone.policy(0)(obs), joint.policy(position)(obs), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_stop_and_resume_is_bitwise_exact(config: LearnerConfig) -> None:
    whole, replay, _, batches = start(config, [0, 1])
    advance(whole, replay, batches, config.batch_size, 25)

    first, replay, noise, batches = start(config, [0, 1])
    advance(first, replay, batches, config.batch_size, 13)  # odd: between two delayed updates
    saved = copy.deepcopy((first.state_dict(), noise.state_dict(), batches.state_dict()))
    second, replay, noise, batches = start(config, [0, 1])
    second.load_state_dict(saved[0])
    noise.load_state_dict(saved[1])
    batches.load_state_dict(saved[2])
    advance(second, replay, batches, config.batch_size, 12)

    wanted, got = whole.state_dict(), second.state_dict()
    assert wanted.keys() == got.keys()
    for name, tensor in wanted.items():
        assert torch.equal(tensor, got[name]), name


# Learners that draw noise per row are independent of the order in distribution only.
@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[2]], ids=["bc", "iql"])
def test_the_order_of_a_batch_does_not_matter(config: LearnerConfig) -> None:
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    straight, replay, _, batches = start(config, [0])
    shuffled, *_ = start(config, [0])
    batch = replay.sample(64, random=batches)
    a, b = straight.update(batch), shuffled.update(Batch(*(field[:, order] for field in batch)))
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        TD3BCConfig(batch_size=256, hidden=SMALL, learning_rate=3e-3, alpha=100.0),
        IQLConfig(batch_size=256, hidden=SMALL, learning_rate=3e-3, inverse_temperature=10.0),
        CQLConfig(
            batch_size=256, hidden=SMALL, samples=4, penalty=0.5, actor_learning_rate=1e-3,
            critic_learning_rate=1e-3,
        ),
        ReBRACConfig(batch_size=256, hidden=SMALL, actor_penalty=0.001),
        DQLConfig(batch_size=64, hidden=SMALL, learning_rate=3e-3, eta=3.0, candidates=10),
        IDQLConfig(
            batch_size=256, hidden=SMALL, actor_hidden=SMALL, learning_rate=3e-3, choice="best",
            ema_rate=0.05,
        ),
    ],
    ids=["td3bc", "iql", "cql", "rebrac", "dql", "idql"],
)  # fmt: skip
def test_a_biased_behaviour_is_improved_upon(config: LearnerConfig) -> None:
    learner, replay, _, batches = start(config, [0], updates=900)
    advance(learner, replay, batches, config.batch_size, 900)
    obs = torch.randn(500, 4, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        regret = (learner.policy(0)(obs) - best_action(obs)).square().sum(-1).mean()
    # Cloning ends near 2 * BIAS^2, the clipping of actions aside.
    assert regret < 0.6 * 2 * BIAS**2


def test_scaled_rewards_with_a_scaled_critic_give_the_same_td3bc_policy_step() -> None:
    config = TD3BCConfig(batch_size=64, hidden=SMALL, policy_delay=1)
    results = []
    for scale in (1.0, 8.0):  # a power of two: the scaling is exact in floating point
        learner, replay, _, batches = start(config, [0])
        critic = learner.nets.critic.net  # type: ignore[attr-defined]
        with torch.no_grad():
            critic.weights[-1].mul_(scale)
            critic.biases[-1].mul_(scale)
        batch = replay.sample(64, random=batches)
        obs, actor = batch.obs, learner.nets.actor  # type: ignore[attr-defined]
        learner._step_policy(batch)  # type: ignore[attr-defined]
        results.append(torch.tanh(actor(obs)).detach())
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-6)


def test_rebrac_without_its_additions_is_td3bc() -> None:
    # The weights agree if the penalty is summed over A = 2 dimensions and alpha divides out.
    alpha = 2.5
    td3bc, replay, _, batches = start(TD3BCConfig(batch_size=64, hidden=SMALL), [0])
    config = ReBRACConfig(
        batch_size=64, hidden=SMALL, critic_penalty=0.0, actor_penalty=1 / (alpha * 2),
        critic_layer_norm=False, actor_learning_rate=3e-4, critic_learning_rate=3e-4,
    )  # fmt: skip
    rebrac, *_ = start(config, [0])
    rebrac.load_state_dict(copy.deepcopy(td3bc.state_dict()))
    rebrac.nets.random.load_state_dict(td3bc.nets.random.state_dict())  # type: ignore[attr-defined]
    for _ in range(2):
        batch = replay.sample(64, random=batches)
        a, b = td3bc.update(batch), rebrac.update(batch)
        torch.testing.assert_close(a["critic_loss"], b["critic_loss"])


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (IQLConfig(), "expectile", 1.2),
        (IQLConfig(), "batch_size", 0),
        (IQLConfig(), "dropout", 1.0),
        (TD3BCConfig(), "alpha", -1.0),
        (TD3BCConfig(), "discount", 1.5),
        (TD3BCConfig(), "hidden", ()),
        (CQLConfig(), "penalty", -3.0),
        (CQLConfig(), "actor_learning_rate", 0.0),
        (ReBRACConfig(), "critic_penalty", -0.1),
        (BCConfig(), "keep_best", 0.0),
        (DQLConfig(), "eta", -1.0),
        (DQLConfig(), "candidates", 0),
        (DQLConfig(), "ema_rate", 1.5),
        (DQLConfig(), "max_gradient_norm", 0.0),
        (IDQLConfig(), "levels", 0),
        (IDQLConfig(), "expectile", 1.0),
        (IDQLConfig(), "choice", "worst"),
        (IDQLConfig(), "actor_hidden", ()),
    ],
)
def test_absurd_hyperparameters_are_refused_by_name(
    config: LearnerConfig, field: str, value: object
) -> None:
    with pytest.raises(ValueError, match=field):
        replace(config, **{field: value})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_on_cuda_a_seed_learns_the_same_alone_and_in_company(config: LearnerConfig) -> None:
    device = torch.device("cuda")
    actions = []
    obs = torch.randn(50, 4, generator=torch.Generator().manual_seed(9))
    for seeds in ([3, 1], [1]):
        replay = ReplayBuffer(2000, SPEC, device)
        replay.extend(bandit())
        noise, batches = (SeedStreams(seeds, name, device) for name in ("learner", "batches"))
        learner = config.build(SPEC, random=noise, updates=60, device=device)
        advance(learner, replay, batches, config.batch_size, 20)
        actions.append(learner.policy(len(seeds) - 1)(obs))
    torch.testing.assert_close(actions[0], actions[1], rtol=0, atol=1e-2)
