"""Fitted Q evaluation on problems whose values are known in closed form."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from offdiff.core.errors import InputError
from offdiff.data.episodes import Episodes
from offdiff.ope import FQEConfig, ValueEstimate, fitted_q_evaluation

GAMMA = 0.8
STATES = 5
FAST = FQEConfig(
    discount=GAMMA,
    updates=1_000,
    batch_size=128,
    hidden=(32,),
    learning_rate=5e-3,
    target_rate=0.05,
)


class Always:
    """The same action everywhere."""

    def __init__(self, action: float) -> None:
        self.action = action

    def act(self, obs: Tensor, /) -> Tensor:
        return torch.full((len(obs), 1), self.action)

    def reset(self, which: Tensor, /) -> None:
        pass


def chain(*, loop: bool = False, episodes: int = 60, horizon: int = 8) -> Episodes:
    """States 0..4 in a row, one-hot. Action +1 advances, -1 stays; arriving at state s pays s.

    The arrival at state 4 ends the task; with `loop` it leads back to 0 and only time ends it.
    Actions are random, every episode starts in state 0.
    """
    random = np.random.default_rng(0)
    rows = []
    for _ in range(episodes):
        s = 0
        for t in range(horizon):
            a = random.choice([-1.0, 1.0])
            following = s + (a > 0)
            terminal = not loop and following == STATES - 1
            rows.append((s, a, following % STATES, float(following), terminal, t == horizon - 1))
            s = following % STATES
            if terminal:
                break
    s, a, following, reward, terminal, last = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    one_hot = np.eye(STATES, dtype=np.float32)
    return Episodes(
        obs=one_hot[s.astype(int)],
        action=a.astype(np.float32)[:, None],
        reward=reward.astype(np.float32),
        next_obs=one_hot[following.astype(int)],
        terminal=terminal.astype(bool),
        truncated=(last & ~terminal.astype(bool)).astype(bool),
        successor_known=np.ones(len(s), bool),
    )


@pytest.fixture(scope="module")
def estimates() -> dict[str, ValueEstimate]:
    policies = {"advance": Always(1.0), "stay": Always(-1.0)}
    return fitted_q_evaluation(policies, chain(), FAST, seed=0, progress=False)


def test_exact_values_of_a_chain_that_ends(estimates: dict[str, ValueEstimate]) -> None:
    # 1 + 2 g + 3 g^2 + 4 g^3, then nothing: without the terminal mask it would go on
    want = sum((k + 1) * GAMMA**k for k in range(4))
    assert estimates["advance"].value == pytest.approx(want, abs=0.05)
    assert estimates["stay"].value == pytest.approx(0, abs=0.05)


def test_diagnostics(estimates: dict[str, ValueEstimate]) -> None:
    advance = estimates["advance"]
    assert advance.td_error < 0.1
    # best is to stand at state 1 and go on
    assert advance.q_max == pytest.approx(2 + 3 * GAMMA + 4 * GAMMA**2, abs=0.1)
    assert advance.q_min <= advance.low <= advance.value <= advance.high <= advance.q_max + 0.1
    # data actions are +-1: half of them are at distance 2 from either policy
    assert advance.far_actions == pytest.approx(0.5, abs=0.1)
    assert advance.far_actions + estimates["stay"].far_actions == pytest.approx(1)


def test_time_running_out_is_bootstrapped() -> None:
    # for ever round the loop, paid 1, 2, 3, 4, 5 a lap, from windows of 8 steps
    lap = sum((k + 1) * GAMMA**k for k in range(STATES))
    want = lap / (1 - GAMMA**STATES)
    result = fitted_q_evaluation(
        {"advance": Always(1.0)}, chain(loop=True), FAST, seed=1, progress=False
    )
    assert result["advance"].value == pytest.approx(want, rel=0.03)


def test_estimates_repeat_and_do_not_depend_on_company() -> None:
    short = replace(FAST, updates=100)

    def estimate(seed: int, *names: float) -> float:
        policies = {str(action): Always(action) for action in names}
        return fitted_q_evaluation(policies, chain(), short, seed=seed, progress=False)["1.0"].value

    alone = estimate(0, 1.0)
    assert estimate(0, 1.0) == alone
    assert estimate(0, -1.0, 1.0) == pytest.approx(alone, abs=1e-4)
    assert estimate(1, 1.0) != alone


def test_unfit_policies_and_settings_are_refused() -> None:
    with pytest.raises(InputError, match="discount must lie"):
        FQEConfig(discount=1.0)
    with pytest.raises(InputError, match="at least 1"):
        FQEConfig(updates=0)

    class Pair(Always):
        def act(self, obs: Tensor, /) -> Tensor:
            return torch.zeros(len(obs), 2)

    with pytest.raises(InputError, match="'pair' gives 2 action numbers, the data has 1"):
        fitted_q_evaluation({"pair": Pair(0)}, chain(), FAST, seed=0, progress=False)

    class Narrow(Always):
        def act(self, obs: Tensor, /) -> Tensor:
            return obs @ torch.zeros(3, 1)

    with pytest.raises(InputError, match="'narrow' cannot act on the data's 5"):
        fitted_q_evaluation({"narrow": Narrow(0)}, chain(), FAST, seed=0, progress=False)
