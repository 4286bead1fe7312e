"""Random streams, atomic files, names, the matrix-product check."""

from pathlib import Path

import pytest
import torch

from offdiff.core.errors import InputError
from offdiff.core.files import replacing, require_writable, write_text
from offdiff.core.numerics import choose_device, use_fastest_exact_matmul
from offdiff.core.registry import name_of, resolve
from offdiff.core.seeding import SeedStreams, derive_seed

CPU = torch.device("cpu")


def test_purposes_and_seeds_have_different_streams() -> None:
    seeds = {derive_seed(s, purpose) for s in range(50) for purpose in ("init", "batches", "eval")}
    assert len(seeds) == 150
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_streams_continue_from_their_state() -> None:
    streams = SeedStreams([1, 2], "test", CPU)
    streams.normal(5)
    twin = streams.clone()
    for draw in ("normal", "uniform"):
        assert torch.equal(getattr(streams, draw)(7), getattr(twin, draw)(7))
    assert torch.equal(streams.integers(10, 7), twin.integers(10, 7))


def test_integers_are_uniform() -> None:
    counts = torch.bincount(SeedStreams([0], "test", CPU).integers(10, 100_000)[0], minlength=10)
    assert (counts - 10_000).abs().max() < 500  # five standard deviations


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_places_are_told_before_anything_is_made(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="choose another place"):
        require_writable(file / "below")
    require_writable(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()


def test_names_resolve_both_ways() -> None:
    kind = resolve("learners", "iql")
    assert name_of("learners", kind) == "iql"
    assert resolve("learners", "offdiff.algos.bc:BCConfig").__name__ == "BCConfig"
    with pytest.raises(InputError, match="did you mean 'iql'"):
        resolve("learners", "iqll")
    with pytest.raises(InputError, match="cannot import"):
        resolve("learners", "no_such_module:Thing")
    with pytest.raises(InputError, match="has no"):
        resolve("learners", "offdiff.algos.bc:Thing")


def test_unknown_and_absent_devices_are_named() -> None:
    with pytest.raises(InputError, match="choose auto"):
        choose_device("tpu9")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="--device cpu"):
            choose_device("cuda")


def test_the_chosen_matrix_product_is_float32() -> None:
    assert use_fastest_exact_matmul() in ("onednn", "default")
    a, b = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(3))
    exact = a.double() @ b.double()
    assert float(((a @ b) - exact).abs().max() / exact.abs().max()) < 2e-6
