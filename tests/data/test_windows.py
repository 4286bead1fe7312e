"""Windows never leave an episode; every terminal is seen; rows decode to what was encoded."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from offdiff.core.errors import InputError
from offdiff.data.codec import Codec
from offdiff.data.episodes import Episodes
from offdiff.data.windows import Windows, episodes_hash, hold_out, window_starts

CPU = torch.device("cpu")


def numbered(ends: list[tuple[int, bool]], *, successor_known: bool = True) -> Episodes:
    """Episodes of given (length, terminal); observation = (episode, step), successor = step + 1."""
    lengths = [length for length, _ in ends]
    n = sum(lengths)
    episode = np.repeat(np.arange(len(ends)), lengths).astype(np.float32)
    step = np.concatenate([np.arange(length) for length in lengths]).astype(np.float32)
    last = np.cumsum(lengths) - 1
    terminal, truncated = np.zeros(n, bool), np.zeros(n, bool)
    terminal[last] = [t for _, t in ends]
    truncated[last] = [not t for _, t in ends]
    known = np.ones(n, bool)
    known[last] = successor_known
    rng = np.random.default_rng(0)
    return Episodes(
        obs=np.stack((episode, step), 1),
        action=rng.uniform(-0.99, 0.99, (n, 1)).astype(np.float32),
        reward=rng.normal(size=n).astype(np.float32),
        next_obs=np.stack((episode, step + 1), 1),
        terminal=terminal,
        truncated=truncated,
        successor_known=known,
    )


ENDS = st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(ends=ENDS, length=st.integers(1, 8), known=st.booleans())
def test_no_window_crosses_an_end_and_every_terminal_is_in_one(
    ends: list[tuple[int, bool]], length: int, known: bool
) -> None:
    episodes = numbered(ends, successor_known=known)
    fits = episodes.lengths - (~episodes.successor_known[episodes.last]) >= length
    if not (fits | episodes.terminal[episodes.last]).any():
        with pytest.raises(InputError, match="shorten the horizon"):
            Windows.of(episodes, length, CPU)
        return
    windows = Windows.of(episodes, length, CPU)
    cut = windows.cut(torch.arange(len(windows)))
    assert torch.equal(cut.obs[..., 0].amin(1), cut.obs[..., 0].amax(1)), "one episode each"
    steps = cut.obs[..., 1].diff(dim=1)
    assert torch.equal(steps, cut.mask.float()), "time passes inside the mask and stands after it"
    assert ((cut.terminal * cut.mask).sum(1) <= 1).all()
    assert torch.equal(cut.mask, cut.terminal.cumsum(1) - cut.terminal == 0)
    seen = {tuple(row) for row in cut.obs[:, :-1][(cut.terminal.bool() & cut.mask)].tolist()}
    assert seen == {tuple(row) for row in episodes.obs[episodes.terminal].tolist()}


def test_padding_is_the_absorbing_state_without_action_or_reward() -> None:
    cut = Windows.of(numbered([(3, True)]), 5, CPU).cut(torch.tensor([1]))
    assert cut.obs[0, :, 1].tolist() == [1, 2, 3, 3, 3, 3]
    assert cut.terminal[0].tolist() == [0, 1, 1, 1, 1]
    assert cut.action[0, 2:].abs().sum() == 0
    assert cut.reward[0, 2:].abs().sum() == 0


def test_windows_without_terminals_are_all_that_is_left_when_asked() -> None:
    episodes = numbered([(6, True), (6, False)])
    starts = window_starts(episodes, 4, terminals=False)
    assert starts.tolist() == [0, 1, 6, 7, 8]


def test_episodes_shorter_than_the_window_are_an_input_error() -> None:
    with pytest.raises(InputError, match=r"no window of 7 .* longest episode has 4; shorten"):
        Windows.of(numbered([(4, False), (3, False)]), 7, CPU)


def test_whole_episodes_are_held_out() -> None:
    episodes = numbered([(4, True)] * 40)
    train, held = hold_out(episodes, 0.05, seed=3)
    assert (train.n_episodes, held.n_episodes) == (38, 2)
    assert not set(train.obs[:, 0]) & set(held.obs[:, 0])
    with pytest.raises(InputError, match="single episode"):
        hold_out(numbered([(4, True)]), 0.05, seed=0)


def test_the_hash_sees_every_column() -> None:
    base = episodes_hash(numbered([(4, True)]))
    assert base == episodes_hash(numbered([(4, True)]))
    for name in ("obs", "action", "reward", "next_obs"):
        changed = numbered([(4, True)])
        getattr(changed, name)[2] += 1
        assert episodes_hash(changed) != base


@pytest.mark.parametrize("action_map", ["linear", "tanh"])
def test_decoding_gives_back_what_was_encoded(action_map: str) -> None:
    windows = Windows.of(numbered([(9, True), (5, False), (2, True)]), 4, CPU)
    cut = windows.cut(torch.arange(len(windows)))
    codec = Codec.fit(cut, action_map)  # type: ignore[arg-type]
    rows = codec.encode(cut)
    assert rows[~codec.slots.expand_as(rows)].abs().sum() == 0
    found = codec.decode(rows)
    assert torch.equal(found.mask, cut.mask)
    assert torch.equal(found.terminal, cut.terminal)
    for name in ("obs", "action", "reward"):
        assert_close(getattr(found, name), getattr(cut, name), atol=1e-4, rtol=0)


def test_columns_are_standardised_but_for_the_terminal_bit() -> None:
    windows = Windows.of(numbered([(30, True), (30, False)]), 4, CPU)
    cut = windows.cut(torch.arange(len(windows)))
    codec = Codec.fit(cut, "linear")
    rows = codec.encode(cut)[:, :-1][cut.mask]
    assert_close(rows[:, :4].mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    assert_close(rows[:, :4].std(0, correction=0), torch.ones(4), atol=1e-4, rtol=0)
    assert set(rows[:, codec.group("terminal")].flatten().tolist()) == {-1.0, 1.0}


def test_constant_columns_are_not_blown_up() -> None:
    episodes = numbered([(9, False)])
    cut = Windows.of(episodes, 3, CPU).cut(torch.arange(5))
    codec = Codec.fit(cut, "linear")  # the episode's number never changes
    rows = codec.encode(cut)
    assert rows[..., 0].abs().max() == 0
    rows[..., 0] += 0.1  # as a sampler may leave it
    assert torch.equal(codec.decode(rows).obs[..., 0], cut.obs[..., 0])


def test_alive_is_the_probability_that_no_terminal_came_before() -> None:
    cut = Windows.of(numbered([(3, True)]), 4, CPU).cut(torch.tensor([1]))
    codec = Codec.fit(cut, "linear")
    assert codec.alive(codec.encode(cut)).tolist() == [[1, 1, 0, 0]]


def test_action_derivative_matches_autograd() -> None:
    windows = Windows.of(numbered([(9, True), (9, False)]), 4, CPU)
    codec = Codec.fit(windows.cut(torch.arange(8)), "tanh")
    rows = torch.randn(3, 5, codec.columns, requires_grad=True)
    action, slope = codec.actions(rows)
    (gradient,) = torch.autograd.grad(action.sum(), rows)
    assert_close(slope, gradient[:, :-1, codec.group("action")])
