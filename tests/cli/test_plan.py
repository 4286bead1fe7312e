"""`offdiff plan`, and what `eval` and `export` do with the run of a planner."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from straight_planner import CALLS, PUSH, SPEED, StraightConfig, record_drift

from offdiff.algos.bc import BCConfig
from offdiff.cli import main
from offdiff.config import RunConfig
from offdiff.data.hdf5 import read_hdf5, write_hdf5
from offdiff.records import read_record
from offdiff.run import run

Told = Callable[..., tuple[int, str, str]]


def finished(data: Path, out: Path, planner: StraightConfig | None, **options: int) -> Path:
    """The folder of a run of two seeds."""
    config = RunConfig(
        dataset=str(data),
        algo=BCConfig(hidden=(8,)),
        planner=planner,
        seeds=(0, 1),
        updates=5,
        eval_every=0,
        final_episodes=options.get("episodes", 2),
        out=out,
        device="cpu",
    )
    records = run(config, progress=False)
    return (out / records[0].run_id).parent


@pytest.fixture(scope="module")
def drift(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drift")
    record_drift(folder / "drift.hdf5")
    return finished(folder / "drift.hdf5", folder / "runs", StraightConfig(horizon=5))


@pytest.fixture(scope="module")
def maze(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes of 30 steps in a U-shaped maze."""
    pytest.importorskip("gymnasium_robotics")
    folder = tmp_path_factory.mktemp("maze")
    path = folder / "umaze.hdf5"
    command = ["data", "generate", "--maze", "umaze", "--to", str(path), "--steps", "300"]
    assert main(command) == 0
    recorded = read_hdf5(path)
    write_hdf5(path, recorded.episodes, {**recorded.attributes, "max_episode_steps": 30})
    return finished(path, folder / "runs", StraightConfig(horizon=9), episodes=1)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """Runs a command; gives exit code, output and errors."""

    def tell(*args: object) -> tuple[int, str, str]:
        code = main([str(arg) for arg in args])
        return code, *capsys.readouterr()

    return tell


def refused(outcome: tuple[int, str, str]) -> str:
    """The one sentence of a refusal."""
    code, out, error = outcome
    assert (code, out) == (2, "")
    assert error.startswith("offdiff: ")
    assert error.count("\n") == 1
    return error


def test_what_a_planner_imagined_is_told(drift: Path, told: Told) -> None:
    code, out, _ = told("plan", drift)
    assert code == 0
    assert f"Drift-v0: return {20 * PUSH[0]:.1f} in 20 steps, goal reached" in out
    assert "20 decisions, " in out
    assert f"ms and {CALLS} calls each" in out


def test_json_holds_exact_numbers(drift: Path, told: Told) -> None:
    code, out, _ = told("plan", drift / "seed-1", "--steps", 8, "--json")
    assert code == 0
    seen = json.loads(out)
    assert Path(seen["planner"]).name == "seed-1"
    assert (seen["return"], seen["steps"], seen["success"]) == (8 * PUSH[0], 8, False)
    assert (seen["decisions"], seen["calls_per_decision"]) == (8, CALLS)
    assert [(one["steps"], one["plans"]) for one in seen["ahead"]] == [(1, 8), (2, 7), (4, 5)]
    std = read_std(drift)
    step = SPEED * np.sqrt(np.mean((np.array(PUSH) / std) ** 2))
    for one in seen["ahead"]:
        assert one["distance"] == pytest.approx(0, abs=1e-6)
        assert one["moved"] == pytest.approx(one["steps"] * step, rel=1e-4)


def read_std(folder: Path) -> np.ndarray:
    from offdiff.checkpoint import load_planner

    return np.array(load_planner(folder / "seed-0").task.obs_std)


