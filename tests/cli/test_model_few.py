"""`offdiff model reflow | distill | compare`: the whole way on a tiny model, and bad input."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from offdiff.cli import main
from offdiff.diffusion import fit
from offdiff.diffusion.solvers import chosen
from offdiff.diffusion.world_model import load_model

TINY = (
    *("--model.network", "mlp-128", "--model.steps", "8"),
    *("--model.batch-size", "8", "--model.horizon", "4"),
)
FEW = ("--make.pairs", "24", "--make.levels", "3", "--steps", "4")
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher, a student and a distilled one."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OFFDIFF_CACHE", str(folder / "cache"))
        patch.setattr(fit, "VALIDATION_WINDOWS", 16)
        teacher, student, one = (str(folder / f"{n}.safetensors") for n in ("t", "s", "one"))
        assert main(["model", "train", "--path", "rf", *TINY, "--out", teacher]) == 0
        assert main(["model", "reflow", teacher, *FEW, "--out", student]) == 0
        assert main(["model", "distill", student, *FEW, "--network", "mlp-256",
                     "--anneal", "0.5", "--out", one]) == 0  # fmt: skip
    return folder


@pytest.fixture
def model(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.setenv("OFFDIFF_CACHE", str(place / "cache"))
    monkeypatch.setattr(fit, "VALIDATION_WINDOWS", 16)
    monkeypatch.chdir(place)

    def run(*args: object) -> tuple[int, str, str]:
        try:
            code = main(["model", *map(str, args)])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        return code, *capsys.readouterr()

    return run


def test_what_was_made(place: Path, model: Command) -> None:
    teacher, student, one = (
        load_model(place / f"{n}.safetensors", torch.device("cpu")) for n in ("t", "s", "one")
    )
    assert (teacher.config.objective, teacher.config.level_mean) == ("v", 0.0)
    assert (student.lineage.recipe, student.lineage.teacher) == ("reflow", teacher.hash)
    assert (one.lineage.teacher, one.lineage.max_calls) == (student.hash, 1)
    assert one.config.network == "mlp-256"
    assert not list(place.glob("*.training"))
    code, out, _ = model("info", "one.safetensors")
    assert code == 0
    assert "distil" in out
    assert student.hash in out


def test_consistency_needs_no_pairs(place: Path, model: Command) -> None:
    code, _, _ = model("distill", "t.safetensors", "--how", "consistency", "--steps", 2,
                         "--out", "c1.safetensors")  # fmt: skip
    assert code == 0
    assert not (place / "c1.pairs.safetensors").exists()
    found = load_model(place / "c1.safetensors", torch.device("cpu"))
    assert (found.lineage.recipe, found.lineage.max_calls) == ("consistency", 1)


def test_a_student_of_pairs_and_a_flow(place: Path, model: Command) -> None:
    code, _, _ = model("distill", "t.safetensors", *FEW, "--out", "guided.safetensors",
                       "--pairs-file", "s.pairs.safetensors", "--flow-guided", "s.safetensors",
                       "--leg", "guide")  # fmt: skip
    assert code == 0
    made = load_model(place / "guided.safetensors", torch.device("cpu"))
    assert made.lineage.recipe == "distil, flow-guided"
    for name in ("guided", "guided.pairs"):
        (place / f"{name}.safetensors").unlink(missing_ok=True)


def test_comparison(place: Path, model: Command) -> None:
    code, out, _ = model(
        "compare", "t.safetensors", "s.safetensors", "one.safetensors", "--calls", 1, 2, 3,
        "--windows", 16, "--to", "c",
    )  # fmt: skip
    assert code == 0
    made = json.loads((place / "c.json").read_text())
    points = {(p["model"], p["solver"], p["calls"]): p for p in made["points"]}
    # Two and three steps of a teacher start low, by UniPC; the distilled model has one alone.
    assert {key[2] for key in points if key[:2] == ("t", "heun")} == {1}
    assert {key[2] for key in points if key[:2] == ("t", "unipc")} == {1, 2, 3}
    assert {key[2] for key in points if key[:2] == ("s", "euler")} == {1, 2, 3}
    assert [key for key in points if key[0] == "one"] == [("one", "euler", 1)]
    assert points["t", "dpmpp", 2]["paired"] > 0
    assert points["s", "euler", 2]["levels"] == "student"
    assert points["t", "unipc", 2]["levels"] == "low"
    assert out.count("| s | euler |") == 3
    assert (place / "c.md").read_text() in out
    if os.environ.get("CI") or (place / "c.png").exists():
        from PIL import Image

        with Image.open(place / "c.png") as picture:
            assert picture.size == (1500, 500)


def test_a_distilled_model_is_compared_at_its_own_calls(model: Command) -> None:
    code, out, _ = model("compare", "one.safetensors", "--calls", 4, "--windows", 8)
    assert code == 0
    assert "| one | euler | student | 1 |" in out


def test_searched_levels_are_kept_and_used(place: Path, model: Command) -> None:
    code, out, _ = model("search-steps", "t.safetensors", "--steps", 2, "--generations", 1,
                         "--windows", 8, "--out", "searched.safetensors")  # fmt: skip
    assert code == 0
    assert "RMSE to the fine ODE" in out
    before, after = (
        load_model(place / f"{n}.safetensors", torch.device("cpu")) for n in ("t", "searched")
    )
    assert list(after.grids) == [2]
    assert after.levels(2).tolist() == [*after.grids[2], 0.0]
    assert torch.equal(after.levels(3), before.levels(3))
    assert after.hash == before.hash  # pairs of the one are pairs of the other
    noise = torch.ones(1, 5, after.codec.columns)
    first = after.grids[2][0]
    assert after.gaussian is not None
    assert torch.equal(after.start(noise, 2), after.gaussian(noise, first))
    older = replace(after, gaussian=None)
    assert float(older.start(noise, 2)[0, 0, 0]) == pytest.approx((first**2 + 1) ** 0.5)
    code, out, _ = model("info", "searched.safetensors")
    assert "levels of 2 steps" in out
    code, out, _ = model("compare", "searched.safetensors", "--calls", 2, "--windows", 8)
    assert "| searched | unipc | searched | 2 |" in out


def test_few_steps_start_low(place: Path) -> None:
    t, s, one = (
        load_model(place / f"{n}.safetensors", torch.device("cpu")) for n in ("t", "s", "one")
    )
    assert [n for n in range(1, 20) if t.starts_low(n)] == list(range(2, 9))
    assert t.levels(4)[[0, 3]].tolist() == pytest.approx([6.0, 0.1])
    assert [chosen("auto", t, n) for n in (1, 4, 9)] == ["heun", "unipc", "heun"]
    assert [chosen("auto", s, n) for n in (1, 4, 9)] == ["euler"] * 3
    assert t.gaussian is not None
    assert s.gaussian is not None
    assert (t.gaussian.coupled, s.gaussian.coupled) == (False, True)
    assert torch.equal(t.gaussian.axes, s.gaussian.axes), "both are of the data"
    assert not one.starts_low(1)
    assert replace(t, gaussian=None).levels(4)[0] == pytest.approx(80)


def test_searched_skips_are_kept_and_used(place: Path, model: Command) -> None:
    dit = (*TINY[2:], "--model.network", "dit-xs")
    assert model("train", *dit, "--out", "dit.safetensors")[0] == 0
    search = ("search-steps", "dit.safetensors", "--steps", 2, "--generations", 1, "--windows", 8)
    code, out, _ = model(*search, "--skip", 0.25, "--out", "light.safetensors")
    assert code == 0
    light = load_model(place / "light.safetensors", torch.device("cpu"))
    saved = sum(map(len, light.skips[2])) / 8
    assert saved >= 0.125
    assert f"{saved:.1%} of all that would be run; RMSE" in out
    assert light.hash == load_model(place / "dit.safetensors", torch.device("cpu")).hash
    code, out, _ = model("info", "light.safetensors")
    assert "skipped in 2 steps" in out
    # A search without skipping for as many steps forgets what was skipped on the old levels.
    again = ("search-steps", "light.safetensors", *search[2:])
    code, out, _ = model(*again)
    assert code == 0
    assert "skipped" not in out
    assert load_model(place / "light.safetensors", torch.device("cpu")).skips == {}


def test_pairs_are_made_once(place: Path, model: Command) -> None:
    before = (place / "s.pairs.safetensors").stat().st_mtime_ns
    code, out, _ = model("reflow", "t.safetensors", *FEW, "--out", "s2.safetensors",
                         "--pairs-file", "s.pairs.safetensors")  # fmt: skip
    assert code == 0
    assert "pairs from s.pairs.safetensors" in out
    assert (place / "s.pairs.safetensors").stat().st_mtime_ns == before
    first, second = (
        load_model(place / f"{n}.safetensors", torch.device("cpu")) for n in ("s", "s2")
    )
    for a, b in zip(first.denoiser.parameters(), second.denoiser.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("args", "said"), [
    (("reflow", "t.safetensors", "--out", "s.safetensors"), "exists already"),
    (("reflow", "nothing.safetensors", "--out", "x.safetensors"), "nothing.safetensors"),
    (("distill", "t.safetensors", "--out", "x.safetensors", "--anneal", "1"), "anneal must lie"),
    (("distill", "t.safetensors", "--out", "x.safetensors", "--network", "big"), "big"),
    (("distill", "t.safetensors", "--out", "x.safetensors",
      "--pairs-file", "one.pairs.safetensors"), "no pairs of this teacher"),
    (("distill", "t.safetensors", "--out", "x.safetensors", "--calls", "0"), "calls must lie"),
    (("distill", "t.safetensors", "--out", "x.safetensors", "--how", "consistency", "--calls", "2"),
     "students of one call"),
    (("search-steps", "t.safetensors", "--steps", "0"), "steps in [1, 64]"),
    (("search-steps", "t.safetensors", "--skip", "0.25"), "not those of a WindowMLP"),
    (("search-steps", "t.safetensors", "--skip", "2"), "most < 1"),
    (("reflow", "one.safetensors", "--out", "x.safetensors"), "has no path to learn from"),
    (("reflow", "t.safetensors", "--out", "x.safetensors", "--pairs-file", "s.pairs.safetensors",
      "--make.pairs", "7"), "were made with pairs 24"),
    (("distill", "t.safetensors", "--out", "x.safetensors", "--flow-guided", "one.safetensors"),
     "has no path to learn from"),
    (("distill", "t.safetensors", "--out", "x.safetensors", "--how", "consistency",
      "--flow-guided", "s.safetensors"), "without pairs or another guide"),
    (("search-steps", "t.safetensors", "--out", "s.safetensors"), "exists already"),
    (("search-steps", "one.safetensors"), "distilled for 1 network call"),
    (("compare",), "name the files"),
    (("compare", "t.safetensors", "--calls", "0"), "calls must be"),
    (("train", "--path", "straight"), "straight"),
])  # fmt: skip
def test_bad_input_is_one_sentence(args: tuple[str, ...], said: str, model: Command) -> None:
    code, _, err = model(*args)
    assert code == 2
    assert said in err
    assert "Traceback" not in err


def test_a_quantised_model_is_no_teacher(place: Path, model: Command) -> None:
    pytest.importorskip("torchao", exc_type=ImportError)
    assert model("quantize", "t.safetensors", "--out", "q.safetensors")[0] == 0
    code, _, err = model("reflow", "q.safetensors", *FEW, "--out", "x.safetensors")
    assert code == 2
    assert "quantise last" in err


def test_few_calls_in_a_run(
    place: Path, model: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """A distilled model refuses more levels than one before anything is trained."""
    options = ["run", "--algo", "bc", "--updates", "4", "--augment", "unguided",
               "--eval-every", "0", "--final-episodes", "1", "--out", "runs", "--device", "cpu",
               "--augment.model-file", "one.safetensors"]  # fmt: skip
    assert main([*options, "--augment.levels", "4"]) == 2
    assert "distilled for 1 network call" in capsys.readouterr().err
