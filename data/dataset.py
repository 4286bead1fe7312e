"""A dataset: episodes, where they came from, and how their returns become a score."""

from dataclasses import dataclass

from offdiff.data.episodes import Episodes


@dataclass(frozen=True, kw_only=True)
class ScoreRange:
    """Returns that map to 0 and to 100."""

    minimum: float
    maximum: float
    source: str
    """Whose constants: "d4rl_infos", "minari_metadata" or "custom"."""

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


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What `offdiff.data.load` gives."""

    info: DatasetInfo
    episodes: Episodes