def test_a_picture_beside_the_numbers(drift: Path, told: Told, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    from matplotlib.image import imread

    path = tmp_path / "plans.png"
    code, out, _ = told("plan", drift, "--plot", path)
    assert code == 0
    assert str(path) in out
    assert imread(path).shape[:2] == (900, 1400)


def test_the_goal_of_a_maze_and_a_way_point(maze: Path, told: Told, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    path = tmp_path / "plans.png"
    options = ("--goal", -1.125, 0.75, "--via", 4, 1, 0.5, "--steps", 30)
    code, out, error = told("plan", maze, *options, "--plot", path)
    assert (code, error) == (0, "")
    assert "PointMaze_UMaze-v3: return" in out
    assert "way-point of step 4: " in out
    assert path.stat().st_size > 10_000


def test_a_film_of_the_episode_with_its_goal(maze: Path, told: Told, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="needs the extra video")
    path = tmp_path / "episode.gif"
    code, out, error = told("plan", maze, "--goal", 1.125, -0.75, "--steps", 10, "--video", path)
    if "libegl1" in error:
        pytest.skip(f"this machine cannot render: {error}")
    assert (code, error) == (0, "")
    assert str(path) in out
    import imageio.v3 as iio

    frames = iio.imread(path)
    # 50 steps a second shown at 25 frames: every second one and the last
    assert frames.shape == (6, 480, 480, 3)
    assert frames.std() > 20


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--goal", 0, 0), "goal (0, 0) lies in a wall; the maze goes from -2.5 to 2.5 in x"),
        (("--goal", 5, 0), "goal (5, 0) lies outside the maze"),
        (("--goal", 1), "goal takes 2 finite numbers, x and y, got (1)"),
        (("--goal", 1, 0, 1), "goal takes 2 finite numbers"),
        (("--via", 9, 1, 1), "from 1 to 8"),
        (("--via", 3, 1), "a way-point is 3 numbers, its step and 2 coordinates; got 2 numbers"),
        (("--via", 3, 0, 0), "way-point (0, 0) lies in a wall"),
        (("--plot", "plans.jpg"), "plans.jpg names no known picture format; end it in .png"),
        (("--video", "film.avi"), "end it in .mp4 or .gif"),
    ],
)
def test_wishes_that_cannot_be_met(
    maze: Path, told: Told, options: tuple[object, ...], words: str
) -> None:
    assert words in refused(told("plan", maze, *options))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--steps", "0"), "--steps at least 1"),
        (("--seed", "-1"), "--seed must be at least 0"),
        (("--goal", "nan", "1"), "take finite numbers"),
    ],
)
def test_options_that_no_planner_takes(
    options: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "nowhere", *options])
    assert words in " ".join(capsys.readouterr().err.split())


def test_goals_and_way_points_need_a_maze(drift: Path, told: Told) -> None:
    assert "only PointMaze and AntMaze" in refused(told("plan", drift, "--goal", 1, 1))
    assert "hold a position and a goal" in refused(told("plan", drift, "--via", 2, 1, 1))


def test_a_learner_makes_no_plans(tmp_path: Path, told: Told) -> None:
    record_drift(tmp_path / "drift.hdf5")
    learner = finished(tmp_path / "drift.hdf5", tmp_path / "runs", None)
    assert "makes no plans" in refused(told("plan", learner))
    assert "holds no finished run" in refused(told("plan", tmp_path))


def test_eval_of_a_planner_repeats_the_records_returns(drift: Path, told: Told) -> None:
    record = read_record(drift / "seed-1" / "run.json")
    options = ("--episodes", 2, "--seed", record.eval["seed"], "--json")
    code, out, _ = told("eval", drift / "seed-1", *options)
    assert code == 0
    (outcome,) = json.loads(out)
    assert outcome["returns"] == record.eval["returns"] == [20 * PUSH[0]] * 2
    assert outcome["action_mode"] == record.eval["action_mode"] == "a plan every 1 steps"


def test_a_planner_is_no_network(drift: Path, told: Told) -> None:
    assert "is no memoryless policy" in refused(told("eval", drift, "--fqe"))
    for form in ("onnx", "torchscript"):
        assert "its plans are no single graph" in refused(told("export", drift, "--format", form))
    assert not list(drift.rglob("policy.onnx"))
