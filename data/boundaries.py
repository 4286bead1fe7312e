"""Where episodes end in a file of flat rows.

Dimension letters: N rows, O observation, A action.
"""

from dataclasses import dataclass

import numpy as np

from offdiff.core.errors import InputError
from offdiff.data.episodes import BoolArray, Episodes, FloatArray
from offdiff.data.validate import BLOCK

SEAM_TOLERANCE = 1e-6
"""A stored successor that differs more from the next row ends an episode, as in IQL's code."""


@dataclass(frozen=True, kw_only=True)
class FlatRows:
    """Checked columns of one file, and what is known of the task they come from."""

    source: str
    obs: FloatArray
    """(N, O)"""
    action: FloatArray
    """(N, A)"""
    reward: FloatArray
    """(N,)"""
    terminal: BoolArray
    """(N,)"""
    timeout: BoolArray | None
    """(N,)"""
    next_obs: FloatArray | None
    """(N, O)"""
    successor_known: BoolArray | None
    """(N,), None if every stored successor is a true one"""
    family: str
    horizon: int | None
    """Step limit while the data were recorded, None if not known."""


def episodes_from_rows(rows: FlatRows) -> tuple[Episodes, list[str]]:
    """Cuts rows into episodes; also says, in words, what had to be decided on the way.

    Timeouts never become terminals. A row that is both counts as terminal. A row whose stored
    successor is not the next row's observation ends an episode too: D4RL's medium-expert files
    carry no flag at the seam of their halves. An unmarked last row is a truncation, for D4RL's
    files are cut at a round number of rows.

    Raises InputError if no episode ends, if ends cannot be told, or if nothing is usable.
    """
    notes: list[str] = []
    terminal, truncated = _flagged_ends(rows, notes)
    seam = _seams(rows, terminal | truncated)
    if seam.any():
        notes.append(f"{seam.sum()} episode ends had no flag; cut where successors disagree")
    truncated = truncated | seam
    if not (terminal | truncated).any():
        raise InputError(
            f"{rows.source}: no row of terminals or timeouts is set, so no episode ends; "
            "mark the last row of every episode in timeouts"
        )
    if not (terminal[-1] or truncated[-1]):
        truncated[-1] = True
        notes.append("the last episode is cut off by the end of the file; counted as truncated")
    episodes = _assemble(rows, terminal, truncated)
    if not (episodes.successor_known | episodes.terminal).any():
        raise InputError(
            f"{rows.source}: all {episodes.n_episodes} episodes are too short for a transition "
            "(one truncated step each); record longer ones or add next_observations"
        )
    return episodes, notes


def _flagged_ends(rows: FlatRows, notes: list[str]) -> tuple[BoolArray, BoolArray]:
    """Terminal and truncated rows as far as flags or the step limit tell."""
    terminal = rows.terminal
    if rows.timeout is not None:
        both = int((terminal & rows.timeout).sum())
        if both:
            notes.append(
                f"{both} rows are terminal and timed out; counted as terminal (D4RL drops them)"
            )
        return terminal, rows.timeout & ~terminal
    if rows.family == "kitchen":
        notes.append("terminals of kitchen files mark the end of a recording: read as timeouts")
        return np.zeros_like(terminal), terminal.copy()
    if rows.next_obs is not None:
        return terminal, np.zeros_like(terminal)
    if rows.horizon is None:
        raise InputError(
            f"{rows.source}: timeouts and next_observations are absent, so ends by time limit "
            "cannot be told; add one of them, or a file attribute max_episode_steps"
        )
    notes.append(
        f"no timeouts in the file; episodes are cut after {rows.horizon} steps, as in D4RL"
    )
    return terminal, _counted_timeouts(terminal, rows.horizon)


def _counted_timeouts(terminal: BoolArray, horizon: int) -> BoolArray:
    """Every `horizon`-th row after a start is a timeout, unless it is terminal."""
    index = np.arange(len(terminal))
    first_after_terminal = np.concatenate(([0], np.where(terminal, index + 1, 0)[:-1]))
    steps = index - np.maximum.accumulate(first_after_terminal) + 1
    timeout: BoolArray = (steps % horizon == 0) & ~terminal
    return timeout


def _seams(rows: FlatRows, ended: BoolArray) -> BoolArray:
    """Rows inside a supposed episode whose successor is not the next row."""
    seam = np.zeros_like(ended)
    if rows.next_obs is None:
        return seam
    for start in range(0, len(seam) - 1, BLOCK):
        stop = min(start + BLOCK, len(seam) - 1)
        differs = (rows.next_obs[start:stop] != rows.obs[start + 1 : stop + 1]).any(axis=1)
        seam[start:stop] = differs & ~ended[start:stop]
    suspects = np.flatnonzero(seam)
    expected = rows.obs[suspects + 1].astype(np.float64)
    error = np.abs(rows.next_obs[suspects] - expected)
    apart = (error > SEAM_TOLERANCE * np.maximum(1, np.abs(expected))).any(axis=1)
    seam[suspects[~apart]] = False
    inside = int((~ended[:-1]).sum())
    if 2 * seam.sum() > inside:
        raise InputError(
            f"{rows.source}: next_observations disagree with the next row's observations in "
            f"{seam.sum()} of {inside} rows inside episodes (first: row {np.argmax(seam)}); "
            "store rows in time order, or leave next_observations out"
        )
    return seam


def _assemble(rows: FlatRows, terminal: BoolArray, truncated: BoolArray) -> Episodes:
    last = terminal | truncated
    if rows.next_obs is None:
        next_obs = np.concatenate((rows.obs[1:], rows.obs[-1:]))
        next_obs[last] = rows.obs[last]
        known = ~last
    elif rows.successor_known is None:
        next_obs, known = rows.next_obs, np.ones_like(last)
    else:
        next_obs, known = rows.next_obs, rows.successor_known | ~last
    return Episodes(
        obs=rows.obs,
        action=rows.action,
        reward=rows.reward,
        next_obs=next_obs,
        terminal=terminal,
        truncated=truncated,
        successor_known=known,
    )
