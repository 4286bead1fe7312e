"""Films a policy without a screen: mp4 or gif.

MuJoCo chooses its graphics library when it is first imported, and a wrong choice breaks the import.
So the episodes are played here, and replayed from their actions in a child process of its own,
which draws them.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from offdiff.core.errors import InputError, MissingExtraError
from offdiff.core.files import replacing, require_writable
from offdiff.core.protocols import Policy, RewardObserver
from offdiff.core.types import Spec
from offdiff.environments import Simulator, make_simulator
from offdiff.evaluate import Evaluation, evaluate, known_device, known_spec

RUNNERS = "(Ant|HalfCheetah|Hopper|Humanoid|Swimmer|Walker2d)-v[45]"
"""Environments whose model has a camera that follows the robot."""
FRAMES_PER_SECOND = 30
"""Upper limit; environments that act faster are shown at their speed with frames left out."""


def record_video(
    policy: Policy,
    env_id: str,
    path: Path,
    *,
    episodes: int = 1,
    seed: int,
    max_episode_steps: int | None = None,
    device: torch.device | str | None = None,
    spec: Spec | None = None,
    progress: bool = True,
) -> Evaluation:
    """Writes a film of a policy's first episodes to `path` (.mp4 or .gif), whole or not at all.

    They are the first episodes of `evaluate` with the same seed; their outcome is given back.
    The arguments are those of `evaluate`. Raises InputError if the suffix is another, the machine
    cannot render or the file cannot be written; MissingExtraError without imageio.
    """
    require_encoder(path)
    require_writable(path.parent)
    recorder = _Recorder(policy)
    evaluation = evaluate(
        recorder,
        env_id,
        episodes=episodes,
        seed=seed,
        max_episode_steps=max_episode_steps,
        num_envs=1,
        device=device or known_device(policy),
        spec=spec or known_spec(policy),
        progress=progress,
    )
    film_actions(
        env_id,
        path,
        seeds=evaluation.seeds,
        actions=np.split(np.stack(recorder.actions), np.cumsum(evaluation.lengths)[:-1]),
        returns=evaluation.returns,
        max_episode_steps=evaluation.max_episode_steps,
        progress=progress,
    )
    return evaluation


def film_actions(
    env_id: str,
    path: Path,
    *,
    seeds: Sequence[int],
    actions: Sequence[NDArray[np.float32]],
    returns: Sequence[float],
    max_episode_steps: int,
    goal: Sequence[float] = (),
    progress: bool = True,
) -> None:
    """Writes a film of episodes that were played before, repeated from their actions.

    seeds, goal: as `Simulator.reset` was given them. actions: (T, A) of every episode. returns:
    what they brought, in float64: an environment that does not repeat itself is refused.
    Raises the same errors as `record_video`.
    """
    require_encoder(path)
    with tempfile.TemporaryDirectory() as folder:
        request, film = Path(folder, "episodes.npz"), Path(folder, f"film{path.suffix}")
        np.savez(
            request,
            env_id=env_id,
            max_episode_steps=max_episode_steps,
            seeds=seeds,
            lengths=[len(steps) for steps in actions],
            returns=returns,
            actions=np.concatenate(actions),
            goal=np.array(goal, np.float64),
        )
        steps = sum(len(episode) for episode in actions)
        _render_in_child(request, film, env_id, steps, progress=progress)
        with replacing(path) as temporary:
            shutil.copyfile(film, temporary)


def require_encoder(path: Path) -> None:
    """Raises InputError for a suffix of no film, MissingExtraError without imageio."""
    if path.suffix not in (".mp4", ".gif"):
        raise InputError(f"{path} names no known video format; end it in .mp4 or .gif")
    needed = ("imageio", "imageio_ffmpeg") if path.suffix == ".mp4" else ("imageio",)
    if any(importlib.util.find_spec(package) is None for package in needed):
        raise MissingExtraError(f"writing {path.name}", "video")


class _Recorder:
    """A policy that remembers the actions of the first environment."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.actions: list[NDArray[np.float32]] = []

    def act(self, obs: Tensor, /) -> Tensor:
        action = self.policy.act(obs)
        self.actions.append(action[0].cpu().numpy())
        return action

    def reset(self, which: Tensor, /) -> None:
        self.policy.reset(which)

    def observe(self, reward: Tensor, /) -> None:
        if isinstance(self.policy, RewardObserver):
            self.policy.observe(reward)


