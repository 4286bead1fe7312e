"""Published hyperparameters: spot checks against the papers' tables, and that all of them build."""

import csv
from importlib.resources import files

import pytest

from offdiff.algos.published import published
from offdiff.core.errors import InputError
from offdiff.core.registry import resolve


@pytest.mark.parametrize(
    ("algo", "dataset", "expected"),
    [
        ("rebrac", "halfcheetah-medium-v2", {"actor_penalty": 0.001, "critic_penalty": 0.01}),
        ("rebrac", "antmaze-umaze-v2", {"discount": 0.999, "reward": "scale_shift(100,0)"}),
        ("rebrac", "pen-human-v1", {"batch_size": 256, "critic_penalty": 0.5}),
        ("iql", "antmaze-large-play-v2", {"expectile": 0.9, "inverse_temperature": 10.0}),
        ("iql", "hopper-medium-v2", {"reward": "iql_return_range", "scale_observations": False}),
        ("td3bc", "walker2d-expert-v2", {"alpha": 2.5}),
        ("cql", "hopper-medium-v2", {"reward": "iql_return_range", "penalty": 10.0}),
        ("cql", "hopper-expert-v2", {"actor_learning_rate": 3e-5}),
    ],
)
def test_values(algo: str, dataset: str, expected: dict[str, object]) -> None:
    fields, source = published(algo, dataset)
    assert fields.items() >= expected.items()
    assert source


def test_every_row_builds_its_config() -> None:
    text = (files("offdiff.algos") / "published.csv").read_text()
    pairs = {(row["algo"], row["dataset"]) for row in csv.DictReader(text.splitlines())}
    for algo, dataset in pairs:
        fields, _ = published(algo, dataset)
        resolve("learners", algo)(**fields)
    assert len(pairs) > 60


def test_unpublished_pairs_are_told() -> None:
    with pytest.raises(InputError, match="known: "):
        published("rebrac", "kitchen-mixed-v0")
