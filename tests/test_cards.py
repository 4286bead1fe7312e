"""Cards: numbers of the records, and what speaks against them."""

import dataclasses
from pathlib import Path

import pytest

from offdiff.cards import card, limits, write_cards
from offdiff.lines import Line, lines_of
from offdiff.records import read_records

pytest.importorskip("pandas", exc_type=ImportError)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    return lines_of(read_records([ROOT / "results" / "runs"]).finished)


def test_a_card_says_what_its_records_say(lines: list[Line]) -> None:
    line = next(one for one in lines if one.method.name == "bc" and one.unit == "score")
    text = card(line)
    first = line.runs[0]
    assert f"| score | {sum(line.values) / len(line.values):.1f} [" in text
    assert first.data["file_sha256"] in text
    assert first.code["command"] in text
    episodes = sorted(first.eval["scores"])
    row = next(row for row in text.splitlines() if row.startswith(f"| {first.seed} |"))
    cells = [float(cell) for cell in row.split("|")[2:-1]]
    median = (episodes[24] + episodes[25]) / 2
    expected = [first.eval["score_mean"], episodes[0], median, episodes[-1]]
    assert [cells[0], cells[1], cells[3], cells[5]] == pytest.approx(expected, abs=0.051)


def test_limits_are_those_of_the_records(lines: list[Line]) -> None:
    maze = next(one for one in lines if one.unit == "return")
    said = " ".join(limits(maze))
    assert "One training seed" in said
    assert "no constants" in said
    three = next(one for one in lines if len(one.runs) == 3)
    assert "3 training seeds" in " ".join(limits(three))
    lost = dataclasses.replace(three, failed=(3,), missing=(4,))
    assert "Seeds 3, 4 failed or are missing." in " ".join(limits(lost))
    dirty = dataclasses.replace(three.runs[0], code=three.runs[0].code | {"dirty": True})
    changed = dataclasses.replace(three, runs=(dirty, *three.runs[1:]))
    assert "not committed" in " ".join(limits(changed))
    assert "not committed" not in " ".join(limits(three))
    unplayed = dataclasses.replace(three, runs=(dataclasses.replace(three.runs[0], eval={}),))
    assert "no simulator" in " ".join(limits(unplayed))
    assert "| environment | none |" in card(unplayed)


def test_the_committed_cards_come_from_the_committed_records(
    lines: list[Line], tmp_path: Path
) -> None:
    made = write_cards(lines, tmp_path)
    committed = ROOT / "results" / "cards"
    assert {path.name for path in made} == {path.name for path in committed.iterdir()}
    for path in made:
        assert path.read_text() == (committed / path.name).read_text()
