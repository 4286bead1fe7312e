"""The planner of docs/planners.md: installed as a package, or by module:Class, run and recorded."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import offdiff
from offdiff.checkpoint import load_planner
from offdiff.config import RunConfig
from offdiff.core.registry import names
from offdiff.planners.veteran import VeteranConfig
from offdiff.records import read_record

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "planners.md").read_text()
PYPROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "direct-planner"
version = "0.1"

[tool.setuptools]
py-modules = ["direct"]

"""


def block(language: str, number: int = 0) -> str:
    text = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)[number]
    assert isinstance(text, str)
    return text


OPTIONS = ("--updates", 40, "--log-every", 20, "--planner.horizon", 4, "--planner.width", 32)


def test_an_installed_planner_runs_is_recorded_and_loaded_again(
    toy_file: Path,
    tmp_path: Path,
    install: Callable[[str, str, str], Path],
    run_offdiff: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = install(PYPROJECT + block("toml"), "direct", block("python"))
    shown = run_offdiff(tmp_path, "run", "--planner", "direct", "--help", path=str(site))
    assert "Of two hidden layers." in shown
    command = ("run", "--planner", "direct", "--dataset", toy_file, *OPTIONS)
    run_offdiff(tmp_path, *command, path=str(site))
    (path,) = (tmp_path / "results").rglob("run.json")
    record = read_record(path)
    assert record.algo["name"] == "direct"
    assert record.algo["kind"] == "planner"
    assert record.config["diff_from_default"] == {"horizon": 4, "width": 32}
    monkeypatch.syspath_prepend(site)
    assert "direct" in names("planners")
    assert load_planner(path.parent).planner.shape == (4, 5)
    rows = (path.parent / "metrics.csv").read_text().splitlines()
    assert rows[0] == "update,seed,plan,held_plan"
    assert float(rows[-1].split(",")[2]) < float(rows[1].split(",")[2])
    run_offdiff(tmp_path, "table", path=str(site))
    page = (tmp_path / "results" / "tables" / "scores.md").read_text()
    assert "| toy | direct (horizon=4 width=32) | 40 |" in page


def test_a_planner_needs_no_installation(
    tmp_path: Path, toy_file: Path, run_offdiff: Callable[..., str]
) -> None:
    (tmp_path / "direct.py").write_text(block("python"))
    run_offdiff(
        tmp_path, "run", "--planner", "direct:DirectConfig", "--dataset", toy_file, *OPTIONS
    )
    (path,) = (tmp_path / "results").rglob("run.json")
    assert read_record(path).algo["name"] == "direct:DirectConfig"


def test_the_page_names_every_planner() -> None:
    table = {name for name in re.findall(r"^\| `([\w-]+)` \|", PAGE, flags=re.MULTILINE)}
    assert table == set(names("planners"))


def test_the_example_of_the_library_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planner = VeteranConfig(
        horizon=3, network="mlp-128", hidden=(16, 16), candidates=2, levels=2, batch_size=16
    )
    config = RunConfig(
        planner=planner, updates=2, final_episodes=1, out=tmp_path / "runs", device="cpu"
    )
    (record,) = offdiff.run(config, progress=False)
    (tmp_path / "run").symlink_to((tmp_path / "runs" / record.run_id).parent)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(compile(block("python", 1), "planners.md", "exec"), scope)
    assert len(scope["result"].returns) == 2
