"""Evaluation: the arithmetic on a toy environment, the promises on real simulators."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict
from torch import Tensor, nn

from offdiff.core.errors import InputError, MissingExtraError
from offdiff.core.types import Spec
from offdiff.data.observations import concatenate, leaves
from offdiff.environments import flatten, make_simulator
from offdiff.evaluate import evaluate
from offdiff.policy import DeployedPolicy


class Countdown(gymnasium.Env[Any, Any]):
    """An episode of n steps, n in 1..9 drawn at the reset; pays 1, 2, 3, ... and the action."""

    observation_space = Dict({"b": Box(-99, 99, (1,)), "a": Box(-99, 99, (2,))})
    action_space = Box(np.float32([0, -4]), np.float32([10, 4]))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.total = int(self.np_random.integers(1, 10))
        self.t = 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        done = self.t == self.total
        reward = self.t + 100 * float(action[0]) + 1e6 * float(action[1])
        return self._obs(), reward, done, False, {"success": self.t == 3}

    def _obs(self) -> Any:
        return {"b": np.array([self.t]), "a": np.array([self.total, self.t * 2])}


@pytest.fixture(autouse=True, scope="module")
def countdown() -> Iterator[None]:
    gymnasium.register("Countdown-v0", entry_point=Countdown, max_episode_steps=20)
    gymnasium.register("Endless-v0", entry_point=Countdown)
    yield
    del gymnasium.registry["Countdown-v0"], gymnasium.registry["Endless-v0"]


class Constant:
    """Always the same action; remembers what it was told."""

    def __init__(self, *action: float) -> None:
        self.action = torch.tensor(action)
        self.seen: list[Tensor] = []
        self.resets: list[Tensor] = []

    def act(self, obs: Tensor, /) -> Tensor:
        self.seen.append(obs)
        return self.action.expand(len(obs), -1)

    def reset(self, which: Tensor, /) -> None:
        self.resets.append(which.clone())


def network_policy(obs_dim: int, action_dim: int, seed: int = 0) -> DeployedPolicy:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(obs_dim, 256), nn.ReLU(), nn.Linear(256, action_dim))
    return DeployedPolicy(
        network,
        obs_mean=torch.zeros(obs_dim),
        obs_std=torch.ones(obs_dim),
        action_low=-torch.ones(action_dim),
        action_high=torch.ones(action_dim),
    )


def test_returns_lengths_and_success_of_a_known_environment() -> None:
    # unit action (-1, 0) is (0, 0) in the environment's box, so only 1 + 2 + ... + n is paid
    result = evaluate(Constant(-1, 0), "Countdown-v0", episodes=40, seed=3, progress=False)
    n = np.array(result.lengths)
    assert set(n) == set(range(1, 10))
    np.testing.assert_array_equal(result.returns, n * (n + 1) / 2)
    assert result.success == (n >= 3).tolist()
    assert result.n_episodes == len(result.seeds) == len(set(result.seeds)) == 40
    assert result.max_episode_steps == 20
    assert result.fidelity.startswith("exact")
    assert "mujoco" in result.simulator_version
    json.dumps(asdict(result))


def test_actions_are_rescaled_and_clipped_to_the_box() -> None:
    # (0.5, 7) -> (7.5, 4): 100 * 7.5 + 1e6 * 4 a step, beside 1, 2, ...
    result = evaluate(Constant(0.5, 7), "Countdown-v0", episodes=9, seed=0, progress=False)
    for value, n in zip(result.returns, result.lengths, strict=True):
        assert value == n * 4_000_750 + n * (n + 1) / 2


def test_every_first_observation_of_an_episode_is_announced() -> None:
    policy = Constant(0, 0)
    result = evaluate(policy, "Countdown-v0", episodes=12, seed=1, num_envs=5, progress=False)
    assert sum(int(which[:5].sum()) for which in policy.resets) == 12
    assert policy.resets[0].all()
    # sorted keys: total, 2 t, t
    starts = [obs[row] for obs in policy.seen for row in range(5) if obs[row, 2] == 0]
    assert sorted(int(s[0]) for s in starts) == sorted(result.lengths)


@pytest.mark.parametrize("precision", ["highest", "medium"])  # medium: what a run may choose
@pytest.mark.parametrize("env_id", ["Hopper-v4", "Countdown-v0"])
def test_results_do_not_depend_on_the_number_of_environments(env_id: str, precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    policy = network_policy(11, 3) if env_id == "Hopper-v4" else network_policy(3, 2)
    one, three, ten, again = (
        evaluate(policy, env_id, episodes=7, seed=5, num_envs=n, progress=False)
        for n in (1, 3, 10, 10)
    )
    assert one == three == ten == again
    other = evaluate(policy, env_id, episodes=7, seed=6, progress=False)
    assert other.returns != one.returns
    assert evaluate(policy, env_id, episodes=3, seed=5, progress=False).returns == one.returns[:3]
    assert torch.get_float32_matmul_precision() == precision, "the caller's choice is put back"


def test_returns_equal_a_plain_gymnasium_loop() -> None:
    policy = network_policy(11, 3, seed=1)
    result = evaluate(policy, "Hopper-v4", episodes=3, seed=2, max_episode_steps=15, progress=False)
    assert result.max_episode_steps == 15
    assert result.fidelity.startswith("close")
    env = gymnasium.make("Hopper-v4", max_episode_steps=15)
    for k, seed in enumerate(result.seeds):
        obs, _ = env.reset(seed=seed)
        total, done = 0.0, False
        while not done:
            # four equal rows: a single one takes a matrix kernel that rounds otherwise
            action = policy.predict(np.stack([obs] * 4).astype(np.float32))[0][0]
            obs, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            done = terminated or truncated
        assert result.returns[k] == total
    assert result.success is None


def test_d4rl_rules_are_restored() -> None:
    robotics = pytest.importorskip("gymnasium_robotics", reason="needs the extra robotics")
    assert robotics
    with make_simulator("AntMaze_UMaze-v4") as ant:
        assert ant.env.unwrapped.continuing_task is False  # type: ignore[attr-defined]  # the maze's own
        assert ant.spec == Spec(27 + 2 + 2, 8)
        assert ant.fidelity.startswith("approximate")
    with make_simulator("AdroitHandPen-v1") as pen:
        assert pen.max_episode_steps == 100
    with make_simulator("PointMaze_UMaze-v3", max_episode_steps=7) as maze:
        assert (maze.spec, maze.max_episode_steps) == (Spec(8, 2), 7)
        raw, _ = maze.env.reset(seed=4)
        parts = [raw["achieved_goal"], raw["desired_goal"], raw["observation"]]
        np.testing.assert_array_equal(maze.reset(4), np.concatenate(parts).astype(np.float32))
    with make_simulator("PointMaze_UMaze-v3", spec=Spec(4, 2)) as blind:
        np.testing.assert_array_equal(blind.reset(4), np.float32(raw["observation"]))
        assert blind.fidelity.endswith("goal hidden")


def test_an_ant_policy_of_the_d4rl_era_sees_its_84_zeros() -> None:
    with make_simulator("Ant-v4", spec=Spec(111, 8)) as ant:
        obs = ant.reset(0)
        assert obs.shape == (111,)
        assert not obs[27:].any()
        assert ant.step(np.zeros(8)).obs.shape == (111,)


def test_nested_observations_are_flattened_as_the_data_reader_does() -> None:
    obs = {"z": np.array([[1.0, 2.0]]), "a": {"y": np.array(3), "b": np.array([4])}}
    np.testing.assert_array_equal(flatten(obs), np.float32([4, 3, 1, 2]))
    recorded = {"z": np.array([[[1.0, 2.0]]]), "a": {"y": np.array([3]), "b": np.array([[4]])}}
    parts = leaves("test", recorded, "concat_goal")
    np.testing.assert_array_equal(flatten(obs), concatenate("test", parts)[0])


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Hopper-v2", "use Hopper-v4"),
        ("HalfCheetah-v3", "use HalfCheetah-v4"),
        ("Hoper-v4", "did you mean 'Hopper-v4'"),
        ("CartPole-v1", "only a bounded Box"),
        ("Endless-v0", "give max_episode_steps"),
        ("no_such_module:Env-v0", "absent"),
    ],
)
def test_unusable_environments(env_id: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(Constant(0), env_id, episodes=1, seed=0, progress=False)


def test_missing_robotics_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gymnasium_robotics", None)
    with pytest.raises(MissingExtraError, match=r"offdiff\[robotics\]"):
        make_simulator("PointMaze_UMaze-v3")


def test_a_policy_of_other_sizes_is_refused() -> None:
    with pytest.raises(InputError, match=r"takes 17 .* gives 6 .* Hopper-v4 has 11 and 3"):
        evaluate(network_policy(17, 6), "Hopper-v4", episodes=1, seed=0, progress=False)
    with pytest.raises(InputError, match=r"shape \(4, 1\)"):
        evaluate(Constant(0), "Hopper-v4", episodes=1, seed=0, progress=False)


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="at least 1"):
        evaluate(Constant(0, 0), "Countdown-v0", episodes=0, seed=0, progress=False)
    with pytest.raises(InputError, match="max_episode_steps"):
        evaluate(Constant(0, 0), "Countdown-v0", episodes=1, seed=0, max_episode_steps=0)
    with pytest.raises(InputError, match="diverged"):
        evaluate(Constant(0, float("nan")), "Countdown-v0", episodes=1, seed=0, progress=False)


def test_a_mujoco_too_new_for_the_kitchen_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gymnasium_robotics", reason="needs the extra robotics")

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError  # what its get_joint_qpos does from mujoco 3.12 on

    monkeypatch.setattr(gymnasium, "make", fail)
    with pytest.raises(InputError, match=r"FrankaKitchen-v1 needs mujoco<3\.12, found \d"):
        make_simulator("FrankaKitchen-v1")
