"""The command line as people meet it: help that teaches, one-sentence errors, whole files."""

import errno
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import offdiff
from offdiff.algos.bc import BC
from offdiff.cli import COMMANDS, main
from offdiff.core.types import Batch, Metrics

FAST = ("--updates", "40", "--log-every", "10", "--checkpoint-seconds", "0")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


class Terminal:
    """Runs commands in an empty folder."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys

    def __call__(self, *args: object) -> Outcome:
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as stopped:  # tyro's way to end after --help or a wrong option
            code = int(stopped.code or 0)
        return Outcome(code, *self.capsys.readouterr())

    def files(self) -> set[str]:
        return {str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file()}


@pytest.fixture
def terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Terminal:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return Terminal(folder, capsys)


def is_one_sentence(text: str) -> bool:
    return text.startswith("offdiff: ") and text.endswith("\n") and text.count("\n") == 1


@pytest.mark.parametrize("args", [(), ("--help",), ("-h",)])
def test_help_lists_every_command_and_where_to_start(
    terminal: Terminal, args: tuple[str, ...]
) -> None:
    seen = terminal(*args)
    assert seen.code == 0
    for name, (_, about) in COMMANDS.items():
        assert f"  {name} " in seen.out
        assert about in seen.out
    assert "offdiff run --algo iql" in seen.out


def test_help_of_run_teaches(terminal: Terminal) -> None:
    seen = terminal("run", "--help")
    assert seen.code == 0
    for name in ("bc", "cql", "iql", "rebrac", "td3bc", "module:Class", "laptop", "paper"):
        assert name in seen.out
    assert "offdiff run --algo iql --resume" in seen.out
    assert "--algo.inverse-temperature" in seen.out
    assert "Of the value regression, in [0.5, 1)" in seen.out


def test_help_shows_the_options_of_the_chosen_learner(terminal: Terminal) -> None:
    seen = terminal("run", "--algo", "td3bc", "--help")
    assert "--algo.policy-delay" in seen.out
    assert "--algo.inverse-temperature" not in seen.out


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_explains_itself(terminal: Terminal, command: str) -> None:
    seen = terminal(*command.split(), "--help")
    assert seen.code == 0
    assert seen.out.startswith(f"usage: offdiff {command}")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("runn",), "unknown command 'runn'; did you mean 'run'?"),
        (("data", "lst"), "did you mean 'data list'"),
        (("run", "--algo", "iqll"), "unknown learner 'iqll'; did you mean 'iql'"),
        (("run", "--algo"), "argument --algo: expected one argument"),
        (("run", "--algo", "nowhere:Config"), "cannot import 'nowhere'"),
        (("run", "--algo", "offdiff.algos.iql:Nothing"), "has no 'Nothing'"),
        (("run", "--algo", "offdiff.algos.iql:IQL"), "must derive from LearnerConfig"),
        (("run", "--algo", "offdiff.algos.iql:gather"), "is no class"),
        (("run", "--dataset", "hopper-mediun-v2"), "did you mean 'hopper-medium-v2'"),
        (("run", "--dataset", "missing.hdf5"), "missing.hdf5: no such file"),
        (("run", "--preset", "papr"), "unknown preset 'papr'; did you mean 'paper'?"),
        (("run", "--published", "hoper-medium-v2"), "hoper-medium-v2"),
        (("run", "--device", "gpu"), "choose auto, cpu, cuda or cuda:N"),
        (("run", "--algo.reward", "standardize"), "did you mean 'standardise'?"),
        (("run", "--resume"), "there is no run to resume"),
        (("eval", "nowhere"), "nowhere holds no finished run"),
        (("export", "nowhere"), "nowhere holds no finished run"),
    ],
)
def test_a_wrong_name_is_told_in_one_sentence(
    terminal: Terminal, args: tuple[str, ...], words: str
) -> None:
    seen = terminal(*args)
    assert seen.code == 2
    assert is_one_sentence(seen.err)
    assert words in seen.err
    assert seen.out == ""
    assert terminal.files() == set()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--updates", "-5"), "updates must be at least 1, got -5"),
        (("--updates", "many"), "--updates: invalid literal"),
        (("--updatess", "3"), "Perhaps you meant"),
        (("--log-every", "0"), "log_every must be at least 1"),
        (("--final-episodes", "0"), "final_episodes must be at least 1"),
        (("--seeds", "1", "1"), "seeds must be different numbers"),
        (("--seeds", "-1"), "seeds must be different numbers >= 0"),
        (("--seeds",), "seeds must be different numbers >= 0, got []"),
        (("--threads", "1000000"), "threads must be at most"),
        (("--checkpoint-seconds", "nan"), "checkpoint_seconds must be >= 0"),
        (("--resume", "--overwrite"), "--resume and --overwrite exclude each other"),
        (("--algo.expectile", "1.7"), "expectile must lie in [0.5, 1), got 1.7"),
        (("--algo.batch-size", "0"), "batch_size must lie in"),
        (("--algo.learning-rate", "-1"), "learning_rate must lie in"),
        (("--algo.inverse-temperature", "nan"), "inverse_temperature must be a finite number"),
        (("--algo.discount", "inf"), "discount must be a finite number"),
        (("--algo.hidden", "0"), "hidden must be widths between 1"),
        (("--algo.keep-best", "0"), "keep_best must lie in"),
    ],
)
def test_a_wrong_number_names_its_option_and_range(
    terminal: Terminal, args: tuple[str, ...], words: str
) -> None:
    seen = terminal("run", *args)
    assert seen.code == 2
    assert words in " ".join(seen.err.replace("│", " ").split())
    assert "Traceback" not in seen.err
    assert terminal.files() == set()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_asked_for_and_absent(terminal: Terminal) -> None:
    seen = terminal("run", "--device", "cuda")
    assert seen.code == 2
    assert is_one_sentence(seen.err)
    assert "use --device cpu" in seen.err
    assert terminal.files() == set()


def test_output_below_a_file_is_refused_before_anything_is_read(terminal: Terminal) -> None:
    (terminal.folder / "file").write_text("")
    seen = terminal("run", "--out", "file/below", "--dataset", "missing.hdf5")
    assert seen.code == 2
    assert is_one_sentence(seen.err)
    assert "cannot write file/below" in seen.err
    assert terminal.files() == {"file"}


def test_a_run_without_simulator_leaves_whole_files_and_says_where(
    terminal: Terminal, toy_file: Path
) -> None:
    seen = terminal("run", "--algo", "bc", "--dataset", toy_file, *FAST, "--seeds", 3, 5)
    assert seen.code == 0
    (config,) = [name for name in terminal.files() if name.endswith("config.json")]
    folder = config.removesuffix("/config.json")
    assert terminal.files() == {
        f"{folder}/{name}"
        for name in (
            "config.json",
            "metrics.csv",
            "seed-3/run.json",
            "seed-3/policy.safetensors",
            "seed-5/run.json",
            "seed-5/policy.safetensors",
        )
    }
    assert folder in seen.out.replace("\n", "")
    assert "no simulator" in seen.out


def test_a_finished_run_is_found_not_trained_again(terminal: Terminal, toy_file: Path) -> None:
    args = ("run", "--algo", "bc", "--dataset", toy_file, *FAST)
    first = terminal(*args)
    (record,) = terminal.folder.rglob("run.json")
    written = record.stat().st_mtime_ns
    again = terminal(*args)
    assert again.out == first.out
    assert record.stat().st_mtime_ns == written
    assert terminal(*args, "--overwrite").code == 0
    assert record.stat().st_mtime_ns > written


class Stopped:
    """A run of BC that is interrupted in its 26th of 40 updates: logged and saved up to 20."""

    def __init__(self, terminal: Terminal, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.terminal, self.data = terminal, data
        update, calls = BC.update, iter(range(1000))

        def interrupted(learner: BC, batch: Batch) -> Metrics:
            if next(calls) == 25:
                raise KeyboardInterrupt
            return update(learner, batch)

        with monkeypatch.context() as patch:
            patch.setattr(BC, "update", interrupted)
            self.stopped = self("--out", "runs")
        (self.checkpoint,) = terminal.folder.rglob("checkpoint.safetensors")

    def __call__(self, *args: object) -> Outcome:
        return self.terminal("run", "--algo", "bc", "--dataset", self.data, *FAST, *args)


@pytest.fixture
def stopped(terminal: Terminal, toy_file: Path, monkeypatch: pytest.MonkeyPatch) -> Stopped:
    return Stopped(terminal, toy_file, monkeypatch)


def test_an_interrupted_run_is_continued_only_when_asked(stopped: Stopped) -> None:
    assert stopped.stopped == Outcome(130, "", "offdiff: interrupted\n")
    seen = stopped("--out", "runs")
    assert seen.code == 2
    assert is_one_sentence(seen.err)
    assert "--resume" in seen.err
    assert "--overwrite" in seen.err


def test_a_continued_run_ends_as_an_undisturbed_one(stopped: Stopped) -> None:
    assert stopped("--out", "runs", "--resume").code == 0
    assert stopped("--out", "undisturbed").code == 0
    for name in ("policy.safetensors", "metrics.csv"):
        (continued,) = Path("runs").rglob(name)
        (undisturbed,) = Path("undisturbed").rglob(name)
        assert continued.read_bytes() == undisturbed.read_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--updates", "60"), "updates 40 -> 60"),
        (("--algo.learning-rate", "0.01"), "learning_rate 0.0003 -> 0.01"),
        (("--seeds", "7"), "other seeds"),
    ],
)
def test_resuming_with_other_options_says_which(
    stopped: Stopped, change: tuple[str, ...], words: str
) -> None:
    before = stopped.terminal.files()
    seen = stopped("--out", "runs", *change, "--resume")
    assert seen.code == 2
    assert is_one_sentence(seen.err)
    assert words in seen.err
    assert stopped.terminal.files() == before


class Bomb:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def pickles() -> list[bytes]:
    """What other programs call a checkpoint, in every form that runs code when it is read."""
    found = [pickle.dumps(Bomb(), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for zipped in (True, False):
        path = Path("pickled")
        torch.save({"weights": Bomb()}, path, _use_new_zipfile_serialization=zipped)
        found.append(path.read_bytes())
        path.unlink()
    return found


def test_a_pickle_is_refused_as_a_checkpoint(stopped: Stopped) -> None:
    for content in pickles():
        stopped.checkpoint.write_bytes(content)
        seen = stopped("--out", "runs", "--resume")
        assert seen.code == 2
        assert is_one_sentence(seen.err)
        assert "checkpoint.safetensors" in seen.err
        assert not Path("exploded").exists()
    assert "pickle" in seen.err


def test_a_pickle_is_refused_as_a_policy(terminal: Terminal) -> None:
    for content in pickles():
        Path("policy.safetensors").write_bytes(content)
        with pytest.raises(offdiff.InputError, match=r"policy\.safetensors"):
            offdiff.load_policy(Path("policy.safetensors"))
        assert not Path("exploded").exists()


def test_a_damaged_policy_is_refused_or_harmless(terminal: Terminal, toy_file: Path) -> None:
    terminal("run", "--algo", "bc", "--dataset", toy_file, *FAST, "--algo.hidden", 8)
    (policy,) = terminal.folder.rglob("policy.safetensors")
    content = policy.read_bytes()
    random = torch.Generator().manual_seed(0)
    refusals = []
    for _ in range(200):
        damaged = bytearray(content)
        place = int(torch.randint(len(damaged), (), generator=random))
        if place % 2:
            del damaged[place:]
        else:
            damaged[place] = int(torch.randint(256, (), generator=random))
        policy.write_bytes(damaged)
        try:
            offdiff.load_policy(policy)
        except offdiff.InputError as error:
            refusals.append(str(error))
    assert len(refusals) > 100  # at least all that are cut short
    assert not [text for text in refusals if "\n" in text]


@pytest.mark.parametrize("nth", range(6))
def test_a_disk_that_fills_up_leaves_no_half_file(
    terminal: Terminal, toy_file: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """Whichever file is the one that no longer fits."""
    sync, calls = os.fsync, iter(range(1000))

    def full(handle: int) -> None:
        if next(calls) == nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    args = ("run", "--algo", "bc", "--dataset", toy_file, *FAST)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        seen = terminal(*args)
    assert seen.code == 2
    assert is_one_sentence(seen.err)
    assert "No space left on device" in seen.err
    assert not [name for name in terminal.files() if name.endswith((".part", "run.json"))]
    begun = any(name.endswith("config.json") for name in terminal.files())
    assert terminal(*args, *(["--resume"] if begun else [])).code == 0


def test_a_real_write_error_is_one_sentence(tmp_path: Path, toy_file: Path) -> None:
    """The system itself refuses files of more than 50 kB; weights have 270 kB."""
    resource = pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-m", "offdiff", "run", "--algo", "bc", "--dataset", toy_file, *FAST],
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert is_one_sentence(done.stderr)
    assert "checkpoint.safetensors: File too large" in done.stderr
    left = {path.name for path in (tmp_path / "results").rglob("*") if path.is_file()}
    assert left == {"config.json", "metrics.csv"}
