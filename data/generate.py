"""Makes a Maze2D dataset: options in, file out."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from offdiff.core.errors import InputError
from offdiff.core.files import require_writable
from offdiff.data.dataset import Dataset, DatasetInfo
from offdiff.data.hdf5 import Attribute
from offdiff.data.maze import Maze, MazeSource, env_id_of, obs_layout
from offdiff.data.observations import ObsMode
from offdiff.data.recording import record, work_folder
from offdiff.data.save import destination_path, save_dataset

BEHAVIOUR = (
    "waypoint PD controller with noise; an episode's end, marked as a timeout, means that the goal "
    "was reached and a new one drawn"
)

IDENTITY = ("maze", "dense", "steps", "seed", "obs_mode")
"""Options of a `MazeConfig` that decide the rows."""


@dataclass(frozen=True, kw_only=True)
class MazeConfig:
    """What is generated. Raises InputError for numbers out of range."""

    maze: Maze
    """Layout: umaze, medium or large."""
    to: str
    """New file ending in .hdf5, or new Minari id such as me/pointmaze/large-v0."""
    dense: bool = False
    """Reward exp(-distance to the goal) instead of 1 within 0.45 of it and 0 elsewhere."""
    steps: int = 100_000
    """Rows; D4RL has 1000000 (umaze), 2000000 (medium) and 4000000 (large)."""
    seed: int = 0
    """Everything random follows from it."""
    obs_mode: ObsMode = "concat_goal"
    """concat_goal: achieved_goal, desired_goal, observation (8 numbers), so that a policy knows
    where to go, and as it is evaluated. observation_only: position and velocity (4), with the goal
    hidden as in D4RL."""
    resume: bool = False
    """Continue a stopped generation; give the same options again."""
    overwrite: bool = False
    """Replace an existing HDF5 file."""

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 10**9:
            raise InputError(f"--steps must lie in [1, 1000000000], got {self.steps}")
        if self.seed < 0:
            raise InputError(f"--seed must be at least 0, got {self.seed}")


def generate(config: MazeConfig, *, show: bool = True) -> Path:
    """Generates and saves one dataset; gives its file or folder.

    A work folder beside the destination keeps what is done until the dataset is whole.
    Raises InputError, with nothing written, for a taken destination or a missing package.
    """
    path = destination_path(config.to, overwrite=config.overwrite)
    require_writable(path.parent)
    info = DatasetInfo(
        name=path.stem,
        suite="hdf5",
        source=str(path),
        sha256="",
        family="maze2d",
        env_id=env_id_of(config.maze, dense=config.dense),
        max_episode_steps=None,
        score_range=None,
        behaviour=BEHAVIOUR,
        obs_layout=obs_layout(config.obs_mode),
    )
    provenance: dict[str, Attribute] = {
        "recipe": "maze2d",
        "seed": config.seed,
        "simulator": f"gymnasium-robotics {version('gymnasium-robotics')}, "
        f"mujoco {version('mujoco')}",
    }
    identity = {name: getattr(config, name) for name in IDENTITY}
    with (
        MazeSource(
            config.maze, dense=config.dense, seed=config.seed, obs_mode=config.obs_mode
        ) as source,
        work_folder(path, identity, resume=config.resume) as folder,
    ):
        episodes = record(source, steps=config.steps, folder=folder, show=show)
        dataset = Dataset(info=info, episodes=episodes)
        return save_dataset(dataset, config.to, provenance, overwrite=config.overwrite)
