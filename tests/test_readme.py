"""What the README shows works as shown."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(language: str) -> str:
    (text,) = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    assert isinstance(text, str)
    return text


def test_two_commands_and_the_second_is_what_ci_runs() -> None:
    run, test = block("bash").splitlines()
    set_up = "python3 -m venv .venv"
    assert run.split(" && ")[0] == test.split(" && ")[0] == set_up
    assert run.endswith("offdiff run --algo iql")
    script = (ROOT / ".ci" / "run").read_text()
    for part in test.removeprefix(set_up).split(" && ")[1:]:
        assert part in script


@pytest.mark.usefixtures("own_matmul")
def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = block("python")
    assert len(code.splitlines()) <= 10
    for shown, small in (
        ("updates=10_000", "updates=20, final_episodes=2"),
        ("episodes=20", "episodes=2"),
        ("/ 20", "/ 2"),
    ):
        assert code.count(shown) == 1
        code = code.replace(shown, small)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    last = capsys.readouterr().out.splitlines()[-1]
    score, mean_return = map(float, last.split())
    assert score < 100
    assert mean_return > 0


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(name: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / name).read_text()):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_decisions_are_numbered_and_short() -> None:
    parts = re.split(r"^## ", (ROOT / "DESIGN.md").read_text(), flags=re.MULTILINE)[1:]
    assert [int(part.split(".")[0]) for part in parts] == list(range(1, len(parts) + 1))
    assert max(len(part.strip().splitlines()) for part in parts) <= 12
    for part in parts:
        for test in re.findall(r"tests/[\w/]+\.py", part):
            assert (ROOT / test).exists(), test
