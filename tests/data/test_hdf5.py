import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from offdiff.core.errors import InputError
from offdiff.data.episodes import Episodes
from offdiff.data.hdf5 import read_hdf5, write_hdf5
from offdiff.data.hdf5_heap import has_endless_heap
from offdiff.data.preprocess import ObservationStats
from offdiff.data.validate import BLOCK

Fields = dict[str, Any]
N = 6


def fields() -> Fields:
    """Two episodes of three rows: the first ends terminal, the second timed out."""
    obs = np.arange(2 * N, dtype=np.float32).reshape(N, 2)
    next_obs = np.concatenate((obs[1:], [[90.0, 91.0]])).astype(np.float32)
    next_obs[2] = [80.0, 81.0]
    return {
        "observations": obs,
        "actions": np.linspace(-1, 1, N, dtype=np.float32)[:, None],
        "rewards": np.arange(N, dtype=np.float32),
        "terminals": np.array([0, 0, 1, 0, 0, 0], bool),
        "timeouts": np.array([0, 0, 0, 0, 0, 1], bool),
        "next_observations": next_obs,
    }


def store(path: Path, data: Fields, **attributes: object) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in data.items():
            file[name] = value
        file.attrs.update(attributes)
    return path


def assert_same(a: Episodes, b: Episodes) -> None:
    for name in a.__dataclass_fields__:
        assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_reads_what_is_stored(tmp_path: Path) -> None:
    data = fields()
    episodes = read_hdf5(store(tmp_path / "x.hdf5", data)).episodes
    assert_array_equal(episodes.obs, data["observations"])
    assert_array_equal(episodes.next_obs, data["next_observations"])
    assert_array_equal(episodes.terminal, data["terminals"])
    assert_array_equal(episodes.truncated, data["timeouts"])
    assert episodes.successor_known.all()
    assert episodes.returns.tolist() == [3.0, 12.0]


def test_columns_float64_and_infos_dataset_are_accepted(tmp_path: Path) -> None:
    plain = read_hdf5(store(tmp_path / "x.hdf5", fields())).episodes
    data = fields()
    data["rewards"] = data["rewards"].astype(np.float64)[:, None]
    data["terminals"] = data["terminals"].astype(np.float32)[:, None]
    data["observations"] = data["observations"].astype(">f8")
    data["infos"] = np.array([b"kitchen"])
    assert_same(plain, read_hdf5(store(tmp_path / "y.hdf5", data)).episodes)


def test_without_successors_the_next_row_is_one_but_never_of_the_next_episode(
    tmp_path: Path,
) -> None:
    data = fields()
    del data["next_observations"]
    episodes = read_hdf5(store(tmp_path / "x.hdf5", data)).episodes
    assert episodes.successor_known.tolist() == [True, True, False, True, True, False]
    assert_array_equal(episodes.next_obs[[0, 1, 3, 4]], episodes.obs[[1, 2, 4, 5]])
    # Rows 2 and 5 end episodes: a copy of their own observation, not row 3's.
    assert_array_equal(episodes.next_obs[[2, 5]], episodes.obs[[2, 5]])


def test_a_row_that_is_terminal_and_timed_out_is_terminal(tmp_path: Path) -> None:
    data = fields()
    data["timeouts"][2] = True
    recording = read_hdf5(store(tmp_path / "x.hdf5", data))
    assert recording.episodes.terminal.tolist() == [False, False, True, False, False, False]
    assert not recording.episodes.truncated[2]
    assert any("terminal and timed out" in note for note in recording.notes)


def test_unmarked_last_row_is_a_truncation(tmp_path: Path) -> None:
    data = fields()
    data["timeouts"][:] = False
    recording = read_hdf5(store(tmp_path / "x.hdf5", data))
    assert recording.episodes.truncated.tolist() == [False] * 5 + [True]
    assert any("end of the file" in note for note in recording.notes)


def test_seam_without_a_flag_is_cut(tmp_path: Path) -> None:
    # The case of D4RL's medium-expert files: two halves, no flag between them.
    data = fields()
    data["terminals"][:] = False
    recording = read_hdf5(store(tmp_path / "x.hdf5", data))
    assert recording.episodes.truncated.tolist() == [False, False, True, False, False, True]
    assert recording.episodes.successor_known.all()
    assert any("had no flag" in note for note in recording.notes)


def test_successors_unlike_the_next_rows_are_refused(tmp_path: Path) -> None:
    data = fields()
    data["next_observations"] = data["next_observations"] + 1
    with pytest.raises(InputError, match=r"next_observations disagree .* store rows in time order"):
        read_hdf5(store(tmp_path / "x.hdf5", data))


def test_kitchen_terminals_are_timeouts(tmp_path: Path) -> None:
    data = fields()
    del data["timeouts"], data["next_observations"]
    data["terminals"] = np.array([0, 0, 1, 0, 0, 1], np.float32)
    name = "kitchen_microwave_kettle_light_slider-v0.hdf5"
    episodes = read_hdf5(store(tmp_path / name, data)).episodes
    assert not episodes.terminal.any()
    assert_array_equal(episodes.last, [2, 5])


