"""Training of world models: what is learned, exact resume, several processes, files."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from offdiff.core.errors import InputError
from offdiff.core.tensors import load_tensors, save_tensors
from offdiff.data.toy import linear_gaussian
from offdiff.data.windows import episodes_hash
from offdiff.diffusion import fit as fit_module
from offdiff.diffusion.config import ModelConfig
from offdiff.diffusion.fit import CHECKPOINT, schedule, train_model
from offdiff.diffusion.world_model import ErrorCurve, load_model

CPU = torch.device("cpu")
TINY = ModelConfig(horizon=4, network="unet-32", steps=12, batch_size=8)


def test_the_error_curve_is_linear_in_the_logarithm() -> None:
    curve = ErrorCurve(torch.tensor([-2.0, 0.0, 2.0]), torch.tensor([[0.0], [1.0], [5.0]]))
    sigma = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0]).exp()
    assert_close(curve(sigma)[:, 0, 0], torch.tensor([0.0, 0.5, 1.0, 3.0, 5.0]))


def test_a_killed_training_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes = linear_gaussian(60, terminal_share=0.5)
    whole = train_model(episodes, TINY, CPU, tmp_path / "whole")

    class Killed(Exception):
        pass

    steps = 0
    original = fit_module.Fit.step

    def dying(self: fit_module.Fit, loss: torch.nn.Module) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 8:
            raise Killed
        return original(self, loss)

    monkeypatch.setattr(fit_module.Fit, "step", dying)
    with pytest.raises(Killed):
        train_model(episodes, TINY, CPU, tmp_path / "b", checkpoint_seconds=0)
    monkeypatch.undo()
    assert load_tensors(tmp_path / "b" / CHECKPOINT)[1]["steps"] == 7
    resumed = train_model(episodes, TINY, CPU, tmp_path / "b")
    pairs = zip(whole.denoiser.parameters(), resumed.denoiser.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert whole.validation == resumed.validation


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    train_model(linear_gaussian(60), replace(TINY, steps=2), CPU, tmp_path, checkpoint_seconds=0)
    with pytest.raises(InputError, match="belongs to another model"):
        train_model(linear_gaussian(61), TINY, CPU, tmp_path)


def test_a_model_file_gives_the_model_back(tmp_path: Path) -> None:
    episodes = linear_gaussian(60, terminal_share=0.5)
    model = train_model(episodes, replace(TINY, levels="mixed"), CPU, tmp_path)
    model.save(tmp_path / "m.safetensors")
    back = load_model(tmp_path / "m.safetensors", CPU, data_hash=episodes_hash(episodes))
    x, sigma = torch.randn(3, 5, model.codec.columns), torch.rand(3, 5, 4)
    with torch.no_grad():
        assert torch.equal(back.denoiser(x, sigma), model.denoiser(x, sigma))
    assert torch.equal(back.errors(torch.ones(2)), model.errors(torch.ones(2)))
    assert (back.config, back.validation) == (model.config, model.validation)


def test_models_of_other_data_or_without_statistics_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    train_model(linear_gaussian(60), TINY, CPU, tmp_path).save(file)
    with pytest.raises(InputError, match="models other data"):
        load_model(file, CPU, data_hash="0" * 64)
    tensors, meta = load_tensors(file)
    del tensors["codec/mean"]
    save_tensors(file, tensors, meta)
    with pytest.raises(InputError, match=r"statistics included \('codec/mean'\)"):
        load_model(file, CPU)


def test_windows_longer_than_every_episode_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shorten the horizon"):
        train_model(linear_gaussian(20, 6), replace(TINY, horizon=7), CPU, tmp_path)


def test_a_loss_that_breaks_is_refused(tmp_path: Path) -> None:
    episodes = linear_gaussian(20)
    episodes.reward[3] = float("inf")
    with pytest.raises(InputError, match=r"loss became nan before step \d+; lower"):
        train_model(episodes, TINY, CPU, tmp_path)


def test_the_learning_rate_warms_up_and_falls_to_nothing() -> None:
    config = replace(TINY, steps=100, warmup=0.1)
    rates = [schedule(step, config) for step in range(100)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert rates[55] == pytest.approx(0.5)
    assert rates[-1] < 1e-3


SCRIPT = """
import sys, torch
from pathlib import Path
from offdiff.data.toy import linear_gaussian
from offdiff.diffusion.config import ModelConfig
from offdiff.diffusion.fit import train_model
torch.set_num_threads(1)
config = ModelConfig(
    horizon=4, network="unet-32", steps=12, batch_size=8, learning_rate=3e-4
)
model = train_model(linear_gaussian(60), config, torch.device("cpu"), Path(sys.argv[1]) / "work")
import os
if os.environ.get("RANK", "0") == "0":
    model.save(Path(sys.argv[1]) / "model.safetensors")
"""


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, launcher in (
        ("one", [sys.executable]),
        (
            "two",
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
        ),
    ):
        command = [*launcher, str(tmp_path / "script.py"), str(tmp_path / name)]
        subprocess.run(command, check=True, env=env, capture_output=True, timeout=240)
    one, two = (load_tensors(tmp_path / n / "model.safetensors")[0] for n in ("one", "two"))
    for key, value in one.items():
        # Only the order of summation differs; Adam's first steps magnify that for tiny gradients.
        assert_close(two[key], value, atol=2e-5, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}")


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    from offdiff.diffusion.distributed import Group

    with pytest.raises(InputError, match="cannot be shared by 3 processes"):
        Group(0, 3).require_divisible(8)
