"""What the README shows works as shown."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import offdiff
from offdiff.algos.bc import BCConfig
from offdiff.config import RunConfig
from offdiff.data.hdf5 import write_hdf5
from offdiff.data.toy import linear_gaussian
from offdiff.diffusion.config import ModelConfig
from offdiff.diffusion.fit import train_model

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


def test_the_example_of_synthetic_experience_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "synthetic.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    episodes = linear_gaussian(20, terminal_share=0.5)
    config = ModelConfig(horizon=4, network="unet-32", steps=3, batch_size=8)
    model = train_model(episodes, config, torch.device("cpu"), tmp_path)
    model.save(tmp_path / "model.safetensors")
    write_hdf5(tmp_path / "toy.hdf5", episodes, {})
    learner = BCConfig(hidden=(8, 8), batch_size=8)
    run = RunConfig(dataset="toy.hdf5", algo=learner, updates=2, out=Path("runs"), device="cpu")
    monkeypatch.chdir(tmp_path)
    (record,) = offdiff.run(run, progress=False)
    (tmp_path / "run").symlink_to((tmp_path / "runs" / record.run_id).parent)
    scope: dict[str, Any] = {}
    exec(compile(code, "synthetic.md", "exec"), scope)
    assert scope["windows"].action.shape == (64, 4, 1)


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "CONTRIBUTING.md"),
        *("docs/synthetic.md", "docs/planners.md", "docs/benchmarks.md", "docs/few-steps.md"),
    ],
)
def test_links_lead_to_files(name: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / name).read_text()):
        assert target.startswith("https://") or (ROOT / name).parent.joinpath(target).exists()


def test_decisions_are_numbered_and_short() -> None:
    parts = re.split(r"^## ", (ROOT / "DESIGN.md").read_text(), flags=re.MULTILINE)[1:]
    assert [int(part.split(".")[0]) for part in parts] == list(range(1, len(parts) + 1))
    assert max(len(part.strip().splitlines()) for part in parts) <= 12
    for part in parts:
        for test in re.findall(r"tests/[\w/]+\.py", part):
            assert (ROOT / test).exists(), test
