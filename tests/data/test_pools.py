"""Pools: every seed draws from its own, every generation supplies the same share."""

import pytest
import torch

from offdiff.core.errors import InputError
from offdiff.core.seeding import SeedStreams
from offdiff.core.types import Batch, Spec
from offdiff.data.buffer import MixedReplay, ReplayBuffer
from offdiff.data.pools import Pools

SPEC, CPU = Spec(2, 1), torch.device("cpu")


def batch(n: int, value: float) -> Batch:
    return Batch(
        obs=torch.full((n, 2), value),
        action=torch.zeros(n, 1),
        reward=torch.arange(n, dtype=torch.float32),
        next_obs=torch.zeros(n, 2),
        terminal=torch.zeros(n),
        next_action=torch.zeros(n, 1),
    )


def streams(*seeds: int) -> SeedStreams:
    return SeedStreams(seeds, "test", CPU)


def test_seeds_draw_from_their_own_pools_in_equal_shares_of_generations() -> None:
    pools = Pools(2, 3, 100, SPEC, CPU)
    pools.put(0, [batch(100, 1), batch(10, -1)])
    pools.put(1, [batch(7, 2), batch(100, -2)])
    drawn = pools.sample(40_000, random=streams(0, 1))
    for row, values in ((0, (1, 2)), (1, (-1, -2))):
        for value in values:
            share = float((drawn.obs[row, :, 0] == value).float().mean())
            assert share == pytest.approx(0.5, abs=0.01), "whatever their sizes"
    few = drawn.reward[0][drawn.obs[0, :, 0] == 2]
    assert set(few.tolist()) == set(range(7)), "all rows of a pool, and nothing else"
    assert len(pools) == 217


def test_the_oldest_generation_is_replaced() -> None:
    pools = Pools(1, 2, 5, SPEC, CPU)
    for number, value in enumerate((1, 2, 3)):
        pools.put(number, [batch(5, value)])
    assert set(pools.sample(500, random=streams(0)).obs[0, :, 0].tolist()) == {2, 3}
    again = Pools(1, 2, 5, SPEC, CPU)
    for number in (1, 2):
        again.restore(number, pools.state(number))
    same = (p.sample(50, random=streams(0)).obs for p in (pools, again))
    assert torch.equal(*same), "every generation is back in its place"


def test_a_seed_draws_the_same_alone_and_beside_others() -> None:
    joint, alone = Pools(2, 1, 50, SPEC, CPU), Pools(1, 1, 50, SPEC, CPU)
    joint.put(0, [batch(50, 1), batch(50, 2)])
    alone.put(0, [batch(50, 2)])
    both = joint.sample(64, random=streams(4, 9))
    assert torch.equal(both.reward[1], alone.sample(64, random=streams(9)).reward[0])


def test_mixed_batches_have_exact_shares_and_separate_streams() -> None:
    real = ReplayBuffer(20, SPEC, CPU)
    real.extend(batch(20, 0))
    pools = Pools(1, 1, 20, SPEC, CPU)
    pools.put(0, [batch(20, 1)])
    first = MixedReplay(real, pools, 0.25, streams(1)).sample(32, random=streams(0))
    assert int(first.obs[..., 0].sum()) == 8
    other = MixedReplay(real, pools, 0.25, streams(2)).sample(32, random=streams(0))
    assert torch.equal(first.reward[:, :24], other.reward[:, :24]), "the real part is untouched"
    assert not torch.equal(first.reward[:, 24:], other.reward[:, 24:])


def test_sizes_that_do_not_fit_are_told() -> None:
    with pytest.raises(InputError, match=r"need \d{4,}\.\d GiB and cpu has .* lower --augment"):
        Pools(4, 2, 10**10, SPEC, CPU)
    pools = Pools(1, 1, 5, SPEC, CPU)
    with pytest.raises(ValueError, match="1 to 5 transitions, got 6"):
        pools.put(0, [batch(6, 0)])
    with pytest.raises(ValueError, match="got 0"):
        pools.put(0, [batch(0, 0)])
