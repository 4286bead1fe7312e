import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from numpy.testing import assert_array_equal

from offdiff.core.errors import InputError
from offdiff.data.dataset import ScoreRange
from offdiff.data.episodes import Episodes
from offdiff.data.load import load_dataset
from offdiff.data.minari import read_minari, write_minari
from offdiff.data.minari_ids import is_id, local_ids

minari = pytest.importorskip("minari")


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Minari root of its own, and no network."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "minari"


def some_episodes(known: bool = True) -> Episodes:
    rng = np.random.default_rng(1)
    n, last = 9, [3, 4, 8]
    obs = rng.normal(size=(n, 3)).astype(np.float32)
    next_obs = np.roll(obs, -1, axis=0)
    next_obs[last] = rng.normal(size=(3, 3)) if known else obs[last]
    terminal, truncated, successor_known = np.zeros((3, n), bool)
    terminal[3] = truncated[4] = truncated[8] = True
    successor_known[:] = True
    successor_known[last] = known
    return Episodes(
        obs=obs,
        action=rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        reward=rng.normal(size=n).astype(np.float32),
        next_obs=next_obs,
        terminal=terminal,
        truncated=truncated,
        successor_known=successor_known,
    )


def buffer(steps: int = 3, **changes: Any) -> Any:
    from minari.data_collector import EpisodeBuffer

    fields: dict[str, Any] = {
        "observations": np.arange((steps + 1) * 2, dtype=np.float64).reshape(-1, 2),
        "actions": np.zeros((steps, 1), np.float32),
        "rewards": np.ones(steps),
        "terminations": np.zeros(steps, bool),
        "truncations": np.arange(steps) == steps - 1,
    }
    return EpisodeBuffer(**(fields | changes))


def create(*buffers: Any, observation: Any = None, action: Any = None, **more: Any) -> str:
    # Minari's recommendations about metadata are none of these tests' business.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(
            "ns/test-v0",
            list(buffers),
            observation_space=observation or Box(-np.inf, np.inf, (2,)),
            action_space=action or Box(-1, 1, (1,)),
            **more,
        )
    return "ns/test-v0"


@pytest.mark.parametrize("known", [True, False])
def test_round_trip_is_exact(known: bool, root: Path) -> None:
    episodes = some_episodes(known)
    span = ScoreRange(minimum=1.0, maximum=5.0, source="custom")
    folder = write_minari(
        "offdiff/hopper/made-v3",
        episodes,
        env_id="Hopper-v4",
        description="made",
        algorithm_name="SAC",
        max_episode_steps=77,
        action_low=(-0.4,),
        action_high=(0.4, 0.5),
        score_range=span,
    )
    assert folder == root / "offdiff/hopper/made-v3"
    for name in ("offdiff/hopper/made-v3", str(folder)):
        dataset = read_minari(name)
        for field in episodes.__dataclass_fields__:
            assert_array_equal(getattr(dataset.episodes, field), getattr(episodes, field), field)
    info = dataset.info
    assert (info.env_id, info.max_episode_steps, info.family) == ("Hopper-v4", 77, "locomotion")
    assert info.score_range == span
    assert info.action_low == pytest.approx((-0.4,))
    assert info.action_high == pytest.approx((0.4, 0.5))
    assert info.behaviour == "SAC"


def test_minari_itself_reads_what_was_written() -> None:
    episodes = some_episodes()
    write_minari("offdiff/x-v0", episodes, env_id="Hopper-v4", description="d")
    stored = minari.load_dataset("offdiff/x-v0")
    assert stored.total_episodes == 3
    assert stored.total_steps == 9
    assert stored[2].observations.shape == (5, 3)
    assert stored[0].terminations.tolist() == [False, False, False, True]
    assert list(minari.list_local_datasets()) == ["offdiff/x-v0"] == local_ids()
    assert stored.env_spec.id == "Hopper-v4"


@pytest.mark.parametrize(
    "dataset_id",
    ["a/b-v0", "x/y.z-v0", "no-version", "ns/x-v", "ä/x-v0", "", "ns//x-v0", "../x-v0"],
)
def test_malformed_ids_leave_no_trace(dataset_id: str, root: Path) -> None:
    assert not is_id(dataset_id)
    with pytest.raises(InputError, match="is no Minari id"):
        write_minari(dataset_id, some_episodes(), env_id=None, description="")
    assert not root.exists()


