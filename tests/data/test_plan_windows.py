"""Windows for planners: rows, padding, returns to go, pairs."""

import numpy as np
import pytest
import torch

from offdiff.core.errors import InputError
from offdiff.data.episodes import Episodes
from offdiff.data.plan_windows import PlanBatch, PlanWindows, require_reach

CPU = torch.device("cpu")
DISCOUNT = 0.5


def episodes(*, successor_known: bool = True) -> Episodes:
    """A terminal episode of 3 steps (observations 0 to 3) and a truncated one of 4 (10 to 14)."""
    obs = np.array([[0], [1], [2], [10], [11], [12], [13]], np.float32)
    known = np.ones(7, np.bool_)
    known[[2, 6]] = successor_known
    return Episodes(
        obs=obs,
        action=np.arange(1, 8, dtype=np.float32)[:, None] / 10,
        reward=np.array([1, 2, 4, 1, 1, 1, 8], np.float32),
        next_obs=np.where(known[:, None], obs + 1, obs),
        terminal=np.array([0, 0, 1, 0, 0, 0, 0], np.bool_),
        truncated=np.array([0, 0, 0, 0, 0, 0, 1], np.bool_),
        successor_known=known,
    )


def cut(rows: int, stride: int = 1, *, lasting: bool = False, known: bool = True) -> PlanBatch:
    windows = PlanWindows.of(
        episodes(successor_known=known),
        rows,
        CPU,
        stride=stride,
        discount=DISCOUNT,
        lasting=lasting,
    )
    return windows.cut(torch.arange(len(windows)))


def test_a_window_begins_at_every_row_from_which_an_action_was_taken() -> None:
    batch = cut(2)
    assert batch.obs[:, 0, 0].tolist() == [0, 1, 2, 10, 11, 12, 13]
    assert batch.obs[:, 1, 0].tolist() == [1, 2, 3, 11, 12, 13, 14]
    assert batch.time.tolist() == [0, 1, 2, 0, 1, 2, 3]


def test_beyond_the_end_its_last_observation_is_repeated() -> None:
    batch = cut(4)
    assert batch.obs[1, :, 0].tolist() == [1, 2, 3, 3]
    assert batch.real[1].tolist() == [True, True, True, False]
    assert batch.ended[1].tolist() == [False, False, True, True]
    # A task that has ended stays so, and may be learned; what followed a time-out is unknown.
    assert batch.counts[1].all()
    assert batch.counts[5].tolist() == [True, True, True, False]
    assert cut(4, lasting=True).counts.all()


def test_returns_to_go_and_values() -> None:
    batch = cut(4)
    assert batch.to_go[0].tolist() == [7, 6, 4, 0]
    assert batch.value[0].tolist() == [1 + 2 / 2 + 4 / 4, 2 + 4 / 2, 4, 0]
    assert batch.to_go[3].tolist() == [11, 10, 9, 8]


def test_rewards_of_a_stride_telescope_to_the_value() -> None:
    batch = cut(2, stride=2)
    assert batch.obs[0, :, 0].tolist() == [0, 2]
    assert batch.reward[0, 0] == 1 + 2 / 2
    assert batch.reward[2, 0] == 4  # cut short by the task's end
    telescoped = batch.reward[:, 0] + DISCOUNT**2 * batch.value[:, 1]
    assert torch.allclose(telescoped[batch.pairs[:, 0]], batch.value[:, 0][batch.pairs[:, 0]])


def test_pairs_have_an_action_and_its_consequence() -> None:
    batch = cut(4)
    assert batch.pairs[0].tolist() == [True, True, True]
    assert batch.pairs[1].tolist() == [True, True, False]  # row 2 is the end of the task
    assert batch.pairs[6].tolist() == [True, False, False]


def test_an_unrecorded_last_observation_is_left_out() -> None:
    batch = cut(3, known=False)
    assert len(batch.obs) == 5  # nothing follows the last action of either episode
    assert batch.obs[4, :, 0].tolist() == [12, 13, 13]
    assert not batch.pairs[4, 1]


def test_longer_than_the_data_is_refused() -> None:
    with pytest.raises(InputError, match=r"reaches 6 steps ahead, and the longest episode has 4"):
        require_reach(episodes(), rows=4, stride=2)
    require_reach(episodes(), rows=3, stride=2)


def test_samples_are_windows_of_the_data() -> None:
    windows = PlanWindows.of(episodes(), 3, CPU)
    batch = windows.sample(500, generator=torch.Generator().manual_seed(0))
    steps = batch.obs[:, 1:, 0] - batch.obs[:, :-1, 0]
    assert set(steps.unique().tolist()) == {0, 1}
    assert len(batch.obs[:, 0, 0].unique()) == len(windows) == 7