def test_without_timeouts_ends_are_counted_only_up_to_a_known_horizon(tmp_path: Path) -> None:
    data = fields()
    del data["timeouts"], data["next_observations"]
    with pytest.raises(InputError, match=r"x\.hdf5: timeouts and next_observations are absent"):
        read_hdf5(store(tmp_path / "x.hdf5", data))
    data["terminals"] = np.array([0, 0, 0, 1, 0, 0], bool)
    episodes = read_hdf5(store(tmp_path / "y.hdf5", data, max_episode_steps=3)).episodes
    # Three steps, timeout; one step, terminal; two steps, end of the file.
    assert episodes.lengths.tolist() == [3, 1, 2]
    assert episodes.terminal.tolist() == [False, False, False, True, False, False]


def test_without_timeouts_successors_tell_the_ends(tmp_path: Path) -> None:
    data = fields()
    del data["timeouts"]
    episodes = read_hdf5(store(tmp_path / "x.hdf5", data)).episodes
    assert_array_equal(episodes.last, [2, 5])


@pytest.mark.parametrize("known", [True, False])
def test_round_trip_is_exact(tmp_path: Path, known: bool) -> None:
    data = fields()
    if not known:
        del data["next_observations"]
    first = read_hdf5(store(tmp_path / "x.hdf5", data)).episodes
    attributes = {"env_id": "Hopper-v4", "action_low": (-2.0,), "max_episode_steps": 3}
    write_hdf5(tmp_path / "y.hdf5", first, attributes)
    second = read_hdf5(tmp_path / "y.hdf5")
    assert_same(first, second.episodes)
    assert second.attributes["env_id"] == "Hopper-v4"
    assert second.attributes["action_low"] == [-2.0]
    assert second.task.env_id == "Hopper-v4"


def test_failed_writing_leaves_what_was_there(tmp_path: Path) -> None:
    episodes = read_hdf5(store(tmp_path / "x.hdf5", fields())).episodes
    before = (tmp_path / "x.hdf5").read_bytes()
    with pytest.raises(TypeError):
        write_hdf5(tmp_path / "x.hdf5", episodes, {"env_id": object()})  # type: ignore[dict-item]  # on purpose
    assert (tmp_path / "x.hdf5").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.hdf5"]


def change(field: str, value: Any) -> Callable[[Fields], None]:
    def edit(data: Fields) -> None:
        data[field] = value(data[field]) if callable(value) else value

    return edit


def with_value(index: Any, value: float) -> Callable[[Any], Any]:
    def edit(array: Any) -> Any:
        array = array.copy()
        array[index] = value
        return array

    return edit


