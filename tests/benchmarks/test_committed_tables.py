"""Tables of the benchmark scripts are what the committed records give, byte by byte."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pandas", exc_type=ImportError)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "command",
    [
        ["parity.py"],
        ["planner_parts.py", "--table"],
        ["synthetic.py", "--table"],
        ["few_steps.py", "--table"],
        ["steering.py", "--table"],
        ["value_bias.py", "--table"],
    ],
)
def test_tables_come_from_the_committed_records(command: list[str], tmp_path: Path) -> None:
    script, *options = command
    results = tmp_path / "results"
    shutil.copytree(ROOT / "results", results, ignore=shutil.ignore_patterns("tables"))
    (results / "tables").mkdir()
    command = [sys.executable, f"benchmarks/{script}", *options, "--results", str(results)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    (made,) = (results / "tables").iterdir()
    assert made.read_bytes() == (ROOT / "results" / "tables" / made.name).read_bytes()