def test_ids_that_minari_accepts() -> None:
    for dataset_id in ("D4RL/door/human-v2", "x-v0", "a_b/c-d_e-v12", "mujoco/hopper/expert-v0"):
        assert is_id(dataset_id)


def test_existing_id_is_kept() -> None:
    write_minari("ns/x-v0", some_episodes(), env_id=None, description="")
    with pytest.raises(InputError, match=r"exists already .* minari delete ns/x-v0"):
        write_minari("ns/x-v0", some_episodes(), env_id=None, description="")


def test_failed_writing_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minari.dataset._storages.hdf5_storage import HDF5Storage

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(HDF5Storage, "update_episodes", full_disk)
    with pytest.raises(InputError, match="No space left"):
        write_minari("ns/x-v0", some_episodes(), env_id=None, description="")
    assert [path.name for path in (root / "ns").iterdir()] == ["namespace_metadata.json"]


def test_actions_are_rescaled_to_the_unit_box() -> None:
    actions = np.array([[0.0], [1.0], [3.0]], np.float32)
    name = create(buffer(actions=actions), action=Box(0.0, 4.0, (1,)))
    assert load_dataset(name).episodes.action[:, 0].tolist() == [-1.0, -0.5, 0.5]
    assert read_minari(name).episodes.action[:, 0].tolist() == [0.0, 1.0, 3.0]


def test_t_plus_one_observations_stay_with_their_actions() -> None:
    # d3rlpy 2.8.1 joins T+1 observations with T actions: shifted from the second episode on.
    second = buffer(2, observations=np.full((3, 2), 50.0))
    episodes = read_minari(create(buffer(3), second)).episodes
    assert episodes.obs[:, 0].tolist() == [0, 2, 4, 50, 50]
    assert episodes.next_obs[:, 0].tolist() == [2, 4, 6, 50, 50]
    assert episodes.lengths.tolist() == [3, 2]


def goal_observations(steps: int) -> tuple[dict[str, Any], Dict]:
    rows = np.arange(steps + 1, dtype=np.float64)[:, None]
    leaf = Box(-np.inf, np.inf, (1,))
    nested = {"slide cabinet": rows + 20, "kettle": np.concatenate((rows + 30, rows + 40), axis=1)}
    return (
        {"observation": rows, "desired_goal": nested, "achieved_goal": rows + 10},
        Dict(
            {
                "observation": leaf,
                "achieved_goal": leaf,
                "desired_goal": Dict({"slide cabinet": leaf, "kettle": Box(-np.inf, np.inf, (2,))}),
            }
        ),
    )


def test_goals_are_joined_in_the_order_of_gymnasium() -> None:
    from gymnasium.spaces import flatten

    observations, space = goal_observations(3)
    name = create(buffer(observations=observations), observation=space)
    dataset = read_minari(name)
    assert dataset.episodes.obs[0].tolist() == [10, 30, 40, 20, 0]
    assert dataset.info.obs_layout == (
        "achieved_goal(1)+desired_goal/kettle(2)+desired_goal/slide cabinet(1)+observation(1)"
    )
    first = {
        "observation": np.array([0.0]),
        "achieved_goal": np.array([10.0]),
        "desired_goal": {"slide cabinet": np.array([20.0]), "kettle": np.array([30.0, 40.0])},
    }
    assert_array_equal(dataset.episodes.obs[0], flatten(space, first))
    alone = read_minari(name, obs_mode="observation_only")
    assert alone.episodes.obs[:, 0].tolist() == [0, 1, 2]
    assert alone.info.obs_layout == "observation(1)"
    with pytest.raises(InputError, match="did you mean 'concat_goal'"):
        read_minari(name, obs_mode="concat_goals")  # type: ignore[arg-type]  # on purpose