BAD = {
    "nan": (change("observations", with_value((4, 1), np.nan)), "observations holds nan in row 4"),
    "inf": (change("rewards", with_value(3, np.inf)), "rewards holds inf in row 3"),
    "too large": (
        change("actions", lambda a: a.astype("f8") * 1e300),
        r"actions holds -1e\+300 in row 0",
    ),
    "text": (change("rewards", np.array([b"a"] * N)), "rewards holds .*expected numbers"),
    "complex": (change("observations", lambda a: a + 1j), "observations holds complex"),
    "rank": (change("observations", lambda a: a[:, 0]), r"observations has shape \(6,\)"),
    "images": (change("observations", lambda a: a[:, None]), r"shape \(6, 1, 2\)"),
    "wide rewards": (change("rewards", np.zeros((N, 2))), r"rewards has shape \(6, 2\)"),
    "lengths": (change("actions", lambda a: a[:4]), "actions has 4 rows but observations has 6"),
    "successor width": (
        change("next_observations", np.zeros((N, 3))),
        "next_observations have 3 numbers per row but observations 2",
    ),
    "flags": (change("terminals", lambda a: a + 0.5), "terminals holds 0.5 in row 0"),
    "discrete": (change("actions", np.zeros((N, 1), np.int64)), "actions are discrete"),
    "scalar": (change("rewards", 3.0), "rewards is a single value"),
    "nothing": (change("rewards", h5py.Empty("f")), "rewards is a single value"),
    "group": (change("rewards", {}), "rewards is a group"),
    "no width": (change("actions", np.zeros((N, 0), np.float32)), "actions is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_fields_are_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    edit, message = BAD[case]
    data = fields()
    edit(data)
    path = tmp_path / "x.hdf5"
    with h5py.File(path, "w") as file:
        for name, value in data.items():
            if isinstance(value, dict):
                file.create_group(name)
            else:
                file[name] = value
    with pytest.raises(InputError, match=message) as caught:
        read_hdf5(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["observations", "actions", "rewards", "terminals"])
def test_absent_field(tmp_path: Path, field: str) -> None:
    data = fields()
    del data[field]
    with pytest.raises(InputError, match=f"'{field}' is absent, found .*a D4RL file needs"):
        read_hdf5(store(tmp_path / "x.hdf5", data))


def test_empty_columns(tmp_path: Path) -> None:
    data = {name: value[:0] for name, value in fields().items()}
    with pytest.raises(InputError, match="is empty"):
        read_hdf5(store(tmp_path / "x.hdf5", data))


def test_no_episode_end(tmp_path: Path) -> None:
    data = fields()
    del data["next_observations"]
    data["terminals"][:] = data["timeouts"][:] = False
    with pytest.raises(InputError, match="no episode ends; mark the last row"):
        read_hdf5(store(tmp_path / "x.hdf5", data))


def test_episodes_too_short(tmp_path: Path) -> None:
    data = fields()
    del data["next_observations"]
    data["terminals"][:], data["timeouts"][:] = False, True
    with pytest.raises(InputError, match="all 6 episodes are too short"):
        read_hdf5(store(tmp_path / "x.hdf5", data))


def test_foreign_truncated_and_missing_files(tmp_path: Path) -> None:
    path = store(tmp_path / "x.hdf5", fields())
    whole = path.read_bytes()
    for content in (b"", b"<html>404</html>", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.hdf5: not a readable HDF5 file"):
            read_hdf5(path)
    with pytest.raises(InputError, match="no such file"):
        read_hdf5(tmp_path / "none.hdf5")


def test_claims_larger_than_the_file_are_refused(tmp_path: Path) -> None:
    path = store(tmp_path / "x.hdf5", fields())
    with h5py.File(path, "a") as file:
        del file["rewards"]
        # 4 TB that were never written: HDF5 stores nothing, reading would allocate it all.
        file.create_dataset("rewards", shape=(1 << 40,), dtype="f4", chunks=(1 << 20,))
    with pytest.raises(InputError, match="rewards claims 4398046511104 bytes"):
        read_hdf5(path)


def test_damage_that_libhdf5_never_returns_from_is_refused(tmp_path: Path) -> None:
    path = store(tmp_path / "x.hdf5", fields(), env_id="Hopper-v4")
    content = bytearray(path.read_bytes())
    assert not has_endless_heap(path)
    # The first object of the heap is the text; its length, 9, becomes one that swallows the rest.
    length_at = content.index(b"GCOL") + 16 + 8
    assert content[length_at] == 9
    content[length_at + 1] = 1
    path.write_bytes(content)
    assert has_endless_heap(path)
    with pytest.raises(InputError, match="global heap"):
        read_hdf5(path)


@pytest.mark.parametrize("value", [0, -3, 2.5, "many", np.nan])
def test_bad_horizon_attribute(tmp_path: Path, value: object) -> None:
    with pytest.raises(InputError, match="max_episode_steps"):
        read_hdf5(store(tmp_path / "x.hdf5", fields(), max_episode_steps=value))


def test_a_text_that_claims_gigabytes_is_refused(tmp_path: Path) -> None:
    path = store(tmp_path / "x.hdf5", fields(), env_id="Hopper-v4")
    content = bytearray(path.read_bytes())
    reference = content.index(b"\x09\x00\x00\x00" + content.index(b"GCOL").to_bytes(8, "little"))
    content[reference + 3] = 0x8F
    path.write_bytes(content)
    with pytest.raises(InputError, match="global heap"):
        read_hdf5(path)


def test_a_file_is_read_and_converted_without_entering_memory_as_a_whole(tmp_path: Path) -> None:
    n, width = 400_000, 40
    generator = np.random.default_rng(0)
    path = tmp_path / "large.hdf5"
    obs = generator.standard_normal((n + 1, width), dtype=np.float32)
    last = np.arange(n) % 1000 == 999
    with h5py.File(path, "w") as file:
        file["observations"], file["next_observations"] = obs[:-1], obs[1:]
        file["actions"] = np.zeros((n, 2), np.float32)
        file["rewards"] = np.ones(n, np.float32)
        file["terminals"], file["timeouts"] = np.zeros(n, bool), last
    del obs
    (tmp_path / "scratch").mkdir()

    tracemalloc.start()
    episodes = read_hdf5(path, scratch=tmp_path / "scratch").episodes
    stats = ObservationStats.of(episodes)
    total = 0.0
    for start in range(0, n, BLOCK):
        rows = np.arange(start, min(start + BLOCK, n))
        total += float(episodes.transitions_at(rows, "strict").reward.sum())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert total == n
    assert peak < path.stat().st_size / 2
    whole = read_hdf5(path).episodes
    assert np.array_equal(whole.next_obs, episodes.next_obs)
    assert np.array_equal(ObservationStats.of(whole).std, stats.std)
    expected = whole.obs.std(axis=0, dtype=np.float64) + 1e-3
    np.testing.assert_allclose(stats.std, expected, rtol=1e-6)
