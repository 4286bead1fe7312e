import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from offdiff.cli import main
from offdiff.core.errors import InputError
from offdiff.data.convert import convert
from offdiff.data.dataset import Dataset
from offdiff.data.load import read_dataset

pytest.importorskip("minari")


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("OFFDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))
    return tmp_path / "minari"


@pytest.fixture(params=[True, False], ids=["successors", "no-successors"])
def source(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    path = tmp_path / "source.hdf5"
    obs = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["observations"] = obs
        file["actions"] = np.linspace(-1.37, 0.3, 14, dtype=np.float32).reshape(7, 2)
        file["rewards"] = np.linspace(0, 1, 7, dtype=np.float32)
        file["terminals"] = np.arange(7) == 2
        file["timeouts"] = np.arange(7) == 6
        if request.param:
            following = np.roll(obs, -1, axis=0)
            following[[2, 6]] = 100
            file["next_observations"] = following
        file.attrs.update(env_id="Hopper-v4", behaviour="me", action_high=[0.3, 0.4])
    return str(path)


def assert_equal(a: Dataset, b: Dataset) -> None:
    for name in a.episodes.__dataclass_fields__:
        assert_array_equal(getattr(a.episodes, name), getattr(b.episodes, name), name)
    keep = {"name": "", "suite": "", "source": "", "sha256": "", "notes": ()}
    # The space of Minari holds its bounds as float32.
    assert b.info.action_high == pytest.approx(a.info.action_high)
    keep["action_high"] = ()
    assert replace(a.info, **keep) == replace(b.info, **keep)  # type: ignore[arg-type]  # mixed


def test_there_and_back_is_exact(tmp_path: Path, source: str) -> None:
    original = read_dataset(source)
    convert(source, "offdiff/test-v0")
    assert_equal(original, read_dataset("offdiff/test-v0"))
    convert("offdiff/test-v0", str(tmp_path / "back.hdf5"))
    assert_equal(original, read_dataset(str(tmp_path / "back.hdf5")))


def test_refusals_write_nothing(tmp_path: Path, source: str, root: Path) -> None:
    taken = tmp_path / "taken.hdf5"
    taken.write_text("mine")
    with pytest.raises(InputError, match="exists already; pass --overwrite"):
        convert(source, str(taken))
    assert taken.read_text() == "mine"
    convert(source, str(taken), overwrite=True)
    assert_equal(read_dataset(source), read_dataset(str(taken)))
    for destination in ("a/b-v0", "out.csv", "ns/name"):
        with pytest.raises(InputError, match=r"neither a file ending in \.hdf5 nor a Minari id"):
            convert(source, destination)
    with pytest.raises(InputError, match="no such file"):
        convert(str(tmp_path / "none.hdf5"), "offdiff/test-v0")
    assert not root.exists()


def test_command_line(tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "convert", source, "offdiff/test-v0"]) == 0
    assert "offdiff/test-v0" in capsys.readouterr().out
    assert main(["data", "info", "offdiff/test-v0", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert (described["episodes"], described["steps"]) == (2, 7)
    assert main(["data", "info", source]) == 0
    assert "Hopper-v4" in capsys.readouterr().out
    assert main(["data", "list", "medium"]) == 0
    listed = capsys.readouterr().out
    assert "hopper-medium-v2" in listed
    assert "antmaze-medium-play-v2" in listed
    assert "maze2d-umaze-v1" not in listed
    assert main(["data", "list", "offdiff/"]) == 0
    assert "offdiff/test-v0" in capsys.readouterr().out
    assert main(["data", "info", "hopperr"]) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("offdiff: unknown dataset 'hopperr'; did you mean")
    assert complaint.count("\n") == 1
