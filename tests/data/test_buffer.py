"""The replay buffer, in memory, mixed and memory-mapped."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offdiff.core.errors import InputError
from offdiff.core.seeding import SeedStreams
from offdiff.core.types import Batch, Spec
from offdiff.data import mapped as mapped_module
from offdiff.data.buffer import MixedReplay, ReplayBuffer, pack, unpack
from offdiff.data.mapped import MappedReplay, write_rows

CPU = torch.device("cpu")
SPEC = Spec(3, 2)


def numbered(start: int, count: int) -> Batch:
    """Transition k holds k in every field, so that a mixed-up row is seen."""
    k = torch.arange(start, start + count, dtype=torch.float32)
    obs, action = k[:, None].expand(-1, 3), k[:, None].expand(-1, 2)
    return Batch(obs, action, k, obs, k, action)


def streams(*seeds: int) -> SeedStreams:
    return SeedStreams(seeds, "batches", CPU)


def filled(count: int, start: int = 0) -> ReplayBuffer:
    buffer = ReplayBuffer(count, SPEC, CPU)
    buffer.extend(numbered(start, count))
    return buffer


def test_rows_and_fields_are_inverse() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((7, 3), (7, 2), (7,), (7, 3), (7,), (7, 2))
    batch = Batch(*(torch.randn(*shape, generator=generator) for shape in shapes))
    for before, after in zip(batch, unpack(pack(batch), SPEC), strict=True):
        assert torch.equal(before, after)


@given(capacity=st.integers(1, 20), sizes=st.lists(st.integers(1, 20), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_the_ring_holds_the_newest_rows(capacity: int, sizes: list[int]) -> None:
    buffer = ReplayBuffer(capacity, SPEC, CPU)
    written = 0
    for size in (min(size, capacity) for size in sizes):
        buffer.extend(numbered(written, size))
        written += size
    newest = set(range(max(0, written - capacity), written))
    assert len(buffer) == len(newest)
    held = unpack(buffer.rows[: len(buffer)], SPEC)
    assert {int(k) for k in held.reward} == newest
    assert torch.equal(held.obs[:, 0], held.reward)


def test_more_than_the_capacity_is_refused() -> None:
    with pytest.raises(ValueError, match="raise `capacity`"):
        ReplayBuffer(3, SPEC, CPU).extend(numbered(0, 4))


def test_a_sample_keeps_rows_whole_and_covers_all() -> None:
    batch = filled(50).sample(4000, random=streams(0))
    assert batch.obs.shape == (1, 4000, 3)
    assert batch.reward.shape == (1, 4000)
    assert torch.equal(batch.obs[..., 2], batch.reward)
    assert torch.equal(batch.next_action[..., 1], batch.terminal)
    counts = torch.bincount(batch.reward[0].long(), minlength=50)
    # 80 expected of each; five standard deviations of a binomial count.
    assert (counts - 80).abs().max() < 45


def test_a_seed_samples_the_same_alone_and_in_company() -> None:
    buffer = filled(100)
    joint = buffer.sample(32, random=streams(5, 6, 7))
    alone = buffer.sample(32, random=streams(6))
    assert torch.equal(joint.reward[1], alone.reward[0])
    assert not torch.equal(joint.reward[0], joint.reward[1])


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 16), (0.5, 32), (1.0, 64)])
def test_mixed_batches_hold_the_exact_share(share: float, expected: int) -> None:
    mixed = MixedReplay(filled(100), filled(100, start=1000), share)
    for _ in range(5):
        batch = mixed.sample(64, random=streams(0, 1))
        assert ((batch.reward >= 1000).sum(-1) == expected).all()
    assert len(mixed) == 200


@pytest.mark.parametrize("gap", [-1, 0, 32_768])
def test_the_mapped_store_gives_the_same_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gap: int
) -> None:
    # Four batches of 2 x 16 rows ahead, asked for in pieces of ten rows.
    monkeypatch.setattr(mapped_module, "LOOKAHEAD_BYTES", 4 * 2 * 16 * 4 * SPEC.row_width)
    monkeypatch.setattr(mapped_module, "PIECE_ROWS", 10)
    monkeypatch.setattr(mapped_module, "SMALL_GAP", gap)
    path = tmp_path / "rows.npy"
    write_rows(path, [numbered(0, 200), numbered(200, 100)], 300, SPEC)
    mapped, memory = MappedReplay(path, SPEC, CPU), filled(300)
    one, other = streams(0, 1), streams(0, 1)
    for _ in range(2 * 4 + 3):
        for a, b in zip(
            mapped.sample(16, random=one), memory.sample(16, random=other), strict=True
        ):
            assert torch.equal(a, b)
    state, wanted = one.state_dict(), other.state_dict()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)


def test_the_mapped_store_follows_streams_that_are_set_back(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    write_rows(path, [numbered(0, 200), numbered(200, 100)], 300, SPEC)
    mapped, random = MappedReplay(path, SPEC, CPU), streams(0)
    start = random.state_dict()
    first = [mapped.sample(8, random=random).reward.clone() for _ in range(5)]
    random.load_state_dict(start)
    again = [mapped.sample(8, random=random).reward.clone() for _ in range(5)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other_size = mapped.sample(5, random=random)
    assert other_size.reward.shape == (1, 5)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "rows.npy"
    foreign.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="no memory-mapped buffer"):
        MappedReplay(foreign, SPEC, CPU)
    write_rows(foreign, [numbered(0, 5)], 5, SPEC)
    with pytest.raises(InputError, match="14 numbers"):
        MappedReplay(foreign, Spec(4, 2), CPU)
