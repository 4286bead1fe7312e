"""Recording: nothing crosses an episode's end, and a killed recording continues exactly."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from offdiff.core.errors import InputError
from offdiff.data.episodes import Episodes
from offdiff.data.recorder import ActorSource, EpisodeSource, State, UniformActor, flatten, join
from offdiff.data.recording import record, work_folder


class Corridor(gymnasium.Env[Any, Any]):
    """Observes (episode's own number, step); ends by itself or by time; reward: the action."""

    def __init__(self) -> None:
        self.observation_space = Box(-np.inf, np.inf, (2,))
        self.action_space = Box(np.array([-2.0], np.float32), np.array([6.0], np.float32))
        self.received: list[float] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.name = float(self.np_random.random())
        self.terminates = bool(self.np_random.random() < 0.5)
        self.length = int(self.np_random.integers(1, 9))
        self.steps = 0
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.received.append(float(action[0]))
        self.steps += 1
        ended = self.steps == self.length
        return self._obs(), action[0], ended and self.terminates, ended and not self.terminates, {}

    def _obs(self) -> Any:
        return np.array([self.name, self.steps], np.float64)


class Killed(Exception):
    pass


class Mortal:
    """A source that is killed when it is asked for an episode too many."""

    def __init__(self, source: EpisodeSource, lives: int) -> None:
        self.source, self.lives = source, lives

    def play(self, index: int, limit: int, /) -> Episodes:
        if self.lives == 0:
            raise Killed
        self.lives -= 1
        return self.source.play(index, limit)

    def state(self) -> State:
        return self.source.state()

    def restore(self, state: State, /) -> None:
        self.source.restore(state)


def corridor(seed: int = 0) -> ActorSource:
    return ActorSource(Corridor(), UniformActor(1), seed)


def record_in(folder: Path, source: EpisodeSource, steps: int = 100) -> Episodes:
    folder.mkdir(exist_ok=True)
    return record(source, steps=steps, folder=folder, show=False, shard_seconds=0)


def assert_same(one: Episodes, other: Episodes) -> None:
    for column in fields(Episodes):
        np.testing.assert_array_equal(getattr(one, column.name), getattr(other, column.name))


def test_rows_chain_inside_an_episode_and_never_across(tmp_path: Path) -> None:
    episodes = record_in(tmp_path, corridor())
    assert episodes.n_episodes > 10
    assert len(set(episodes.obs[episodes.first, 0])) == episodes.n_episodes
    for first, last in zip(episodes.first, episodes.last, strict=True):
        np.testing.assert_array_equal(
            episodes.obs[first : last + 1, 1], np.arange(last - first + 1)
        )
        np.testing.assert_array_equal(
            episodes.next_obs[first : last + 1, 1], np.arange(1, last - first + 2)
        )
        assert set(episodes.next_obs[first : last + 1, 0]) == {episodes.obs[first, 0]}
    assert episodes.terminal.sum() > 3
    assert episodes.truncated.sum() > 3
    assert episodes.successor_known.all()


def test_actions_are_of_the_unit_box_and_the_environment_gets_its_own() -> None:
    env = Corridor()
    episode = ActorSource(env, UniformActor(1), 3).play(0, 100)
    assert np.abs(episode.action).max() <= 1
    np.testing.assert_allclose(env.received, 2 + 4 * episode.action[:, 0], rtol=1e-6)
    np.testing.assert_allclose(episode.reward, env.received, rtol=1e-6)


def test_exactly_the_rows_asked_for_the_last_episode_truncated(tmp_path: Path) -> None:
    longer = record_in(tmp_path / "longer", corridor(), 60)
    cut_inside = int(longer.first[-1]) + 1 if longer.lengths[-1] > 1 else int(longer.first[-2]) + 1
    shorter = record_in(tmp_path / "shorter", corridor(), cut_inside)
    assert len(shorter) == cut_inside
    assert shorter.truncated[-1]
    np.testing.assert_array_equal(shorter.next_obs, longer.next_obs[:cut_inside])


def test_an_episode_depends_on_seed_and_number_alone() -> None:
    source = corridor(5)
    in_order = [source.play(k, 100) for k in range(4)]
    assert_same(corridor(5).play(3, 100), in_order[3])
    assert not np.array_equal(corridor(6).play(3, 100).obs[0], in_order[3].obs[0])


@pytest.mark.parametrize("lives", [0, 1, 7])
def test_a_killed_recording_continues_to_the_identical_rows(tmp_path: Path, lives: int) -> None:
    undisturbed = record_in(tmp_path / "whole", corridor())
    with pytest.raises(Killed):
        record_in(tmp_path / "killed", Mortal(corridor(), lives))
    assert len(list((tmp_path / "killed").glob("shard-*.npz"))) == lives
    assert_same(record_in(tmp_path / "killed", corridor()), undisturbed)


def test_a_finished_recording_is_not_played_again(tmp_path: Path) -> None:
    whole = record_in(tmp_path, corridor())
    assert_same(record_in(tmp_path, Mortal(corridor(), 0)), whole)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _replace_by_pickle(path: Path) -> None:
    np.savez(path, obs=np.array([{"a": 1}], dtype=object))


@pytest.mark.parametrize("damage", [_truncate, _replace_by_pickle])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    record_in(tmp_path, corridor())
    damage(tmp_path / "shard-00001.npz")
    with pytest.raises(InputError, match=r"shard-00001\.npz is damaged"):
        record_in(tmp_path, corridor())


def test_the_work_folder_goes_with_success_and_stays_with_what_was_done(tmp_path: Path) -> None:
    target = tmp_path / "out.hdf5"
    with work_folder(target, {"seed": 0}, resume=False) as folder:
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Killed), work_folder(target, {"seed": 0}, resume=False):
        raise Killed
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Killed), work_folder(target, {"seed": 0}, resume=False) as folder:
        record_in(folder, Mortal(corridor(), 2))
    with (
        pytest.raises(InputError, match="--resume"),
        work_folder(target, {"seed": 0}, resume=False),
    ):
        pass
    with (
        pytest.raises(InputError, match="seed 0, now it is 1"),
        work_folder(target, {"seed": 1}, resume=True),
    ):
        pass
    with work_folder(target, {"seed": 0}, resume=True) as folder:
        assert len(record_in(folder, corridor())) == 100


def test_discrete_actions_are_refused() -> None:
    env = Corridor()
    env.action_space = Discrete(3)  # type: ignore[assignment]  # the point of the test
    with pytest.raises(InputError, match="bounded Box"):
        ActorSource(env, UniformActor(1), 0)


def test_dict_observations_flatten_as_gymnasium_does() -> None:
    space = Dict({"z": Box(-1, 1, (2,)), "a": Dict({"q": Box(-1, 1, (3,)), "b": Box(-1, 1, (1,))})})
    obs = space.sample()
    np.testing.assert_array_equal(flatten(obs), gymnasium.spaces.flatten(space, obs))


def test_joined_parts_keep_their_episodes() -> None:
    parts = [corridor().play(k, 100) for k in range(3)]
    together = join(parts)
    assert together.lengths.tolist() == [len(part) for part in parts]
