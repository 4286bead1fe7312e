import json
import sys
from pathlib import Path

import pytest

from offdiff.core.errors import InputError
from offdiff.data.catalogue import (
    BASE_URL,
    catalogue,
    family_of,
    installed_d4rl_disagrees,
    lookup,
    recognise,
    score_range,
)
from offdiff.data.dataset import ScoreRange

GOLDEN = Path(__file__).parents[1] / "golden" / "learner_golden.json"


def test_normalized_score_golden() -> None:
    cases = json.loads(GOLDEN.read_text())["normalized_score"]
    assert len(cases) >= 8
    for case in cases:
        got = score_range(case["dataset"]).score(case["return"])
        assert got == pytest.approx(case["score"], rel=1e-12)


def test_score_is_neither_clipped_nor_a_fraction() -> None:
    span = ScoreRange(minimum=-10.0, maximum=30.0, source="custom")
    assert [span.score(r) for r in (-20, -10, 10, 30, 50)] == [-25, 0, 50, 100, 150]


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0)])
def test_a_range_that_cannot_divide_is_no_range(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="return"):
        ScoreRange(minimum=low, maximum=high, source="custom")


def test_every_entry_has_an_address_an_environment_and_a_horizon() -> None:
    assert len(catalogue()) == 148
    for name, entry in catalogue().items():
        assert entry.url_path.endswith(entry.file_name), name
        assert entry.file_name.endswith(".hdf5"), name
        assert entry.task.env_id, name
        assert entry.task.horizon, name
    address = BASE_URL + catalogue()["hopper-medium-v2"].url_path
    assert address == (
        "http://rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2/hopper_medium-v2.hdf5"
    )


@pytest.mark.parametrize(
    ("name", "horizon"),
    [
        ("pen-human-v1", 100),
        ("door-human-v1", 200),
        ("kitchen-mixed-v0", 280),
        ("antmaze-umaze-v2", 700),
        ("maze2d-umaze-v1", 300),
        ("maze2d-medium-v1", 600),
        ("maze2d-large-v1", 800),
        ("hopper-medium-v2", 1000),
    ],
)
def test_horizons_are_not_a_thousand_everywhere(name: str, horizon: int) -> None:
    assert lookup(name).task.horizon == horizon


def test_unknown_names_are_answered_with_near_ones() -> None:
    with pytest.raises(InputError, match="did you mean 'hopper-medium-v2'"):
        lookup("hoper-medium-v2")
    with pytest.raises(InputError, match="carla-town"):
        score_range("carla-town-full-v0")


@pytest.mark.parametrize(
    ("file_name", "env_id", "family", "expected_env", "maximum"),
    [
        ("hopper-mixed-zoo.hdf5", "Hopper-v4", "locomotion", "Hopper-v4", 3234.3),
        ("anything.hdf5", "Hopper-v5", "locomotion", "Hopper-v5", 3234.3),
        ("hopper-mixed-zoo.hdf5", None, "locomotion", "Hopper-v4", 3234.3),
        ("door-human-dapg.hdf5", "AdroitHandDoor-v1", "adroit", "AdroitHandDoor-v1", 2880.569),
        ("hopper_medium-v2.hdf5", None, "locomotion", "Hopper-v4", 3234.3),
        ("maze2d-umaze-v1.hdf5", None, "maze2d", "PointMaze_UMaze-v3", 161.86),
        ("made.hdf5", "AntMaze_UMaze-v4", "antmaze", "AntMaze_UMaze-v4", 1.0),
        # The name says Hopper, the file itself Ant: the file knows better.
        ("hopper-medium-v2.hdf5", "Ant-v4", "locomotion", "Ant-v4", 3879.7),
    ],
)
def test_recognise(
    file_name: str, env_id: str | None, family: str, expected_env: str, maximum: float
) -> None:
    task = recognise(file_name, env_id)
    assert (task.family, task.env_id) == (family, expected_env)
    assert task.score_range is not None
    assert task.score_range.maximum == pytest.approx(maximum, abs=1e-3)


def test_recorded_mazes_change_goals_and_have_no_score() -> None:
    task = recognise("made.hdf5", "PointMaze_UMaze-v3")
    assert (task.family, task.env_id) == ("maze2d", "PointMaze_UMaze-v3")
    assert task.score_range is None


def test_what_is_not_known_has_no_score() -> None:
    assert recognise("walk.hdf5", "CartPole-v1").score_range is None
    assert recognise("walk.hdf5", "CartPole-v1").env_id == "CartPole-v1"
    assert recognise("walk.hdf5", None).env_id is None


def test_family_of_environment() -> None:
    assert family_of("PointMaze_Medium_Diverse_GR-v3") == "maze2d"
    assert family_of("FrankaKitchen-v1") == "kitchen"
    assert family_of(None) == "other"


def test_an_installed_d4rl_is_compared_but_never_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert installed_d4rl_disagrees("hopper-medium-v2") is None
    package = tmp_path / "d4rl"
    package.mkdir()
    (package / "__init__.py").write_text("raise Exception('You appear to be missing MuJoCo')")
    (package / "infos.py").write_text(
        "REF_MIN_SCORE = {'hopper-medium-v2': -20.272305, 'hopper-expert-v2': 0.0}\n"
        "REF_MAX_SCORE = {'hopper-medium-v2': 3234.3, 'hopper-expert-v2': 3234.3}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert installed_d4rl_disagrees("hopper-medium-v2") is None
    assert installed_d4rl_disagrees("pen-human-v1") is None
    assert "differ from 0.0, 3234.3" in (installed_d4rl_disagrees("hopper-expert-v2") or "")
    assert "d4rl" not in sys.modules
