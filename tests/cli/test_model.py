"""`offdiff model`: trained once, found again, killed and resumed, shared by processes, sampled."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from offdiff.augment.base import Source
from offdiff.augment.cache import world_model
from offdiff.cli import main
from offdiff.core.tensors import load_tensors
from offdiff.data.load import load_dataset
from offdiff.diffusion import fit
from offdiff.diffusion.config import ModelConfig

TINY = (
    *("--model.network", "unet-32", "--model.steps", "8"),
    *("--model.batch-size", "8", "--model.horizon", "4"),
)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("OFFDIFF_CACHE", str(folder))
    monkeypatch.setattr(fit, "VALIDATION_WINDOWS", 16)  # most of a tiny training's time
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def model(cache: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*args: object) -> Outcome:
        try:
            code = main(["model", *map(str, args)])
        except SystemExit as stopped:  # tyro's way to end
            code = int(stopped.code or 0)
        return Outcome(code, *capsys.readouterr())

    return run


def is_one_sentence(text: str) -> bool:
    return text.startswith("offdiff: ") and text.endswith("\n") and text.count("\n") == 1


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_model_is_trained_once_and_says_where_it_is(
    model: Command, cache: Path, toy_file: Path
) -> None:
    first = model("train", "--dataset", toy_file, *TINY)
    assert first.code == 0
    (file,) = cache.rglob("*.safetensors")  # no checkpoint is left
    assert str(file) in first.out
    for word in ("unet-32", "parameters", "validation loss", " s\n"):
        assert word in first.out
    written = file.stat().st_mtime_ns
    again = model("train", "--dataset", toy_file, *TINY)
    assert again.code == 0
    assert again.out.startswith("the model exists already")
    assert file.stat().st_mtime_ns == written
    assert model("train", "--dataset", toy_file, *TINY, "--overwrite").code == 0
    assert file.stat().st_mtime_ns > written
    other = model("train", "--dataset", toy_file, *TINY, "--model.seed", 1)
    assert "exists" not in other.out


def test_a_run_finds_the_model(
    model: Command, cache: Path, toy_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model("train", "--dataset", toy_file, *TINY)
    data = load_dataset(str(toy_file))
    device = torch.device("cpu")
    source = Source(episodes=data.episodes, info=data.info, device=device, cache=cache)
    monkeypatch.setattr("offdiff.augment.cache.train_model", None)
    found = world_model(source, ModelConfig(network="unet-32", steps=8, batch_size=8, horizon=4))
    assert found.config.horizon == 4


def test_out_is_the_same_model(model: Command, cache: Path, toy_file: Path) -> None:
    out = Path("sub") / "mine.safetensors"
    seen = model("train", "--dataset", toy_file, *TINY, "--out", out)
    assert seen.code == 0
    assert str(out) in seen.out
    (file,) = cache.rglob("model.safetensors")
    assert out.read_bytes() == file.read_bytes()
    written = out.stat().st_mtime_ns
    assert model("train", "--dataset", toy_file, *TINY, "--out", out).code == 0
    assert out.stat().st_mtime_ns == written
    # Another copy of a model that is in the cache needs no training.
    copy = model("train", "--dataset", toy_file, *TINY, "--out", "copy.safetensors")
    assert "exists already" in copy.out
    assert Path("copy.safetensors").read_bytes() == out.read_bytes()


def test_out_does_not_replace_another_file(model: Command, cache: Path, toy_file: Path) -> None:
    Path("taken").write_text("precious")
    args = ("train", "--dataset", toy_file, *TINY, "--out", "taken")
    seen = model(*args)
    assert seen.code == 2
    assert is_one_sentence(seen.err)
    assert "taken exists already" in seen.err
    assert Path("taken").read_text() == "precious"
    assert names(cache) == []
    assert model(*args, "--overwrite").code == 0
    assert model("info", "taken").code == 0


def test_a_killed_training_is_continued_by_repeating_the_command(
    model: Command, cache: Path, toy_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("train", "--dataset", toy_file, *TINY)
    model(*args)
    (file,) = cache.rglob("model.safetensors")
    undisturbed = file.read_bytes()
    file.unlink()
    step, calls = fit.Fit.step, iter(range(1000))

    def interrupted(self: fit.Fit, loss: torch.nn.Module) -> torch.Tensor:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return step(self, loss)

    with monkeypatch.context() as patch:
        patch.setattr(fit.Fit, "step", interrupted)
        # A default argument: checkpoints after every step instead of every 20 seconds.
        patch.setitem(fit.train_model.__kwdefaults__, "checkpoint_seconds", 0.0)
        seen = model(*args)
    assert seen == Outcome(130, "", "offdiff: interrupted\n")
    (checkpoint,) = cache.rglob(fit.CHECKPOINT)
    assert load_tensors(checkpoint)[1]["steps"] == 5
    taken: list[int] = []

    def counted(self: fit.Fit, loss: torch.nn.Module) -> torch.Tensor:
        taken.append(self.steps)
        return step(self, loss)

    monkeypatch.setattr(fit.Fit, "step", counted)
    assert model(*args).code == 0
    assert taken == list(range(5, 8))
    assert file.read_bytes() == undisturbed
    assert not checkpoint.exists()


def test_two_processes_train_one_model_and_the_first_one_talks(
    model: Command, cache: Path, toy_file: Path
) -> None:
    model("train", "--dataset", toy_file, *TINY)
    (file,) = cache.rglob("model.safetensors")
    alone = load_tensors(file)[0]
    file.unlink()
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    command = (*launcher, "-m", "offdiff", "model", "train", "--dataset", toy_file, *TINY)
    outputs = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(str(file)) == 1
        outputs.append(done.stdout)
    assert "exists already" not in outputs[0]
    assert "exists already" in outputs[1]
    together = load_tensors(file)[0]
    for name in alone:
        if name.startswith("network/"):  # the error curve was measured on fewer windows above
            assert_close(together[name], alone[name], atol=1e-4, rtol=1e-3)
    assert names(cache) == ["lock", "model.safetensors"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--model.network", "unet-65"), "unknown network 'unet-65'; did you mean 'unet-64'"),
        (("--model.steps", "0"), "steps must lie in [1,"),
        (
            ("--model.horizon", "11", "--model.no-terminals"),
            "longest episode has 10; shorten the horizon",
        ),
        (("--preset", "papr"), "unknown preset 'papr'; did you mean 'paper'?"),
        (("--preset",), "argument --preset: expected one argument"),
        (("--dataset", "missing.hdf5"), "missing.hdf5: no such file"),
        (("--device", "gpu"), "choose auto, cpu, cuda or cuda:N"),
        (("--threads", "-1"), "threads must lie in [0,"),
        (("--out", "."), "is a folder; name a file in it"),
        (("--out", "toy.hdf5/below"), "cannot write toy.hdf5"),
    ],
)
def test_bad_input_of_train(
    model: Command, cache: Path, toy_file: Path, args: tuple[str, ...], words: str
) -> None:
    seen = model("train", "--dataset", toy_file, *TINY, *args)
    assert seen.code == 2
    assert words in " ".join(seen.err.replace("│", " ").split())
    assert "Traceback" not in seen.err
    assert seen.out == ""
    assert set(names(Path.cwd())) <= {"toy.hdf5", "lock"}


def test_info_describes_and_lists(model: Command, cache: Path, toy_file: Path) -> None:
    assert "train one with" in model("info").out
    model("train", "--dataset", toy_file, *TINY)
    (file,) = cache.rglob("model.safetensors")
    for place in (file, file.parent):
        seen = model("info", place)
        assert seen.code == 0
        for words in ("unet-32", "batch size", "parameters", "validation loss after 8 steps"):
            assert words in seen.out
    damaged = cache / "models" / "damaged"
    damaged.mkdir()
    (damaged / "model.safetensors").write_text("nothing")
    listed = model("info")
    assert listed.code == 0
    for words in (file.parent.name, "unet-32", file.parent.name[:16], "damaged"):
        assert words in listed.out


@pytest.mark.parametrize("args", [("info", "nowhere"), ("info", "toy.hdf5"), ("info", ".")])
def test_info_of_what_is_no_model(
    model: Command, cache: Path, toy_file: Path, args: tuple[str, ...]
) -> None:
    seen = model(*args)
    assert seen.code == 2
    assert is_one_sentence(seen.err)


def test_sample_writes_a_dataset_the_same_for_the_same_seed(
    model: Command, cache: Path, toy_file: Path
) -> None:
    model("train", "--dataset", toy_file, *TINY, "--out", "m.safetensors")
    args = ("sample", "m.safetensors", "--transitions", 100, "--levels", 4)
    datasets = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        seen = model(*args, "--to", f"{name}.hdf5", "--seed", seed)
        assert seen.code == 0, seen.err
        assert seen.out.startswith(f"{name}.hdf5\n")
        datasets.append(load_dataset(f"{name}.hdf5"))
    first, same, other = (dataset.episodes for dataset in datasets)
    assert (first.obs == same.obs).all()
    assert first.obs.shape != other.obs.shape or (first.obs != other.obs).any()
    assert first.lengths.max() <= 4
    assert first.n_episodes <= 25
    assert datasets[0].info.behaviour.startswith("synthetic: unguided from data ")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--to", "taken.hdf5"), "taken.hdf5 exists already"),
        (("--to", "made.txt"), "neither a file ending in .hdf5"),
        (("--levels", "0"), "levels must lie in [1, 10000], got 0"),
        (("--transitions", "0"), "transitions must be at least 1"),
        (("--seed", "-1"), "seed must be at least 0"),
        (("--device", "gpu"), "choose auto, cpu, cuda or cuda:N"),
        (("--solver", "rk4"), "rk4"),
    ],
)
def test_bad_input_of_sample(
    model: Command, cache: Path, toy_file: Path, change: tuple[str, ...], words: str
) -> None:
    Path("taken.hdf5").write_text("precious")
    args = {"--to": "made.hdf5", "--transitions": "8", change[0]: change[1]}
    flat = [word for pair in args.items() for word in pair]
    seen = model("sample", "toy.hdf5", *flat)
    assert seen.code == 2
    assert words in seen.err
    assert names(Path.cwd()) == ["taken.hdf5", "toy.hdf5"]
    assert Path("taken.hdf5").read_text() == "precious"


def test_sample_of_what_is_no_model(model: Command, cache: Path, toy_file: Path) -> None:
    seen = model("sample", "toy.hdf5", "--transitions", 8, "--to", "made.hdf5")
    assert seen.code == 2
    assert is_one_sentence(seen.err)
    assert not Path("made.hdf5").exists()
