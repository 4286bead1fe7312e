"""`offdiff augment`: guided, unguided and rolled out, with provenance; refused before it starts."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import pytest
import torch

from offdiff.algos.bc import BCConfig
from offdiff.checkpoint import save_policy
from offdiff.cli import main
from offdiff.core.files import sha256
from offdiff.core.types import Spec
from offdiff.data.load import load_dataset
from offdiff.data.windows import episodes_hash
from offdiff.diffusion import fit
from offdiff.diffusion.config import ModelConfig
from offdiff.policy import deploy

TINY = (
    *("--augment.model.network", "unet-32", "--augment.model.steps", "8"),
    *("--augment.model.batch-size", "8", "--augment.model.horizon", "4"),
)
FEW = ("--augment.levels", "4", "--transitions", "100")
ROLLOUTS = (
    *("--augment.dynamics.updates", "3", "--augment.dynamics.hidden", "8"),
    *("--augment.dynamics.members", "2", "--augment.dynamics.elites", "1"),
    *("--augment.horizon", "4", "--transitions", "100"),
)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def augment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.setenv("OFFDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fit, "VALIDATION_WINDOWS", 16)  # most of a tiny training's time
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Outcome:
        try:
            code = main(["augment", *map(str, args)])
        except SystemExit as stopped:  # tyro's way to end
            code = int(stopped.code or 0)
        return Outcome(code, *capsys.readouterr())

    return run


def write_policy(path: Path, obs: int = 3, actions: int = 2, bound: float = 1.0) -> Path:
    config = BCConfig(hidden=(8,))
    torch.manual_seed(0)
    policy = deploy(
        config.network(Spec(obs, actions)),
        obs_mean=torch.zeros(obs),
        obs_std=torch.ones(obs),
        action_low=torch.full((actions,), -bound),
        action_high=torch.full((actions,), bound),
    )
    save_policy(path, policy, "bc", config)
    return path


def files() -> set[str]:
    """All but the policies, and the lock of a training that did not begin."""
    found = {str(path.relative_to(Path.cwd())) for path in Path.cwd().rglob("*") if path.is_file()}
    return {name for name in found if not name.endswith(("policy.safetensors", "lock"))}


def is_one_sentence(text: str) -> bool:
    return text.startswith("offdiff: ") and text.endswith("\n") and text.count("\n") == 1


def test_pgd_writes_a_dataset_that_says_how_it_was_made(augment: Command, toy_file: Path) -> None:
    policy = write_policy(Path("run") / "seed-0" / "policy.safetensors")
    args = ("--augment", "pgd", "--dataset", toy_file, *TINY, *FEW, "--seed", 3)
    seen = augment(*args, "--policy", "run", "--to", "made.hdf5")
    assert seen.code == 0, seen.err
    assert seen.out.startswith("made.hdf5\n")
    made, source = load_dataset("made.hdf5"), load_dataset(str(toy_file))
    assert made.info.behaviour == "synthetic: pgd from toy"
    assert made.episodes.spec == source.episodes.spec
    assert f"{len(made.episodes)} transitions in {made.episodes.n_episodes} episodes" in seen.out
    assert made.episodes.lengths.max() <= 4
    with h5py.File("made.hdf5") as file:
        kept = dict(file.attrs)
    assert kept["policy_sha256"] == sha256(policy)
    assert kept["source_dataset"] == "toy"
    assert kept["source_data_hash"] == episodes_hash(source.episodes)
    assert kept["synthesis_seed"] == 3
    config = json.loads(kept["augmenter_config"])
    assert (config["levels"], config["transitions"]) == (4, 100)
    used = ModelConfig(network="unet-32", steps=8, batch_size=8, horizon=4)
    assert kept["model_hash"] == used.hash
    assert json.loads(kept["augmenter_provenance"])["model_data_hash"] == kept["source_data_hash"]
    # The same again, from the cached model; and with another seed.
    assert augment(*args, "--policy", policy, "--to", "again.hdf5").code == 0
    again = load_dataset("again.hdf5").episodes
    assert (again.obs == made.episodes.obs).all()
    unguided = augment(*args[2:], "--augment", "unguided", "--to", "free.hdf5")
    assert unguided.code == 0, unguided.err
    free = load_dataset("free.hdf5").episodes
    assert free.obs.shape != again.obs.shape or (free.obs != again.obs).any()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pgd-released", (*TINY, *FEW, "--augment.levels", "32")),
        ("offdiff.augment.diffusion:PGDConfig", (*TINY, *FEW, "--augment.strength", "auto")),
        ("pgd-partial", (*TINY, *FEW, "--augment.noise", "1")),
        ("world-model", ROLLOUTS),
    ],
)
def test_other_augmenters(
    augment: Command, toy_file: Path, name: str, options: tuple[str, ...]
) -> None:
    policy = write_policy(Path("policy.safetensors"))
    args = ("--augment", name, "--dataset", toy_file, *options, "--policy", policy)
    seen = augment(*args, "--to", "made.hdf5")
    assert seen.code == 0, seen.err
    made = load_dataset("made.hdf5")
    assert len(made.episodes) > 0
    assert made.info.behaviour.startswith("synthetic: ")


def test_transitions_that_a_filter_drops_split_their_windows(
    augment: Command, toy_file: Path
) -> None:
    small = ROLLOUTS[: ROLLOUTS.index("--augment.horizon")]
    args = ("--augment", "unguided", "--dataset", toy_file, *TINY, *FEW)
    assert augment(*args, "--to", "all.hdf5").code == 0
    assert augment(*args, *small, "--augment.drop-share", "0.5", "--to", "some.hdf5").code == 0
    every, some = (load_dataset(f"{name}.hdf5").episodes for name in ("all", "some"))
    assert len(some) == len(every) - len(every) // 2
    # Which windows are drawn does not depend on the filter.
    known = {row.tobytes() for row in every.obs}
    assert all(row.tobytes() in known for row in some.obs)


def test_an_existing_file_is_replaced_only_when_asked(augment: Command, toy_file: Path) -> None:
    Path("made.hdf5").write_text("precious")
    args = ("--augment", "unguided", "--dataset", toy_file, *TINY, *FEW, "--to", "made.hdf5")
    seen = augment(*args)
    assert seen.code == 2
    assert is_one_sentence(seen.err)
    assert "made.hdf5 exists already" in seen.err
    assert files() == {"made.hdf5", "toy.hdf5"}  # nothing was trained either
    assert Path("made.hdf5").read_text() == "precious"
    assert augment(*args, "--overwrite").code == 0
    assert load_dataset("made.hdf5").info.behaviour == "synthetic: unguided from toy"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--augment", "pgd"), "pgd needs a policy; give a run's folder with --policy"),
        (("--augment", "pgd"), "--augment unguided"),
        (("--augment", "pgd-released"), "pgd-released needs a policy"),
        (("--augment", "world-model"), "world-model needs a policy"),
        (("--augment", "unguided", "--policy", "p"), "unguided heeds no policy"),
        (("--augment", "none"), "choose an augmenter"),
        (("--augment", "pdg"), "unknown augmenter 'pdg'; did you mean 'pgd'"),
        (("--augment", "nowhere:Config"), "cannot import 'nowhere'"),
        (("--augment",), "argument --augment: expected one argument"),
        (("--preset", "papr"), "unknown preset 'papr'; did you mean 'paper'?"),
        (("--policy", "nowhere"), "nowhere holds no policy"),
        (("--policy", "toy.hdf5"), "toy.hdf5 is damaged or not written by offdiff"),
        (("--policy", "two"), "two holds policies of 2 seeds; choose one, such as two/seed-0"),
        (("--policy", "other"), "takes 4 observation and gives 2 action numbers, but toy has 3"),
        (("--policy", "wide"), "give a policy of the same environment"),
        (("--augment", "unguided", "--to", "made.txt"), "neither a file ending in .hdf5"),
        (("--augment", "unguided", "--to", "toy.hdf5/made.hdf5"), "cannot write toy.hdf5"),
        (("--augment", "unguided", "--dataset", "missing.hdf5"), "missing.hdf5: no such file"),
        (("--augment", "unguided", "--transitions", "0"), "transitions must be at least 1"),
        (("--augment", "unguided", "--seed", "-1"), "seed must be at least 0"),
        (("--augment", "unguided", "--threads", "100000"), "threads must lie in [0,"),
        (("--augment", "unguided", "--device", "gpu"), "choose auto, cpu, cuda or cuda:N"),
        (("--augment", "unguided", "--augment.levels", "0"), "levels must lie in [1, 10000]"),
        (("--augment", "unguided", "--augment.model.network", "u"), "unknown network 'u'"),
        (("--augment", "unguided", "--threads", "-1"), "threads must lie in [0,"),
        (
            (
                "--augment",
                "unguided",
                "--augment.model.horizon",
                "11",
                "--augment.model.no-terminals",
            ),
            "shorten the horizon",
        ),
        (("--augment", "unguided", "--augment.model-file", "missing"), "missing does not exist"),
    ],
)
def test_bad_input(augment: Command, toy_file: Path, args: tuple[str, ...], words: str) -> None:
    for seed in (0, 1):
        write_policy(Path("two") / f"seed-{seed}" / "policy.safetensors")
    write_policy(Path("other") / "policy.safetensors", obs=4)
    write_policy(Path("wide") / "policy.safetensors", bound=2.0)
    seen = augment("--dataset", toy_file, "--to", "made.hdf5", *args)
    assert seen.code == 2
    assert words in " ".join(seen.err.replace("│", " ").split())
    assert "Traceback" not in seen.err
    assert seen.out == ""
    assert files() == {"toy.hdf5"}


def test_a_model_of_other_data_is_refused(
    augment: Command, toy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = [word.replace("--augment.", "--") for word in TINY]
    assert main(["model", "train", "--dataset", "sample", *tiny, "--out", "other.st"]) == 0
    capsys.readouterr()
    args = ("--augment", "unguided", "--dataset", toy_file, "--augment.model-file", "other.st")
    seen = augment(*args, "--to", "made.hdf5")
    assert seen.code == 2
    assert is_one_sentence(seen.err)
    assert "models other data" in seen.err
    assert not Path("made.hdf5").exists()
