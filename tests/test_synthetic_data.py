"""Synthetic windows as a dataset: what becomes an episode, and what is kept beside it."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from offdiff.core.errors import InputError
from offdiff.core.files import sha256
from offdiff.core.types import Trajectories
from offdiff.data.dataset import DatasetInfo, ScoreRange
from offdiff.data.load import load_dataset
from offdiff.synthetic_data import Provenance, as_dataset, write_synthetic

BEHAVIOUR = "synthetic: pgd from hopper-medium-v2"


def windows(mask: list[str], terminal: list[str] | None = None) -> Trajectories:
    """Random windows; "x" in a mask is a transition, "x" in terminal one that ends the task."""
    random = torch.Generator().manual_seed(0)
    n, steps = len(mask), len(mask[0])

    def bits(rows: list[str]) -> Tensor:
        return torch.tensor([[letter == "x" for letter in row] for row in rows])

    return Trajectories(
        obs=torch.randn(n, steps + 1, 11, generator=random),
        action=torch.rand(n, steps, 3, generator=random) * 2 - 1,
        reward=torch.randn(n, steps, generator=random),
        terminal=bits(terminal or ["." * steps] * n).float(),
        mask=bits(mask),
    )


def info(**changes: Any) -> DatasetInfo:
    values: dict[str, Any] = {
        "name": "hopper-medium-v2",
        "suite": "d4rl",
        "source": "hopper.hdf5",
        "sha256": "f" * 64,
        "family": "locomotion",
        "env_id": "Hopper-v4",
        "max_episode_steps": 1000,
        "score_range": ScoreRange(minimum=-20.0, maximum=3234.3, source="d4rl_infos"),
        "behaviour": "SAC",
    }
    return DatasetInfo(**values | changes)


def provenance(**changes: Any) -> Provenance:
    values: dict[str, Any] = {
        "augmenter": "pgd",
        "config": {"levels": 16, "strength": "auto"},
        "source": "hopper-medium-v2",
        "data_hash": "d" * 64,
        "seed": 7,
        "made_with": {"model_hash": "0123456789abcdef"},
    }
    return Provenance(**values | changes)


@pytest.mark.parametrize(
    ("mask", "terminal", "lengths", "ends"),
    [
        (["xxxx"], None, [4], [False]),
        (["xxxx", "xxxx"], None, [4, 4], [False, False]),
        (["xx.."], [".xxx"], [2], [True]),  # cut at a terminal
        (["x.xx"], None, [1, 2], [False, False]),  # a filter dropped the second
        (["x.xx"], ["...x"], [1, 2], [False, True]),
        (["....", "xxxx", "...."], None, [4], [False]),
        (["...x", "x..."], None, [1, 1], [False, False]),  # neighbours in memory, not in time
        (["xx.."], [".x.."], [2], [True]),
        (["xxxx"], [".x.."], [2, 2], [True, False]),  # whoever forgot to cut there
    ],
)
def test_every_run_of_transitions_is_an_episode(
    mask: list[str], terminal: list[str] | None, lengths: list[int], ends: list[bool]
) -> None:
    episodes = as_dataset(windows(mask, terminal), info(), BEHAVIOUR).episodes
    assert episodes.lengths.tolist() == lengths
    assert episodes.terminal[episodes.last].tolist() == ends
    assert episodes.terminal.sum() == sum(ends)
    assert episodes.successor_known.all()


def test_the_transitions_are_those_of_the_windows() -> None:
    made = windows(["xx..", "x.xx", "...."], [".xxx", "....", "...."])
    expected = made.transitions()
    found = as_dataset(made, info(), BEHAVIOUR).episodes.transitions("strict")
    for name in ("obs", "action", "reward", "next_obs", "terminal"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_the_dataset_says_that_it_is_synthetic_and_keeps_the_task() -> None:
    made = as_dataset(windows(["xx"]), info(), BEHAVIOUR).info
    assert made.behaviour == BEHAVIOUR
    assert (made.env_id, made.max_episode_steps) == ("Hopper-v4", 1000)
    assert made.score_range == info().score_range
    assert made.sha256 == ""


def test_windows_without_a_transition_are_refused() -> None:
    with pytest.raises(
        InputError, match="no synthetic transition is usable; train the model longer"
    ):
        as_dataset(windows(["..", ".."]), info(), BEHAVIOUR)


@pytest.mark.parametrize("name", ["obs", "action", "reward"])
def test_numbers_that_are_not_finite_are_refused_inside_the_mask_only(name: str) -> None:
    made = windows(["xx..", "xxxx"])
    getattr(made, name)[0, 3] = float("nan")
    as_dataset(made, info(), BEHAVIOUR)
    getattr(made, name)[1, 1] = float("inf")
    with pytest.raises(InputError, match=f"hold {name} that is not finite"):
        as_dataset(made, info(), BEHAVIOUR)


@pytest.mark.parametrize("bounds", [((-1.0,), (1.0,)), ((-2.0, -0.4, 0.0), (2.0, 0.4, 3.0))])
@pytest.mark.parametrize("destination", ["made.hdf5", "tests/hopper/pgd-v0"])
def test_what_is_written_is_read_back(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bounds: tuple[tuple[float, ...], tuple[float, ...]],
    destination: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    if not destination.endswith(".hdf5"):
        pytest.importorskip("minari")
    made = windows(["xxx.", "x.xx", "xxxx"], ["..x.", "....", "...."])
    made.action[0, 0] = torch.tensor([-1.0, 1.0, 1.0])
    source = info(action_low=bounds[0], action_high=bounds[1])
    dataset = as_dataset(made, source, provenance().behaviour)
    write_synthetic(dataset, destination, provenance())
    back = load_dataset(destination)
    for name in ("obs", "action", "reward", "next_obs"):
        found, expected = getattr(back.episodes, name), getattr(dataset.episodes, name)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    for name in ("terminal", "truncated", "successor_known"):
        found, expected = getattr(back.episodes, name), getattr(dataset.episodes, name)
        assert np.array_equal(found, expected), name
    assert back.info.behaviour == BEHAVIOUR
    assert back.info.env_id == "Hopper-v4"
    assert back.info.score_range == source.score_range


def test_a_dataset_without_environment_is_read_back(tmp_path: Path) -> None:
    source = info(env_id=None, max_episode_steps=None, score_range=None, family="other")
    dataset = as_dataset(windows(["xxx"]), source, BEHAVIOUR)
    path = write_synthetic(dataset, str(tmp_path / "made.hdf5"), provenance())
    assert load_dataset(str(path)).info.env_id is None


def test_the_file_says_how_it_was_made(tmp_path: Path) -> None:
    policy = tmp_path / "policy.safetensors"
    policy.write_bytes(b"weights")
    dataset = as_dataset(windows(["xxx"]), info(), BEHAVIOUR)
    path = write_synthetic(dataset, str(tmp_path / "made.hdf5"), provenance(policy=policy))
    with h5py.File(path) as file:
        kept = dict(file.attrs)
    assert json.loads(kept.pop("augmenter_config")) == {"levels": 16, "strength": "auto"}
    assert json.loads(kept.pop("augmenter_provenance")) == {"model_hash": "0123456789abcdef"}
    expected = {
        "augmenter": "pgd",
        "model_hash": "0123456789abcdef",
        "source_dataset": "hopper-medium-v2",
        "source_data_hash": "d" * 64,
        "synthesis_seed": 7,
        "offdiff_version": version("offdiff"),
        "policy": str(policy),
        "policy_sha256": sha256(policy),
        "behaviour": BEHAVIOUR,
    }
    assert {name: kept[name] for name in expected} == expected


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "made.hdf5"
    path.write_text("precious")
    dataset = as_dataset(windows(["xxx"]), info(), BEHAVIOUR)
    with pytest.raises(InputError, match="exists already; pass --overwrite"):
        write_synthetic(dataset, str(path), provenance())
    assert path.read_text() == "precious"
    write_synthetic(dataset, str(path), provenance(), overwrite=True)
    assert len(load_dataset(str(path)).episodes) == 3
