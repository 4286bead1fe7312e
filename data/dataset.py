"""A dataset: episodes, where they came from, and how their returns become a score."""

import math
from dataclasses import dataclass

from offdiff.data.episodes import Episodes


@dataclass(frozen=True, kw_only=True)
class ScoreRange:
    """Returns that map to 0 and to 100. ValueError unless they are finite and in order."""

    minimum: float
    maximum: float
    source: str
    """Whose constants: "d4rl_infos", "d4rl_registration", "minari_metadata" or "custom"."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.minimum) and math.isfinite(self.maximum)):
            raise ValueError(f"reference returns must be finite, got {self}")
        if self.minimum >= self.maximum:
            raise ValueError(f"the return of score 0 must lie below that of score 100, got {self}")

    def score(self, episode_return: float) -> float:
        """100 * (return - minimum) / (maximum - minimum); not clipped."""
        return 100.0 * (episode_return - self.minimum) / (self.maximum - self.minimum)


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Provenance and evaluation of a dataset; everything here goes into the run record."""

    name: str
    """As the user names it; for a file, its stem."""
    suite: str
    """"d4rl", "minari", "hdf5" or "sample"."""
    source: str
    """Path, address or Minari id it was read from."""
    sha256: str
    """Digest of the file's content, "" where there is no single file."""
    family: str
    """"locomotion", "antmaze", "maze2d", "adroit", "kitchen" or "other": selects transforms."""
    env_id: str | None
    """Gymnasium environment to evaluate in; None if there is no simulator."""
    max_episode_steps: int | None
    """Horizon of the evaluation; None leaves the environment's own."""
    score_range: ScoreRange | None
    """None if no reference returns are known: returns are then reported as they are."""
    behaviour: str = ""
    """Who acted, in words."""
    action_low: tuple[float, ...] = (-1.0,)
    """The environment's action that -1 stands for: one bound for all numbers, or one for each."""
    action_high: tuple[float, ...] = (1.0,)
    """The environment's action that 1 stands for, likewise."""
    obs_layout: str = ""
    """Parts of a flattened dict observation in their order, "" if it was flat."""
    notes: tuple[str, ...] = ()
    """What the reader had to decide, in words."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What `offdiff.data.load` gives."""

    info: DatasetInfo
    episodes: Episodes
