"""From episodes to transitions: what each mode keeps, and every known way to get it wrong."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offdiff.core.errors import InputError
from offdiff.data.episodes import Episodes


def episodes(*lengths_and_ends: tuple[int, str], known: bool = True) -> Episodes:
    """Row i observes i and acts i/100; a successor at an end is 1000 + i. "t"erminal, "o"ut."""
    n = sum(length for length, _ in lengths_and_ends)
    rows = np.arange(n, dtype=np.float32)
    last = np.cumsum([length for length, _ in lengths_and_ends]) - 1
    terminal, truncated = np.zeros(n, bool), np.zeros(n, bool)
    for row, (_, end) in zip(last, lengths_and_ends, strict=True):
        (terminal if end == "t" else truncated)[row] = True
    next_obs = rows + 1
    next_obs[last] = 1000 + last if known else last
    successor_known = np.ones(n, bool)
    successor_known[last] = known
    return Episodes(
        obs=rows[:, None],
        action=rows[:, None] / 100,
        reward=rows,
        next_obs=next_obs[:, None],
        terminal=terminal,
        truncated=truncated,
        successor_known=successor_known,
    )


THREE = ((3, "t"), (3, "o"), (2, "t"))


def test_strict_keeps_every_row_with_its_true_successor() -> None:
    batch = episodes(*THREE).transitions("strict")
    assert batch.obs[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert batch.next_obs[:, 0].tolist() == [1, 2, 1002, 4, 5, 1005, 7, 1007]
    # A timeout (row 5) is no terminal: the learner bootstraps there.
    assert batch.terminal.tolist() == [0, 0, 1, 0, 0, 0, 0, 1]


def test_strict_without_successors_loses_timeouts_but_keeps_terminal_rewards() -> None:
    batch = episodes(*THREE, known=False).transitions("strict")
    assert batch.obs[:, 0].tolist() == [0, 1, 2, 3, 4, 6, 7]
    assert batch.reward[batch.terminal == 1].tolist() == [2, 7]


def test_d4rl_compat_is_qlearning_dataset() -> None:
    batch = episodes(*THREE).transitions("d4rl_compat")
    # Rule 2: the timed-out row 5 is skipped. Rule 4: the last row of the file is never used.
    assert batch.obs[:, 0].tolist() == [0, 1, 2, 3, 4, 6]
    # Rule 1: the successor is the next row, for the terminal row 2 that of the next episode.
    assert batch.next_obs[:, 0].tolist() == [1, 2, 3, 4, 5, 7]
    # Rule 3: terminals only.
    assert batch.terminal.tolist() == [0, 0, 1, 0, 0, 0]


def test_a_timeout_episode_of_1000_steps_gives_999_transitions() -> None:
    assert len(episodes((1000, "o"), (5, "t")).transitions("d4rl_compat").reward) == 999 + 4
    assert len(episodes((1000, "o"), (5, "t"), known=False).transitions("strict").reward) == 1004
    assert len(episodes((1000, "o"), (5, "t")).transitions("strict").reward) == 1005


def test_the_next_action_never_comes_from_another_episode_unmasked() -> None:
    batch = episodes(*THREE).transitions("strict", need_next_action=True)
    assert batch.obs[:, 0].tolist() == [0, 1, 2, 3, 4, 6, 7]
    inside = batch.terminal == 0
    assert (batch.next_action[inside] - batch.action[inside]).mul(100).round().unique().item() == 1


def test_nothing_usable() -> None:
    with pytest.raises(InputError, match="no transition is usable"):
        episodes((1, "o"), (1, "o"), known=False).transitions("strict")


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.tuples(st.integers(1, 6), st.sampled_from("to")), min_size=1, max_size=8),
    known=st.booleans(),
)
def test_invariants(shape: list[tuple[int, str]], known: bool) -> None:
    data = episodes(*shape, known=known)
    timeouts = sum(end == "o" for _, end in shape)
    assert data.n_episodes == len(shape)
    assert data.lengths.tolist() == [length for length, _ in shape]
    assert data.returns.sum() == data.reward.sum()
    expected = len(data) - (0 if known else timeouts)
    if expected:
        batch = data.transitions("strict")
        assert len(batch.reward) == expected
        assert batch.terminal.sum() == len(shape) - timeouts
        # Inside an episode time goes on by one; at an end nothing of another episode appears.
        step = (batch.next_obs - batch.obs)[:, 0]
        assert set(step.tolist()) <= {1.0, 1000.0, 0.0}
    compat = len(data) - timeouts - (shape[-1][1] == "t")
    if compat:
        assert len(data.transitions("d4rl_compat").reward) == compat


def test_select_and_best_keep_whole_episodes() -> None:
    data = episodes(*THREE)  # returns 3, 12, 13
    assert data.select(np.array([2, 0])).obs[:, 0].tolist() == [6, 7, 0, 1, 2]
    assert data.best(0.34, "episodes").obs[:, 0].tolist() == [6, 7]
    # By steps: 2 of 8 rows are fewer than 30 %, so the episode that crosses the share comes too.
    assert data.best(0.3, "steps").obs[:, 0].tolist() == [3, 4, 5, 6, 7]


def test_best_counts_shares_as_decimals() -> None:
    # 0.29 * 100 is 28.999999999999996 in binary.
    assert episodes(*[(1, "t")] * 100).best(0.29, "episodes").n_episodes == 29


def test_malformed_episodes_are_a_bug() -> None:
    data = episodes((2, "t"))
    with pytest.raises(ValueError, match="must end an episode"):
        replace(data, terminal=data.truncated)
