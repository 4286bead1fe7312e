"""stable-baselines3 both ways: buffers keep every transition's meaning, policies their actions."""

import pickle
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete

from offdiff.core.errors import InputError
from offdiff.core.protocols import Policy
from offdiff.data.episodes import Episodes
from offdiff.data.sb3 import SB3Policy, from_sb3_buffer, to_sb3_buffer
from offdiff.data.sb3_agents import load_agent
from offdiff.data.sb3_normalizer import NormalizedPolicy, read_normalizer

sb3 = pytest.importorskip("stable_baselines3", reason="needs the sb3 extra")

from stable_baselines3.common.buffers import ReplayBuffer  # noqa: E402  after the skip
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize  # noqa: E402  after the skip

OBS, ACTIONS = Box(-np.inf, np.inf, (3,), np.float32), Box(-2, 2, (1,), np.float32)
SPACES = SimpleNamespace(observation_space=OBS, action_space=ACTIONS)


def walk(lengths: list[int], terminal: list[bool], seed: int = 0) -> Episodes:
    """Random walks of the given lengths."""
    random = np.random.default_rng(seed)
    paths = [random.standard_normal((n + 1, 3)).astype(np.float32) for n in lengths]
    rows = sum(lengths)
    last = np.cumsum(lengths) - 1
    ends = np.zeros((2, rows), np.bool_)
    ends[0, last[terminal]] = True
    ends[1, last[~np.array(terminal)]] = True
    return Episodes(
        obs=np.concatenate([path[:-1] for path in paths]),
        next_obs=np.concatenate([path[1:] for path in paths]),
        action=random.uniform(-1, 1, (rows, 1)).astype(np.float32),
        reward=random.standard_normal(rows).astype(np.float32),
        terminal=ends[0],
        truncated=ends[1],
        successor_known=np.ones(rows, np.bool_),
    )


def fill(buffer: ReplayBuffer, columns: list[Episodes]) -> None:
    """Steps all environments together, as SB3 does."""
    for row in range(len(columns[0])):
        buffer.add(
            np.stack([c.obs[row] for c in columns]),
            np.stack([c.next_obs[row] for c in columns]),
            np.stack([c.action[row] for c in columns]),
            np.array([c.reward[row] for c in columns]),
            np.array([c.terminal[row] or c.truncated[row] for c in columns]),
            [{"TimeLimit.truncated": bool(c.truncated[row])} for c in columns],
        )


def assert_same(one: Episodes, other: Episodes) -> None:
    for column in fields(Episodes):
        np.testing.assert_array_equal(getattr(one, column.name), getattr(other, column.name))


def test_a_dataset_comes_back_from_a_buffer_as_it_was() -> None:
    episodes = walk([5, 3, 7, 1], [True, False, False, True])
    assert_same(from_sb3_buffer(to_sb3_buffer(episodes, SPACES)), episodes)
    roomy = to_sb3_buffer(episodes, SPACES, capacity=50)
    assert (roomy.pos, roomy.full) == (16, False)
    assert_same(from_sb3_buffer(roomy), episodes)


def test_sb3_bootstraps_at_timeouts_and_only_there() -> None:
    episodes = walk([4, 6], [True, False])
    buffer = to_sb3_buffer(episodes, SPACES, device="cpu")
    sample = buffer._get_samples(np.arange(10))
    np.testing.assert_array_equal(sample.dones[:, 0].numpy(), episodes.terminal)
    np.testing.assert_array_equal(sample.next_observations.numpy(), episodes.next_obs)
    np.testing.assert_array_equal(sample.actions.numpy(), episodes.action)
    np.testing.assert_array_equal(sample.rewards[:, 0].numpy(), episodes.reward)


def test_our_buffer_equals_one_that_sb3_filled_itself() -> None:
    episodes = walk([4, 6], [True, False])
    theirs = ReplayBuffer(10, OBS, ACTIONS, device="cpu")
    fill(theirs, [episodes])
    ours = to_sb3_buffer(episodes, SPACES, device="cpu")
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert (ours.pos, ours.full) == (theirs.pos, theirs.full)


def test_rows_without_successor_are_left_out() -> None:
    episodes = walk([4, 6], [True, False])
    known = episodes.successor_known.copy()
    known[-1] = False
    buffer = to_sb3_buffer(replace(episodes, successor_known=known), SPACES)
    assert buffer.size() == 9


def test_a_ring_that_came_round_is_read_oldest_first() -> None:
    episodes = walk([6, 8, 5], [True, False, False])
    buffer = ReplayBuffer(12, OBS, ACTIONS)
    fill(buffer, [episodes])
    found = from_sb3_buffer(buffer)
    np.testing.assert_array_equal(found.obs, episodes.obs[7:])
    np.testing.assert_array_equal(found.truncated, episodes.truncated[7:])


def test_an_unfinished_episode_is_truncated_and_seams_are_found() -> None:
    episodes = walk([5, 5], [False, False])
    unmarked = replace(episodes, truncated=np.arange(10) == 9)
    buffer = to_sb3_buffer(unmarked, SPACES)
    buffer.dones[-1] = buffer.timeouts[-1] = 0
    assert from_sb3_buffer(buffer).last.tolist() == [4, 9]


