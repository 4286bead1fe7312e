"""Collecting by D4RL's recipe: what is written, from whom, and how a stopped training goes on."""

import base64
import json
import pickle
import zipfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from offdiff.cli import main
from offdiff.core.errors import InputError
from offdiff.data import sb3_training
from offdiff.data.collect import CollectConfig, collect
from offdiff.data.episodes import Episodes
from offdiff.data.load import load_dataset, read_dataset
from offdiff.data.sb3 import from_sb3_buffer
from offdiff.data.sb3_training import TrainingPlan, train_agent

sb3 = pytest.importorskip("stable_baselines3", reason="needs the sb3 extra")

SMALL: dict[str, Any] = {"env": "Pendulum-v1", "train_steps": 90, "eval_every": 30}
PLAN = TrainingPlan(
    algorithm="sac",
    seed=0,
    steps=90,
    target_return=None,
    leg=30,
    learning_starts=20,
    eval_episodes=1,
    device="cpu",
)


def pendulum() -> Any:
    return gymnasium.make("Pendulum-v1", max_episode_steps=25)


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    """An untrained PPO agent, saved."""
    path = tmp_path / "agent.zip"
    sb3.PPO("MlpPolicy", "Pendulum-v1", seed=0, device="cpu").save(path)
    return path


def assert_same(one: Episodes, other: Episodes) -> None:
    for column in fields(Episodes):
        np.testing.assert_array_equal(getattr(one, column.name), getattr(other, column.name))


def test_random_actions_fill_the_box_and_the_file_keeps_its_units(tmp_path: Path) -> None:
    path = tmp_path / "random.hdf5"
    config = CollectConfig(env="Pendulum-v1", recipe="random", steps=130, to=str(path))
    assert collect(config, pendulum, show=False) == path
    assert [p.name for p in tmp_path.iterdir()] == ["random.hdf5"]
    recorded, loaded = read_dataset(str(path)), load_dataset(str(path))
    assert loaded.episodes.lengths.tolist() == [25] * 5 + [5]
    assert not loaded.episodes.terminal.any()
    assert np.abs(recorded.episodes.action).max() > 1.9
    np.testing.assert_allclose(recorded.episodes.action, 2 * loaded.episodes.action, atol=1e-6)
    assert loaded.info.env_id == "Pendulum-v1"
    assert loaded.info.max_episode_steps == 25
    assert loaded.info.behaviour == "uniform random actions"
    # Pendulum's reward is a function of state and action: rows belong together.
    cosine, sine, speed = loaded.episodes.obs.T
    angle = np.arctan2(sine, cosine)
    torque = recorded.episodes.action[:, 0]
    expected = -(angle**2 + 0.1 * speed**2 + 0.001 * torque**2)
    np.testing.assert_allclose(loaded.episodes.reward, expected, atol=1e-4)


def test_an_agent_is_recorded_by_the_command(tmp_path: Path, agent: Path) -> None:
    path = tmp_path / "medium.hdf5"
    words = ["data", "collect", "--env", "Pendulum-v1", "--recipe", "medium", "--steps", "50"]
    rest = ["--agent", str(agent), "--deterministic", "--to", str(path), "--device", "cpu"]
    assert main([*words, *rest]) == 0
    found = load_dataset(str(path))
    assert "agent.zip, deterministic actions" in found.info.behaviour
    model = sb3.PPO.load(agent, device="cpu")
    expected, _ = model.predict(found.episodes.obs, deterministic=True)
    np.testing.assert_allclose(2 * found.episodes.action, expected, atol=1e-5)


