"""Episodes -> a local Minari dataset, whole or absent.

Minari itself validates nothing, so everything is checked before it writes.
"""

import contextlib
import copy
import io
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from offdiff.core.errors import InputError
from offdiff.core.files import require_writable
from offdiff.data.dataset import ScoreRange
from offdiff.data.episodes import Episodes
from offdiff.data.minari_ids import datasets_root, import_minari, is_id


def write_minari(
    dataset_id: str,
    episodes: Episodes,
    *,
    env_id: str | None,
    description: str,
    algorithm_name: str = "offdiff",
    max_episode_steps: int | None = None,
    action_low: tuple[float, ...] = (-1.0,),
    action_high: tuple[float, ...] = (1.0,),
    score_range: ScoreRange | None = None,
    metadata: Mapping[str, object] | None = None,
) -> Path:
    """Writes a local Minari dataset, whole or not at all; gives its folder.

    dataset_id: such as "offdiff/hopper/mixed-v0". env_id: the environment to recover.
    action_low, action_high: bounds of the action space, one for all numbers or one for each.
    metadata: whatever JSON can hold, kept under the key "offdiff".
    Where no successor of an episode's last row is known, Minari's T+1st observation repeats the
    last one, and the episode says so (`successor_known`), so that `read_minari` knows.
    Raises InputError for a malformed or taken id, and if the folder cannot be written.
    """
    _require_free_id(dataset_id)
    minari = import_minari(f"writing Minari dataset {dataset_id}")
    from minari.dataset.minari_storage import MinariStorage

    folder = datasets_root() / dataset_id
    require_writable(folder.parent)
    namespace = dataset_id.rpartition("/")[0]
    if namespace and namespace not in minari.namespace.list_local_namespaces():
        minari.namespace.create_namespace(namespace)
    # Minari passes over hidden folders, so a half-written one is never listed.
    hidden = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        spaces = _spaces(episodes, action_low, action_high)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            storage = MinariStorage.new(
                hidden / "data", *spaces, env_spec=_env_spec(env_id, max_episode_steps)
            )
        storage.update_metadata(
            {
                "dataset_id": dataset_id,
                "minari_version": minari.__version__,
                "algorithm_name": algorithm_name,
                "description": description,
                "offdiff": dict(metadata or {})
                | {"env_id": env_id, "score_source": score_range.source if score_range else None},
            }
        )
        if score_range is not None:
            storage.update_metadata(
                {"ref_min_score": score_range.minimum, "ref_max_score": score_range.maximum}
            )
        storage.update_episodes(_buffers(episodes))
        storage.update_episode_metadata(
            {"successor_known": bool(known)} for known in episodes.successor_known[episodes.last]
        )
        hidden.chmod(0o755)
        hidden.rename(folder)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error}; choose another place") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return folder


def _require_free_id(dataset_id: str) -> None:
    # Minari makes the folder before it looks at the id, and then refuses the whole root.
    if not is_id(dataset_id):
        raise InputError(
            f"{dataset_id!r} is no Minari id; write letters, digits, - and _, with a namespace of "
            "two characters or more, ending in a version, such as offdiff/hopper/mixed-v0"
        )
    folder = datasets_root() / dataset_id
    if folder.exists():
        raise InputError(
            f"Minari dataset {dataset_id} exists already in {datasets_root()}; choose another "
            f"version, or delete it with: minari delete {dataset_id}"
        )


def _spaces(episodes: Episodes, low: tuple[float, ...], high: tuple[float, ...]) -> tuple[Any, Any]:
    """Observation and action space of flat episodes."""
    from gymnasium.spaces import Box

    size = episodes.spec.action_dim
    bounds = [np.broadcast_to(np.array(bound, np.float32), size) for bound in (low, high)]
    return (
        Box(-np.inf, np.inf, (episodes.spec.obs_dim,), np.float32),
        Box(bounds[0], bounds[1], (size,), np.float32),
    )


def _env_spec(env_id: str | None, max_episode_steps: int | None) -> Any:
    """Gymnasium's entry, None where no installed package has one."""
    import gymnasium

    if env_id is None:
        return None
    if env_id not in gymnasium.registry:
        with contextlib.suppress(ImportError), contextlib.redirect_stderr(io.StringIO()):
            import gymnasium_robotics

            gymnasium.register_envs(gymnasium_robotics)
    if env_id not in gymnasium.registry:
        return None
    spec = copy.deepcopy(gymnasium.registry[env_id])
    spec.max_episode_steps = max_episode_steps or spec.max_episode_steps
    return spec


def _buffers(episodes: Episodes) -> Iterator[Any]:
    """Minari's episodes: T+1 observations, T of everything else."""
    from minari.data_collector import EpisodeBuffer

    for first, last in zip(episodes.first, episodes.last, strict=True):
        rows = slice(first, last + 1)
        yield EpisodeBuffer(
            observations=np.concatenate((episodes.obs[rows], episodes.next_obs[last : last + 1])),
            actions=episodes.action[rows],
            rewards=episodes.reward[rows],
            terminations=episodes.terminal[rows],
            truncations=episodes.truncated[rows],
        )