BAD = {
    "T observations": (
        {"observations": np.zeros((3, 2))},
        "3 observations for 3 rewards, expected 4",
    ),
    "nan": ({"observations": np.full((4, 2), np.nan)}, "episode 0: observations holds nan"),
    "short actions": ({"actions": np.zeros((2, 1))}, "actions has 2 rows but rewards has 3"),
    "flags": ({"terminations": np.zeros(2, bool)}, "terminations has 2 rows"),
    "inf reward": ({"rewards": np.array([0, np.inf, 0])}, "rewards holds inf in row 1"),
    "width": ({"actions": np.zeros((3, 4), np.float32)}, "actions have 4 numbers"),
    "discrete": ({"actions": np.zeros(3, np.int64)}, "discrete"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_episodes(case: str) -> None:
    changes, message = BAD[case]
    action = Discrete(3) if case == "discrete" else None
    name = create(buffer(**changes), action=action)
    with pytest.raises(InputError, match=message):
        read_minari(name)


def test_widths_that_differ_between_episodes() -> None:
    name = create(buffer(), buffer(observations=np.zeros((4, 3))))
    with pytest.raises(InputError, match="observations have 3 numbers in episode 1 but 2"):
        read_minari(name)


def test_an_episode_without_end_is_truncated_and_both_flags_are_terminal() -> None:
    ends = np.array([False, False, True])
    name = create(buffer(truncations=~ends & False), buffer(terminations=ends, truncations=ends))
    dataset = read_minari(name)
    assert dataset.episodes.truncated.tolist() == [False, False, True, False, False, False]
    assert dataset.episodes.terminal.tolist() == [False] * 5 + [True]
    assert "1 episodes have no end flag" in dataset.info.notes[0]


def test_reference_returns_are_those_of_the_metadata_never_d4rls() -> None:
    name = create(buffer())
    assert read_minari(name).info.score_range is None
    minari.load_dataset(name).storage.update_metadata({"ref_min_score": -45.8, "ref_max_score": 9})
    span = read_minari(name).info.score_range
    assert span == ScoreRange(minimum=-45.8, maximum=9.0, source="minari_metadata")
    minari.load_dataset(name).storage.update_metadata({"ref_min_score": 9, "ref_max_score": 9})
    info = read_minari(name).info
    assert info.score_range is None
    assert "unusable" in info.notes[-1]


def test_a_million_steps_are_no_horizon() -> None:
    write_minari(
        "ns/x-v0", some_episodes(), env_id="Hopper-v4", description="", max_episode_steps=1_000_000
    )
    assert read_minari("ns/x-v0").info.max_episode_steps is None


def test_damaged_folders(root: Path) -> None:
    name = create(buffer())
    data = root / name / "data"
    whole = (data / "main_data.hdf5").read_bytes()
    (data / "main_data.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a readable Minari dataset"):
        read_minari(name)
    (data / "main_data.hdf5").unlink()
    with pytest.raises(InputError, match="not a readable Minari dataset"):
        read_minari(name)
    (data / "metadata.json").write_text("{")
    with pytest.raises(InputError, match="not a readable Minari dataset"):
        read_minari(name)


def test_a_file_of_another_dataset_version(root: Path) -> None:
    name = create(buffer())
    path = root / name / "data" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"minari_version": "99.0"}))
    with pytest.raises(InputError, match=r"does not support .* 99\.0"):
        read_minari(name)


def test_without_network_one_sentence_says_what_to_put_where(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("[Errno -2] Name or service not known\nmany more lines")

    monkeypatch.setattr(minari, "load_dataset", offline)
    with pytest.raises(InputError) as caught:
        read_minari("D4RL/door/humann-v2")
    message = str(caught.value)
    assert f"copy its folder to {root / 'D4RL/door/humann-v2'}" in message
    assert "Did you mean D4RL/door/human-v2" in message
    assert "\n" not in message


def test_downloading_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def bare(*_: object, **__: object) -> None:
        raise ImportError("huggingface_hub is not installed. Please install it using pip")

    monkeypatch.setattr(minari, "load_dataset", bare)
    with pytest.raises(InputError, match=r"pip install 'offdiff\[minari\]'"):
        read_minari("D4RL/door/human-v2")


def test_unbounded_actions_cannot_be_learnt_from() -> None:
    write_minari("ns/x-v0", some_episodes(), env_id=None, description="", action_low=(-np.inf,))
    assert replace(read_minari("ns/x-v0").info, notes=()).env_id is None
    with pytest.raises(InputError, match="every lower bound must be finite"):
        load_dataset("ns/x-v0")