def test_minari_gets_the_same_rows(
    tmp_path: Path, agent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("minari", reason="needs the minari extra")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    config = CollectConfig(
        env="Pendulum-v1", recipe="medium", agent=agent, steps=60, to="me/pendulum/medium-v0"
    )
    collect(config, pendulum, show=False)
    collect(replace(config, to=str(tmp_path / "same.hdf5")), pendulum, show=False)
    in_minari = load_dataset("me/pendulum/medium-v0")
    assert_same(in_minari.episodes, load_dataset(str(tmp_path / "same.hdf5")).episodes)
    assert in_minari.info.env_id == "Pendulum-v1"
    with pytest.raises(InputError, match="exists already"):
        collect(config, pendulum, show=False)


def test_samples_repeat_with_the_seed(tmp_path: Path, agent: Path) -> None:
    def play(name: str, seed: int) -> Episodes:
        path = str(tmp_path / name)
        config = CollectConfig(
            env="Pendulum-v1", recipe="expert", agent=agent, steps=60, seed=seed, to=path
        )
        collect(config, pendulum, show=False)
        return load_dataset(path).episodes

    first = play("a.hdf5", 1)
    torch.manual_seed(123)
    assert_same(first, play("b.hdf5", 1))
    assert not np.array_equal(first.action, play("c.hdf5", 2).action)


def test_code_in_an_agents_file_does_not_run(tmp_path: Path, agent: Path) -> None:
    victim, bad = tmp_path / "victim", tmp_path / "bad.zip"

    class Malicious:
        def __reduce__(self) -> Any:
            return (Path.touch, (victim,))

    payload = base64.b64encode(pickle.dumps(Malicious())).decode()
    with zipfile.ZipFile(agent) as whole, zipfile.ZipFile(bad, "w") as changed:
        for name in whole.namelist():
            content = whole.read(name)
            if name == "data":
                settings = json.loads(content)
                for value in settings.values():
                    if isinstance(value, dict) and ":serialized:" in value:
                        value[":serialized:"] = payload
                content = json.dumps(settings).encode()
            changed.writestr(name, content)
    config = CollectConfig(
        env="Pendulum-v1", recipe="medium", agent=bad, steps=10, to=str(tmp_path / "x.hdf5")
    )
    collect(config, pendulum, show=False)
    assert not victim.exists()


class Killed(Exception):
    pass


@pytest.mark.parametrize("algorithm", ["sac", "td3", "ppo"])
def test_a_killed_training_continues_to_the_identical_agent(
    algorithm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(PLAN, algorithm=algorithm)
    if algorithm == "ppo":  # its own rollouts of 2048 steps would take a minute
        small = {"n_steps": 32, "batch_size": 16, "seed": 0, "device": "cpu"}
        monkeypatch.setattr(
            sb3_training, "_new_model", lambda plan, env, room: sb3.PPO("MlpPolicy", env, **small)
        )
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = train_agent(plan, pendulum, tmp_path / "whole", show=False)
    real = sb3_training._save

    def save_once(agent: Any, folder: Path, start: int) -> None:
        if len(agent.curve) == 2:
            raise Killed
        real(agent, folder, start)

    with monkeypatch.context() as patch:
        patch.setattr(sb3_training, "_save", save_once)
        with pytest.raises(Killed):
            train_agent(plan, pendulum, tmp_path / "killed", show=False)
    torch.manual_seed(7)
    again = train_agent(plan, pendulum, tmp_path / "killed", show=False)
    assert again.curve == whole.curve
    assert len(whole.curve) >= 3
    for name, weights in whole.model.policy.state_dict().items():
        assert torch.equal(weights, again.model.policy.state_dict()[name]), name
    if algorithm != "ppo":
        assert_same(_rows(again.model), _rows(whole.model))


def _rows(model: Any) -> Episodes:
    return from_sb3_buffer(model.replay_buffer)


def test_medium_replay_is_all_that_was_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "replay.hdf5"
    kept = tmp_path / "kept.zip"
    config = CollectConfig(
        recipe="medium-replay",
        train="sac",
        target_return=-1e9,
        learning_starts=20,
        keep_agent=kept,
        to=str(path),
        **SMALL,
    )
    collect(config, pendulum, show=False)
    found = load_dataset(str(path))
    assert len(found.episodes) == 30, "the first evaluation reaches so low a target"
    assert found.episodes.lengths.tolist() == [25, 5]
    assert "trained for 30 steps" in found.info.behaviour
    expert = CollectConfig(
        env="Pendulum-v1", recipe="medium", agent=kept, steps=20, to=str(tmp_path / "m.hdf5")
    )
    collect(expert, pendulum, show=False)


def test_a_target_out_of_reach_is_told_and_the_training_kept(tmp_path: Path) -> None:
    config = CollectConfig(
        recipe="medium",
        train="sac",
        target_return=1e9,
        learning_starts=20,
        steps=30,
        to=str(tmp_path / "medium.hdf5"),
        **SMALL,
    )
    with pytest.raises(InputError, match=r"after 90 training steps.*--resume"):
        collect(config, pendulum, show=False)
    lower = replace(config, target_return=-1e9, resume=True)
    collect(lower, pendulum, show=False)
    assert "trained for 90 steps" in load_dataset(config.to).info.behaviour
    assert [p.name for p in tmp_path.iterdir()] == ["medium.hdf5"]


def test_d4rls_returns_set_the_medium_level(tmp_path: Path) -> None:
    from offdiff.data.collect import _target

    hopper = CollectConfig(env="Hopper-v4", recipe="medium", train="sac", to="x.hdf5")
    assert _target(hopper) == pytest.approx(-20.272305 + (3234.3 + 20.272305) / 3)
    with pytest.raises(InputError, match="give --target-return"):
        _target(replace(hopper, env="Pendulum-v1"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"recipe": "random", "train": "sac"}, "leave --train out"),
        ({"recipe": "medium"}, "needs either --agent"),
        ({"recipe": "medium", "train": "sac", "agent": Path("a.zip")}, "needs either --agent"),
        ({"recipe": "medium-replay", "train": "ppo"}, "--train sac or --train td3"),
        ({"recipe": "medium-replay", "agent": Path("a.zip")}, "holds no replay buffer"),
        ({"recipe": "medium-replay", "train": "sac", "steps": 5}, "leave --steps out"),
        ({"recipe": "random", "steps": 0}, "--steps must lie"),
        ({"recipe": "random", "seed": -1}, "--seed"),
        ({"recipe": "random", "keep_agent": Path("a.zip")}, "give --train"),
        ({"recipe": "random", "normalizer": Path("a.pkl")}, "give --agent"),
        ({"recipe": "medium", "agent": Path("absent.zip")}, "no such file"),
        ({"recipe": "random", "to": "no-version"}, "nor a Minari id"),
    ],
)
def test_bad_options_are_told_and_nothing_is_written(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    given = {"env": "Pendulum-v1", "to": str(tmp_path / "out.hdf5"), **options}
    with pytest.raises(InputError, match=says):
        collect(CollectConfig(**given), pendulum, show=False)
    assert list(tmp_path.iterdir()) == []