def test_environments_of_a_vector_stay_apart() -> None:
    columns = [walk([4, 6], [True, False], seed=k) for k in range(3)]
    buffer = ReplayBuffer(30, OBS, ACTIONS, n_envs=3)
    fill(buffer, columns)
    found = from_sb3_buffer(buffer)
    for k, column in enumerate(columns):
        assert_same(found.select(np.arange(2 * k, 2 * k + 2)), column)


@pytest.mark.parametrize("size", [40, 12])
def test_memory_saving_buffers(size: int) -> None:
    """size 40: not full; 12: come round, the first row left is inside an episode."""
    episodes = walk([6, 8, 8], [True, False, False])
    options: dict[str, Any] = {"optimize_memory_usage": True, "handle_timeout_termination": False}
    buffer = ReplayBuffer(size, OBS, ACTIONS, **options)
    fill(buffer, [episodes])
    with pytest.raises(InputError, match="max_episode_steps"):
        from_sb3_buffer(buffer)
    found = from_sb3_buffer(buffer, max_episode_steps=8)
    expected = episodes if size == 40 else episodes.select(np.array([2]))
    np.testing.assert_array_equal(found.obs, expected.obs)
    np.testing.assert_array_equal(found.terminal, expected.terminal)
    # The next episode's first observation overwrote what followed an end, but for the newest row.
    unknown = found.last[:-1]
    assert not found.successor_known[unknown].any()
    known = found.successor_known
    np.testing.assert_array_equal(found.next_obs[known], expected.next_obs[known])


def test_dict_observations_are_joined_by_name() -> None:
    from stable_baselines3.common.buffers import DictReplayBuffer

    space = Dict({"observation": OBS, "achieved_goal": Box(-1, 1, (2,), np.float32)})
    buffer = DictReplayBuffer(10, space, ACTIONS)
    obs = {"observation": np.array([[1.0, 2, 3]]), "achieved_goal": np.array([[8.0, 9]])}
    buffer.add(obs, obs, np.zeros((1, 1)), np.zeros(1), np.ones(1), [{}])
    np.testing.assert_array_equal(from_sb3_buffer(buffer).obs, [[8, 9, 1, 2, 3]])


def test_what_does_not_fit_is_told() -> None:
    episodes = walk([4], [True])
    wide = SimpleNamespace(observation_space=Box(-1, 1, (5,)), action_space=ACTIONS)
    with pytest.raises(InputError, match="observations of 3 numbers"):
        to_sb3_buffer(episodes, wide)
    discrete = SimpleNamespace(observation_space=OBS, action_space=Discrete(2))
    with pytest.raises(InputError, match="actions of 1 numbers"):
        to_sb3_buffer(episodes, discrete)
    with pytest.raises(InputError, match="cannot hold 4"):
        to_sb3_buffer(episodes, SPACES, capacity=3)
    with pytest.raises(InputError, match="empty"):
        from_sb3_buffer(ReplayBuffer(5, OBS, ACTIONS))
    full = ReplayBuffer(1, OBS, Discrete(2))
    full.add(np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(1), np.zeros(1), np.ones(1), [{}])
    with pytest.raises(InputError, match="discrete"):
        from_sb3_buffer(full)


def untrained(kind: str, **options: Any) -> Any:
    network = {"net_arch": [16, 16]}
    return getattr(sb3, kind)(
        "MlpPolicy", "Pendulum-v1", policy_kwargs=network, seed=1, device="cpu", **options
    )


KINDS = ["SAC", "TD3", "PPO", "A2C", "DDPG"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_sb3_policy_acts_as_predict_does(kind: str) -> None:
    model = untrained(kind)
    policy = SB3Policy(model)
    obs = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    expected, _ = model.predict(obs, deterministic=True)
    assert isinstance(policy, Policy)
    action = policy.act(torch.from_numpy(obs))
    np.testing.assert_allclose(2 * action.numpy(), expected, atol=1e-6)


def test_unsquashed_actions_are_clipped_to_the_box() -> None:
    model = untrained("PPO")
    torch.nn.init.constant_(model.policy.action_net.bias, 9.0)
    np.testing.assert_array_equal(SB3Policy(model).act(torch.zeros(2, 3)).numpy(), [[1], [1]])


def test_samples_depend_on_the_policys_own_seed_alone() -> None:
    policy = SB3Policy(untrained("SAC"), deterministic=False, seed=3)
    obs = torch.zeros(4, 3)
    before = torch.get_rng_state()
    first = policy.act(obs)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"
    second = policy.act(obs)
    assert not torch.equal(first, second)
    torch.manual_seed(99)
    policy.reseed(3)
    assert torch.equal(policy.act(obs), first)
    assert torch.equal(policy.act(obs), second)


def test_state_dependent_noise_is_renewed_between_episodes() -> None:
    policy = SB3Policy(untrained("SAC", use_sde=True), deterministic=False)
    obs = torch.ones(2, 3)
    policy.reset(torch.ones(2, dtype=torch.bool))
    first = policy.act(obs)
    assert torch.equal(policy.act(obs), first)
    policy.reset(torch.ones(2, dtype=torch.bool))
    assert not torch.equal(policy.act(obs), first)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_agent_is_rebuilt_without_unpickling(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = untrained(kind)
    model.save(tmp_path / "agent.zip")
    obs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))

    def refuse(*_: object) -> None:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr("cloudpickle.loads", refuse)
    loaded = load_agent(tmp_path / "agent.zip", gymnasium.make("Pendulum-v1"), device="cpu")
    torch.testing.assert_close(SB3Policy(loaded).act(obs), SB3Policy(model).act(obs))


