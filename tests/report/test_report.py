"""What a report holds: known numbers, nothing from elsewhere, nothing that could do harm."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from offdiff.cli import main
from offdiff.lines import lines_of
from offdiff.records import read_records
from offdiff.report import row_of
from offdiff.report_figures import figures

for package in ("jinja2", "plotly", "pandas"):
    pytest.importorskip(package, exc_type=ImportError)


@pytest.fixture(scope="module")
def page(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page") / "r.html"
    assert main(["report", str(runs), "--out", str(out), "--draws", "50"]) == 0
    return out.read_text()


def data_of(page: str) -> Any:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    return json.loads(text)


def test_a_row_says_what_the_records_say(runs: Path) -> None:
    lines = lines_of(read_records([runs]).finished)
    line = next(one for one in lines if (one.dataset, one.method.name) == ("hopper-a", "bc"))
    row = row_of(line, 3, (0.0, 120.0))
    assert row["mean"] == pytest.approx(sum(line.values) / 3)
    assert (row["number"], row["runs"], row["behaviour"], row["lost"]) == (3, 3, 20.0, "")
    assert row["points"] == [pytest.approx(value / 1.2, abs=0.01) for value in line.values]
    maze = next(one for one in lines if one.dataset == "pointmaze-u")
    row = row_of(maze, 0, (-100.0, 300.0))
    assert (row["unit"], row["family"]) == ("return", "maze2d")
    assert row["points"] == [pytest.approx((value + 100) / 4, abs=0.01) for value in maze.values]


def test_figures_are_those_the_records_give_reason_for(runs: Path) -> None:
    found = figures(lines_of(read_records([runs]).finished), draws=50)
    titles = [figure["title"] for figure in found]
    assert len({figure["id"] for figure in found}) == len(found)
    for title in ("Learning curves: hopper-a", "Aggregate score: locomotion", "Cost: hopper-a",
                  "Performance profile: locomotion",
                  "Synthetic data, dynamics error (median): hopper-b"):  # fmt: skip
        assert title in titles
    curves = found[titles.index("Learning curves: hopper-a")]
    assert [trace["meta"] for trace in curves["data"]] == ["bc", "bc", "iql+pgd", "iql+pgd"]
    band, mean = curves["data"][:2]
    assert mean["x"] == [50, 100]
    assert mean["y"] == [20.5, 41.0]  # seeds 40, 41, 42 at the end, half of that before
    # t = 4.3027 at two degrees of freedom, std 1 at the end and 0.5 before
    half = 4.3027 / 3**0.5
    assert band["x"] == [50, 100, 100, 50]
    assert band["y"] == pytest.approx([20.5 + half / 2, 41 + half, 41 - half, 20.5 - half / 2])


def test_the_page_is_complete_in_itself(page: str) -> None:
    without_plotly = re.sub(
        r"<script[^>]* id=\"plotly\">.*?</script>", "", page, count=1, flags=re.DOTALL
    )
    assert len(without_plotly) < len(page) / 10
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", without_plotly)
    assert "@import" not in without_plotly
    assert "fetch(" not in without_plotly


def test_names_cannot_leave_their_place(page: str) -> None:
    assert "<img src=x" not in page
    names = {run["facts"]["data"].split(",")[0] for line in data_of(page)["lines"] for run in line}
    assert any(name.startswith("</script><img") for name in names)


def test_an_edited_record_is_listed_and_counts_for_nothing(page: str) -> None:
    assert "was edited after it was written" in page
    assert "1 files refused" in page
    assert "hopper-a/cql/x/seed-0/run.json was" in page  # without the folders above
    assert all(run["seed"] in (0, 1, 2) for line in data_of(page)["lines"] for run in line)
    assert "lucky" not in page


def test_the_same_bytes_again_and_no_folder_of_this_machine(
    page: str, runs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again.html"
    assert main(["report", str(runs), "--out", str(out), "--draws", "50"]) == 0
    assert out.read_text() == page
    assert str(runs.parent) not in page


def test_pictures_are_taken_in_as_far_as_they_fit(runs: Path, tmp_path: Path) -> None:
    place = runs / "hopper-a" / "bc" / "x"
    picture = base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )
    files = [place / "synthetic.png", place / "seed-0" / "plans.png"]
    for file in files:
        file.write_bytes(picture)
    try:
        out = tmp_path / "r.html"
        limit = f"{len(picture) * 1.5 / 1e6:.9f}"
        command = ["report", str(runs), "--out", str(out), "--draws", "50", "--media-mb", limit]
        assert main(command) == 0
    finally:
        for file in files:
            file.unlink()
    page = out.read_text()
    assert page.count('loading="lazy"') == 1
    assert page.count("Too large for this page: hopper-a/bc/x/seed-0/synthetic.png") == 1
    assert "plans: bc on hopper-a, seed 0" in page


def test_nothing_to_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none").mkdir()
    assert main(["report", str(tmp_path / "none"), "--out", str(tmp_path / "r.html")]) == 2
    assert "no runs to report" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()
    assert main(["report", str(tmp_path / "absent")]) == 2
