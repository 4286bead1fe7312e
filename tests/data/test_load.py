from pathlib import Path

import h5py
import numpy as np
import pytest

from offdiff.core.errors import InputError
from offdiff.core.files import sha256
from offdiff.data.describe import describe
from offdiff.data.load import SAMPLE_PATH, load_dataset, read_dataset


def small(path: Path, action: float = 0.5, **attributes: object) -> Path:
    obs = np.arange(5, dtype=np.float32)[:, None]
    with h5py.File(path, "w") as file:
        file["observations"], file["next_observations"] = obs, obs + 1
        file["actions"] = np.full((5, 2), action, np.float32)
        file["rewards"] = np.ones(5, np.float32)
        file["terminals"] = np.zeros(5, bool)
        file["timeouts"] = np.arange(5) == 4
        file.attrs.update(attributes)
    return path


def test_the_bundled_sample() -> None:
    dataset = load_dataset("sample")
    info, episodes = dataset.info, dataset.episodes
    assert SAMPLE_PATH.stat().st_size <= 5.5e6
    assert (info.name, info.suite, info.env_id) == ("hopper-mixed-sample", "sample", "Hopper-v4")
    assert info.sha256 == sha256(SAMPLE_PATH)
    assert (len(episodes), episodes.n_episodes) == (59_716, 307)
    assert (episodes.spec.obs_dim, episodes.spec.action_dim) == (11, 3)
    assert info.notes == ()
    # Room above the behaviour: its best episode is over five times as good as its mean.
    assert info.score_range is not None
    assert info.score_range.score(float(episodes.returns.mean())) == pytest.approx(18.31, abs=0.01)
    assert info.score_range.score(float(episodes.returns.max())) > 100


def test_a_file_by_path(tmp_path: Path) -> None:
    path = small(tmp_path / "walk.hdf5", env_id="Hopper-v5", behaviour="me", max_episode_steps=7)
    info = load_dataset(str(path)).info
    assert (info.name, info.suite, info.source) == ("walk", "hdf5", str(path))
    assert (info.env_id, info.behaviour, info.max_episode_steps) == ("Hopper-v5", "me", 7)
    assert (info.action_low, info.action_high) == ((-1.0,), (1.0,))


def test_a_d4rl_name_is_found_in_d4rls_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    path = small(tmp_path / "hopper_medium-v2.hdf5")
    info = load_dataset("hopper-medium-v2").info
    assert (info.name, info.suite, info.source) == ("hopper-medium-v2", "d4rl", str(path))
    assert (info.env_id, info.max_episode_steps) == ("Hopper-v4", 1000)
    # The same file under two names, with two horizons.
    small(tmp_path / "door-human-v1.hdf5")
    assert load_dataset("door-human-v1").info.max_episode_steps == 200
    assert load_dataset("door-human-longhorizon-v1").info.max_episode_steps == 300


def test_changed_download_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("OFFDIFF_CACHE", str(tmp_path))
    (tmp_path / "d4rl").mkdir()
    path = small(tmp_path / "d4rl" / "hopper_medium-v2.hdf5")
    path.with_name(path.name + ".sha256").write_text(f"{'0' * 64}  {path.name}\n")
    with pytest.raises(InputError, match="differs from the SHA-256 recorded"):
        load_dataset("hopper-medium-v2")


@pytest.mark.parametrize(
    ("low", "high", "action", "expected"),
    [(-1.0, 1.0, 0.5, 0.5), (-2.0, 2.0, 0.5, 0.25), ([0.0, 0.0], [1.0, 2.0], 0.5, 0.0)],
)
def test_actions_are_scaled_to_the_unit_box(
    tmp_path: Path, low: object, high: object, action: float, expected: float
) -> None:
    path = small(tmp_path / "x.hdf5", action, action_low=low, action_high=high)
    assert load_dataset(str(path)).episodes.action[0, 0] == pytest.approx(expected)


def test_actions_outside_the_box(tmp_path: Path) -> None:
    path = small(tmp_path / "x.hdf5", 1.37)
    with pytest.raises(
        InputError, match=r"\[-1, 1\]: row 0, number 0 is 1.37; pass --clip-actions"
    ):
        load_dataset(str(path))
    assert load_dataset(str(path), clip_actions=True).episodes.action.max() == 1.0
    assert read_dataset(str(path)).episodes.action.max() == np.float32(1.37)
    # Rounding is no overshoot, but the promise of [-1, 1] is kept to the last bit.
    rounded = load_dataset(str(small(tmp_path / "y.hdf5", 1.000001)))
    assert rounded.episodes.action.max() == 1.0


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (1.0, -1.0, "every lower bound must be"),
        ([-1.0] * 3, 1.0, "the action box has 3 and 1 bounds, actions have 2"),
        ("wide", 1.0, "attribute action_low is 'wide'"),
    ],
)
def test_bad_boxes(tmp_path: Path, low: object, high: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_dataset(str(small(tmp_path / "x.hdf5", action_low=low, action_high=high)))


def test_reference_returns_of_the_file_itself(tmp_path: Path) -> None:
    path = small(tmp_path / "x.hdf5", ref_min_score=0.0, ref_max_score=10.0)
    span = load_dataset(str(path)).info.score_range
    assert span is not None
    assert (span.score(5.0), span.source) == (50.0, "custom")
    path = small(tmp_path / "y.hdf5", ref_min_score=10.0, ref_max_score=10.0)
    with pytest.raises(InputError, match="ref_min_score 10 is not below"):
        load_dataset(str(path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hoper-medium-v2", "did you mean 'hopper-medium-v2'"),
        ("smaple", "did you mean 'sample'"),
        ("nowhere/x.hdf5", "nowhere/x.hdf5: no such file"),
        (".", "nor a folder that holds data/metadata.json"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_dataset(name)


def test_description(tmp_path: Path) -> None:
    path = small(tmp_path / "x.hdf5", 1.5, ref_min_score=0.0, ref_max_score=10.0)
    description = describe(read_dataset(str(path)))
    assert description["transitions"] == {"strict": 5, "d4rl_compat": 4}
    assert description["return"] == {"mean": 5.0, "std": 0.0, "min": 5.0, "max": 5.0}
    assert description["score"]["mean"] == 50.0
    assert (description["terminals"], description["timeouts"]) == (0, 1)
    warnings = " ".join(description["warnings"])
    assert "5 of 5 actions leave their box, by up to 0.5 half widths" in warnings
    assert "no environment is known" in warnings


def test_a_file_of_ones_own_in_d4rls_folder_goes_by_its_name(
    toy_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D4RL_DATASET_DIR", str(toy_file.parent))
    info = load_dataset("toy").info
    assert (info.name, info.source) == ("toy", "$D4RL_DATASET_DIR/toy.hdf5")
    assert info.sha256 == load_dataset(str(toy_file)).info.sha256
    with pytest.raises(InputError, match="unknown dataset 'toi'"):
        load_dataset("toi")
    for outside in ("../toy", str(toy_file.with_suffix(""))):
        with pytest.raises(InputError):
            load_dataset(outside)