def test_network_shape_and_activation_are_read_from_the_summary(tmp_path: Path) -> None:
    arguments = {"net_arch": {"pi": [8], "vf": [4, 4]}, "activation_fn": torch.nn.ELU}
    model = sb3.PPO("MlpPolicy", "Pendulum-v1", policy_kwargs=arguments, device="cpu")
    model.save(tmp_path / "agent.zip")
    loaded = load_agent(tmp_path / "agent.zip", gymnasium.make("Pendulum-v1"), device="cpu")
    assert "ELU" in str(loaded.policy.mlp_extractor)
    obs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(SB3Policy(loaded).act(obs), SB3Policy(model).act(obs))


class OwnPolicy(sb3.ppo.MlpPolicy):  # type: ignore[misc, name-defined]  # untyped base
    """A policy that stable-baselines3 does not know."""


def test_a_policy_of_somebodys_own_needs_trust(tmp_path: Path) -> None:
    sb3.PPO(OwnPolicy, "Pendulum-v1", device="cpu").save(tmp_path / "agent.zip")
    env = gymnasium.make("Pendulum-v1")
    with pytest.raises(InputError, match="--trust-agent"):
        load_agent(tmp_path / "agent.zip", env)
    arguments = {"optimizer_class": torch.optim.SGD, "features_extractor_class": OwnExtractor}
    sb3.PPO("MlpPolicy", env, policy_kwargs=arguments, device="cpu").save(tmp_path / "own.zip")
    with pytest.raises(InputError, match=r"features_extractor_class.*--trust-agent"):
        load_agent(tmp_path / "own.zip", env)
    trusted = load_agent(tmp_path / "own.zip", env, trust=True, device="cpu")
    assert isinstance(trusted.policy.features_extractor, OwnExtractor)


class OwnExtractor(sb3.common.torch_layers.FlattenExtractor):  # type: ignore[misc, name-defined]  # untyped base
    """A feature extractor that stable-baselines3 does not know."""


def test_agents_of_other_sizes_and_other_files_are_told(tmp_path: Path) -> None:
    untrained("SAC").save(tmp_path / "agent.zip")
    other = SimpleNamespace(observation_space=Box(-1, 1, (7,)), action_space=ACTIONS)
    with pytest.raises(InputError, match="does not fit the environment"):
        load_agent(tmp_path / "agent.zip", other)
    (tmp_path / "no.zip").write_bytes(b"not a zip")
    with pytest.raises(InputError, match="no stable-baselines3 agent"):
        load_agent(tmp_path / "no.zip", SPACES)
    with pytest.raises(InputError, match="no such file"):
        load_agent(tmp_path / "absent.zip", SPACES)


def test_a_normalizer_is_that_of_vecnormalize(tmp_path: Path) -> None:
    env = VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")]), clip_obs=1.5)
    env.seed(0)
    env.reset()
    for _ in range(50):
        env.step(np.ones((1, 1), np.float32))
    env.save(str(tmp_path / "normalizer.pkl"))
    found = read_normalizer(tmp_path / "normalizer.pkl", 3)
    obs = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    np.testing.assert_allclose(
        found(torch.from_numpy(obs)).numpy(), env.normalize_obs(obs), rtol=1e-6
    )
    inner = SB3Policy(untrained("PPO"))
    outer = NormalizedPolicy(inner, found)
    expected = inner.act(torch.from_numpy(env.normalize_obs(obs)))
    torch.testing.assert_close(outer.act(torch.from_numpy(obs)), expected)
    with pytest.raises(InputError, match="observations have 4 numbers"):
        read_normalizer(tmp_path / "normalizer.pkl", 4)


class Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return (Path.touch, (self.victim,))


def test_a_normalizers_pickle_runs_no_code(tmp_path: Path) -> None:
    path, victim = tmp_path / "normalizer.pkl", tmp_path / "victim"
    path.write_bytes(pickle.dumps(Malicious(victim)))
    with pytest.raises(InputError, match="holds no observation statistics"):
        read_normalizer(path, 3)
    assert not victim.exists()
    pickle.loads(path.read_bytes())
    assert victim.exists(), "the file is indeed malicious"


@pytest.mark.parametrize("content", [b"", b"\x80\x05garbage", b"(dp0\n"])
def test_a_damaged_normalizer_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "normalizer.pkl"
    path.write_bytes(content)
    with pytest.raises(InputError, match="holds no observation statistics"):
        read_normalizer(path, 3)