def _render_in_child(request: Path, film: Path, env_id: str, steps: int, *, progress: bool) -> None:
    environment = dict(os.environ)
    if sys.platform == "linux":
        environment.setdefault("MUJOCO_GL", "egl")  # draws without a screen, also without a GPU
    command = [sys.executable, "-m", "offdiff.video", str(request), str(film)]
    log = film.with_suffix(".log")
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as child,
        Progress(console=Console(stderr=True), disable=not progress, transient=True) as bar,
    ):
        assert child.stdout is not None
        task = bar.add_task("filming", total=steps)
        for _ in child.stdout:  # one line a step
            bar.advance(task)
    if child.returncode != 0:
        lines = log.read_text().strip().splitlines() or [f"exit code {child.returncode}"]
        raise InputError(
            f"cannot render {env_id} with MUJOCO_GL={environment.get('MUJOCO_GL', '')} "
            f"({lines[-1]}); on Debian: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri"
        )


def _draw(request: Path, film: Path) -> None:
    """The child's work: replays recorded actions and writes the film."""
    import imageio.v2 as imageio

    with np.load(request, allow_pickle=False) as episodes:
        env_id, horizon = str(episodes["env_id"]), int(episodes["max_episode_steps"])
        seeds, returns = episodes["seeds"].tolist(), episodes["returns"].tolist()
        goal = episodes["goal"].tolist()
        per_episode = np.split(episodes["actions"], np.cumsum(episodes["lengths"])[:-1])
    render = {"render_mode": "rgb_array"}
    if re.fullmatch(RUNNERS, env_id):
        render["camera_name"] = "track"  # the default one lets a HalfCheetah run out of the picture
    simulator = make_simulator(env_id, max_episode_steps=horizon, render=render)
    _draw_without_shadows(simulator.env.unwrapped)
    rate = float(simulator.env.metadata.get("render_fps", FRAMES_PER_SECOND))
    stride = max(1, round(rate / FRAMES_PER_SECOND))
    # Without macro_block_size=1 the frame is stretched to a multiple of 16.
    options: dict[str, Any] = (
        {"fps": rate / stride, "macro_block_size": 1}
        if film.suffix == ".mp4"
        else {"duration": 1000 * stride / rate, "loop": 0}
    )
    with simulator, imageio.get_writer(film, **options) as writer:
        for seed, actions, expected in zip(seeds, per_episode, returns, strict=True):
            total = _replay(simulator, seed, goal, actions, stride, writer)
            if total != expected:
                raise InputError(f"{env_id} does not repeat itself: {total} after {expected}")


def _replay(
    simulator: Simulator,
    seed: int,
    goal: list[float],
    actions: NDArray[np.float32],
    stride: int,
    writer: Any,
) -> float:
    """Films one episode; its return."""
    simulator.reset(seed, goal)
    total = 0.0
    for t, action in enumerate(actions):
        if t % stride == 0:
            writer.append_data(simulator.env.render())
        total += simulator.step(action).reward
        print(t, flush=True)
    writer.append_data(simulator.env.render())
    return total


def _draw_without_shadows(env: object) -> None:
    """On a CPU shadows and anti-aliasing are most of a frame's cost (117 to 230 ms against 31)."""
    for owner in (
        env,
        *(getattr(env, name, None) for name in ("ant_env", "point_env", "robot_env")),
    ):
        model = getattr(owner, "model", None)
        if model is not None:
            model.vis.quality.shadowsize = 0
            model.vis.quality.offsamples = 0


if __name__ == "__main__":
    _draw(Path(sys.argv[1]), Path(sys.argv[2]))
