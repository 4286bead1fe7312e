"""Folders of a machine are taken out of text, and nothing else is."""

import json
from pathlib import Path

import pytest

from offdiff.publishable import publishable

RESULTS = Path(__file__).parents[1] / "results"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/data/hopper.hdf5", "…/hopper.hdf5"),
        ("--dataset /home/me/x.hdf5 --out ~/runs/a", "--dataset …/x.hdf5 --out …/a"),
        ("cannot read '/srv/d/x y.hdf5': no", "cannot read '…/x y.hdf5': no"),
        ("C:\\\\Users\\\\me\\\\x.hdf5", "…/x.hdf5"),
        ("results/runs/hopper/iql", "results/runs/hopper/iql"),
        ("data/hopper.hdf5", "data/hopper.hdf5"),
        ("$D4RL_DATASET_DIR/toy.hdf5", "$D4RL_DATASET_DIR/toy.hdf5"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("D4RL/door/human-v2 and 1/2", "D4RL/door/human-v2 and 1/2"),
    ],
)
def test_only_absolute_folders_go(text: str, shown: str) -> None:
    text, shown = text.replace("\\\\", "\\"), shown
    assert publishable(text) == shown
    assert publishable({text: [text, (text, 1)]}) == {shown: [shown, [shown, 1]]}
    assert publishable(shown) == shown


def test_committed_results_name_no_folder_of_a_machine() -> None:
    records = sorted(RESULTS.rglob("*.json"))
    assert records
    for path in records:
        if (found := json.loads(path.read_text())) != publishable(found):
            pytest.fail(f"{path.relative_to(RESULTS)} names a folder of a machine")
