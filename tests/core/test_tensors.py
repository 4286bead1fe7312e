"""Files of tensors: read back as written, whatever the length of their header; pickles refused."""

from pathlib import Path

import pytest
import torch

from offdiff.core.errors import InputError
from offdiff.core.tensors import PICKLES, load_tensors, save_tensors


def test_headers_of_every_length_are_read(tmp_path: Path) -> None:
    # A header of 640 bytes makes a file begin as a pickle does: once mistaken for one.
    path, beginnings = tmp_path / "t.safetensors", set()
    for padding in range(0, 1600, 8):
        save_tensors(path, {"x": torch.ones(2)}, {"padding": "a" * padding})
        beginnings.add(path.read_bytes()[:2])
        tensors, meta = load_tensors(path)
        assert torch.equal(tensors["x"], torch.ones(2))
        assert len(meta["padding"]) == padding
    assert beginnings & set(PICKLES)


def test_pickles_are_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / "new.pt")
    torch.save({"x": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("new.pt", "old.pt"):
        with pytest.raises(InputError, match="holds a pickle"):
            load_tensors(tmp_path / name)
