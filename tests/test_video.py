"""Films are written whole, show the episodes of an evaluation, or tell what the machine lacks."""

import importlib.util
import sys
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from torch import Tensor

from offdiff.core.errors import InputError, MissingExtraError
from offdiff.evaluate import evaluate
from offdiff.video import record_video


class Lean:
    """A fixed push that topples a Hopper."""

    def act(self, obs: Tensor, /) -> Tensor:
        return torch.tensor([0.3, -0.2, 0.5]).expand(len(obs), -1)

    def reset(self, which: Tensor, /) -> None:
        pass


needs_imageio = pytest.mark.skipif(
    importlib.util.find_spec("imageio_ffmpeg") is None, reason="needs the extra video"
)


def skip_without_graphics(error: InputError) -> NoReturn:
    if "libegl1" in str(error):
        pytest.skip(f"this machine cannot render: {error}")
    raise error


@needs_imageio
@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_film_shows_the_evaluated_episodes(tmp_path: Path, suffix: str) -> None:
    import imageio.v3 as iio

    path = tmp_path / "new" / f"hopper{suffix}"
    try:
        shown = record_video(
            Lean(), "Hopper-v4", path, episodes=2, seed=3, max_episode_steps=24, progress=False
        )
    except InputError as error:
        skip_without_graphics(error)
    plain = evaluate(Lean(), "Hopper-v4", episodes=2, seed=3, max_episode_steps=24, progress=False)
    assert shown == plain
    frames = iio.imread(path)
    # 125 steps a second shown at about 31 frames: every 4th step and the last of each episode
    assert frames.shape == (sum(-(-n // 4) + 1 for n in shown.lengths), 480, 480, 3)
    assert frames[0].std() > 20, "a picture, not a blank"
    assert (frames[0] != frames[5]).any()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@needs_imageio
def test_a_machine_that_cannot_render_names_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "no-such-library")
    with pytest.raises(InputError, match=r"MUJOCO_GL=no-such-library.*libegl1 libegl-mesa0"):
        record_video(
            Lean(), "Hopper-v4", tmp_path / "x.mp4", seed=0, max_episode_steps=2, progress=False
        )
    assert not list(tmp_path.iterdir())


def test_other_formats_and_missing_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"end it in \.mp4 or \.gif"):
        record_video(Lean(), "Hopper-v4", tmp_path / "film.avi", seed=0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"offdiff\[video\]"):
        record_video(Lean(), "Hopper-v4", tmp_path / "film.mp4", seed=0)


@needs_imageio
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is read-only on Linux")
def test_an_unwritable_place_is_refused_before_playing() -> None:
    with pytest.raises(InputError, match="cannot write"):
        record_video(Lean(), "Hopper-v4", Path("/proc/nowhere/film.mp4"), seed=0)
