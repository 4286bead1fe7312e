"""Whatever happens to a file, reading gives all episodes or one InputError."""

import io
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offdiff.core.errors import InputError
from offdiff.data.hdf5 import read_hdf5

ROWS = 12
NAMES = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
TYPES = ("f2", "f4", ">f4", "f8", "i4", "u1", "?", "S3", "c8", "O", "V2")
SHAPES = ((0,), (1,), (ROWS,), (ROWS, 1), (ROWS, 2), (ROWS - 1, 2), (ROWS, 0), (ROWS, 2, 2), ())


def sound() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(ROWS, 2)).astype(np.float32)
    ends = np.zeros((2, ROWS), bool)
    ends[0, 4] = ends[1, 11] = True
    return {
        "observations": obs,
        "actions": rng.uniform(-1, 1, (ROWS, 2)).astype(np.float32),
        "rewards": rng.normal(size=ROWS).astype(np.float32),
        "terminals": ends[0],
        "timeouts": ends[1],
        "next_observations": np.concatenate((obs[1:], obs[:1])),
    }


def packed(fields: dict[str, Any], compress: bool) -> bytes:
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        for name, value in fields.items():
            filtered = compress and np.ndim(value) > 0 and np.size(value) > 0
            file.create_dataset(name, data=value, compression="gzip" if filtered else None)
        file.attrs["env_id"] = "Hopper-v4"
        file.attrs["behaviour"] = "a text of some length, stored in the global heap"
    return memory.getvalue()


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    kind, shape = draw(st.sampled_from(TYPES)), draw(st.sampled_from(SHAPES))
    value = draw(st.sampled_from((0, 1, 0.5, -7, 300)))
    if kind == "O":
        return np.full(shape, "text", dtype=h5py.string_dtype())
    if kind == "V2":
        return np.zeros(shape, "V2")
    with np.errstate(invalid="ignore", over="ignore"):
        return np.full(shape, value).astype(kind)


@st.composite
def mutated_fields(draw: st.DrawFn) -> bytes:
    """Fields deleted, replaced, poisoned; the file itself is whole."""
    fields = sound()
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3)):
        if name not in fields:
            continue
        how = draw(st.sampled_from(("delete", "replace", "poison", "shorten", "retype")))
        array = np.asarray(fields[name])
        if how == "delete":
            del fields[name]
        elif how == "replace":
            fields[name] = draw(arrays())
        elif how == "shorten":
            fields[name] = array[: draw(st.integers(0, ROWS))] if array.ndim else array
        elif array.dtype.kind in "fiub" and array.size:
            kind = draw(st.sampled_from(("f2", "f4", "f8", ">f8")))
            fields[name] = array.astype(kind)
            if how == "poison":
                place = draw(st.integers(0, array.size - 1))
                poison = draw(st.sampled_from((np.nan, np.inf, -np.inf, 1e4, 1)))
                fields[name].flat[place] = poison
    return packed(fields, draw(st.booleans()))


@st.composite
def mutated_bytes(draw: st.DrawFn) -> bytes:
    """Bytes of a sound file cut off or changed."""
    content = bytearray(packed(sound(), draw(st.booleans())))
    if draw(st.booleans()):
        return bytes(content[: draw(st.integers(0, len(content)))])
    flips = st.tuples(st.integers(0, len(content) - 1), st.integers(1, 255))
    for place, mask in draw(st.lists(flips, min_size=1, max_size=8)):
        content[place] ^= mask
    return bytes(content)


def check(content: bytes, folder: Any) -> None:
    path = folder / "mutated.hdf5"
    path.write_bytes(content)
    refusal = ""
    try:
        episodes = read_hdf5(path).episodes
    except InputError as error:
        refusal = str(error)
    if refusal:
        assert str(path) in refusal
        assert "\n" not in refusal
    else:
        # Never a part of the file: every column has the rows of every other, and all is finite.
        assert len(episodes) == len(episodes.obs) == episodes.lengths.sum()
        for column in (episodes.obs, episodes.action, episodes.reward, episodes.next_obs):
            assert np.isfinite(column).all()
            assert len(column) == len(episodes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.mktemp("mutated")


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(content=mutated_fields())
def test_mutated_fields(content: bytes, folder: Any) -> None:
    check(content, folder)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(content=mutated_bytes())
def test_mutated_bytes(content: bytes, folder: Any) -> None:
    check(content, folder)


def test_the_unchanged_file_is_read(folder: Any) -> None:
    path = folder / "sound.hdf5"
    path.write_bytes(packed(sound(), compress=True))
    assert read_hdf5(path).episodes.lengths.tolist() == [5, 7]
