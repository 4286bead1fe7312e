"""One pass over Minari's stored episodes: every array checked, then joined.

Minari itself validates nothing. Dimension letters: T steps of one episode, O observation, A action.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offdiff.core.errors import InputError
from offdiff.data import validate
from offdiff.data.episodes import BoolArray, Episodes, FloatArray
from offdiff.data.observations import ObsMode, concatenate, layout, leaves


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the pass gave."""

    episodes: Episodes
    obs_layout: str
    notes: tuple[str, ...]


@dataclass(kw_only=True)
class _Columns:
    """Checked pieces, one per stored episode, in Minari's order."""

    obs: list[FloatArray] = field(default_factory=list)
    next_obs: list[FloatArray] = field(default_factory=list)
    action: list[FloatArray] = field(default_factory=list)
    reward: list[FloatArray] = field(default_factory=list)
    terminal: list[BoolArray] = field(default_factory=list)
    truncated: list[BoolArray] = field(default_factory=list)
    known: list[BoolArray] = field(default_factory=list)


def read_episodes(source: str, stored: Any, obs_mode: ObsMode) -> Reading:
    """All episodes of an open `minari.MinariDataset`, actions in the environment's units.

    Raises InputError, naming the episode, for T instead of T+1 observations, columns of different
    lengths or widths, numbers that are not finite, and kinds that are not supported.
    """
    columns, order, open_ended = _Columns(), "", 0
    known = [
        bool(m.get("successor_known", True))
        for m in stored.storage.get_episode_metadata(stored.episode_indices)
    ]
    for position, episode in enumerate(_tracked(source, stored)):
        where = f"{source}, episode {episode.id}"
        parts = leaves(where, episode.observations, obs_mode)
        if position and layout(parts) != order:
            raise InputError(
                f"{where}: observations are {layout(parts)}, those of the first episode {order}"
            )
        order = layout(parts)
        open_ended += _append(columns, where, concatenate(where, parts), episode, known[position])
    if not columns.obs:
        raise InputError(f"{source}: holds no episodes; choose or record another dataset")
    _require_equal_widths(source, columns)
    notes = [f"{open_ended} episodes have no end flag; counted as truncated"] if open_ended else []
    if not all(known):
        notes.append(f"{known.count(False)} episodes were recorded without their last successor")
    episodes = Episodes(
        obs=np.concatenate(columns.obs),
        action=np.concatenate(columns.action),
        reward=np.concatenate(columns.reward),
        next_obs=np.concatenate(columns.next_obs),
        terminal=np.concatenate(columns.terminal),
        truncated=np.concatenate(columns.truncated),
        successor_known=np.concatenate(columns.known),
    )
    return Reading(episodes=episodes, obs_layout=order, notes=tuple(notes))


def _append(
    columns: _Columns, where: str, observations: NDArray[Any], episode: Any, known: bool
) -> bool:
    """Checks one episode and adds it; True if it had no end flag."""
    validate.require_continuous(where, "actions", np.asarray(episode.actions))
    reward = validate.column(where, "rewards", np.asarray(episode.rewards))
    steps = len(reward)
    obs = validate.rows(where, "observations", observations)
    if len(obs) != steps + 1:
        raise InputError(
            f"{where}: {len(obs)} observations for {steps} rewards, expected {steps + 1} (the last "
            "one follows the last action); record it again with every observation"
        )
    action = validate.rows(
        where, "actions", np.asarray(episode.actions).reshape(len(episode.actions), -1)
    )
    terminal = validate.flags(where, "terminations", np.asarray(episode.terminations))
    truncated = validate.flags(where, "truncations", np.asarray(episode.truncations))
    validate.require_same_length(
        where,
        {"rewards": reward, "actions": action, "terminations": terminal, "truncations": truncated},
    )
    truncated &= ~terminal
    open_ended = not (terminal[-1] or truncated[-1])
    truncated[-1] |= open_ended
    columns.obs.append(obs[:-1])
    columns.next_obs.append(obs[1:])
    columns.action.append(action)
    columns.reward.append(reward)
    columns.terminal.append(terminal)
    columns.truncated.append(truncated)
    columns.known.append(np.append(np.ones(steps - 1, bool), known))
    return open_ended


def _require_equal_widths(source: str, columns: _Columns) -> None:
    for name, pieces in (("observations", columns.obs), ("actions", columns.action)):
        widths = [piece.shape[1] for piece in pieces]
        odd = next((i for i, width in enumerate(widths) if width != widths[0]), None)
        if odd is not None:
            raise InputError(
                f"{source}: {name} have {widths[odd]} numbers in episode {odd} but {widths[0]} "
                "before; record them alike"
            )


def _tracked(source: str, stored: Any) -> Iterator[Any]:
    """The stored episodes, with a progress bar where it takes a while."""
    from rich.console import Console
    from rich.progress import track

    return iter(
        track(
            stored.iterate_episodes(),
            description=f"reading {source}",
            total=stored.total_episodes,
            console=Console(stderr=True),
            transient=True,
            disable=stored.total_episodes < 500,
        )
    )
