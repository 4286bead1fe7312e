"""Consistency distillation: its loss where all is known, and a student of a toy's teacher."""

import dataclasses
import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from offdiff.core.errors import InputError
from offdiff.data.toy import linear_gaussian
from offdiff.diffusion import fit
from offdiff.diffusion.config import ModelConfig
from offdiff.diffusion.consistency import ConsistencyLoss, OneOf, distil_consistency
from offdiff.diffusion.denoiser import SIGMA_MAX
from offdiff.diffusion.fit import CHECKPOINT, Fit, train_model
from offdiff.diffusion.multistep import sample_unipc
from offdiff.diffusion.oracles import gaussian
from offdiff.diffusion.reflow import distil_config
from offdiff.diffusion.sampling import karras_sigmas
from offdiff.diffusion.world_model import WorldModel

CPU = torch.device("cpu")
EPISODES = linear_gaussian(300, 12, terminal_share=0.5)
STD = 0.5
DATA = gaussian(torch.zeros(3, 2), STD)


class End(nn.Module):
    """Stands for a denoiser; scale 1 is the exact end of a Gaussian's path."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.scale * STD * (STD**2 + sigma[:, None, None] ** 2) ** -0.5 * x

    def counted(self, x: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(x, dtype=torch.bool)


def loss_of(student: nn.Module, levels: int, at: int) -> Tensor:
    """At one of the levels of a grid."""
    grid = karras_sigmas(levels)[:-1].float()
    random = torch.Generator().manual_seed(0)
    clean = STD * torch.randn(64, 3, 2, generator=random)
    noise = torch.randn(clean.shape, generator=random)
    loss = ConsistencyLoss(student, DATA, grid)  # type: ignore[arg-type]
    value: Tensor = loss(clean, noise, grid[at].expand(64))
    return value


def test_the_end_of_the_path_agrees_with_itself_up_to_the_teachers_steps() -> None:
    # Heun's method is of second order: half the step, about an eighth of one step's error.
    with torch.no_grad():
        coarse, fine, finest = (float(loss_of(End(), n, n // 2)) for n in (18, 36, 200))
    assert fine < coarse / 3
    assert finest < 1e-4


def test_on_the_last_level_the_teacher_says_where_the_path_ends() -> None:
    """Otherwise every student that is 0 everywhere would agree with itself."""
    nothing = End(0.0)
    with torch.no_grad():
        assert float(loss_of(nothing, 18, 8)) == pytest.approx(0, abs=1e-7)
        assert float(loss_of(nothing, 18, 16)) > 100 * float(loss_of(End(), 18, 16))


def test_the_goal_has_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    student, enabled = End(1.1), []
    forward = End.forward

    def noting(self: End, x: Tensor, sigma: Tensor) -> Tensor:
        enabled.append(torch.is_grad_enabled())
        return forward(self, x, sigma)

    monkeypatch.setattr(End, "forward", noting)
    assert loss_of(student, 18, 8).requires_grad
    assert enabled == [False, True]


def test_levels_are_drawn_equally_often() -> None:
    law = OneOf(torch.tensor([3.0, 2.0, 1.0]))
    drawn, counts = law.sample(3000, generator=torch.Generator().manual_seed(0)).unique(
        return_counts=True
    )
    assert drawn.tolist() == [1, 2, 3]
    assert counts.min() > 900


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> WorldModel:
    config = ModelConfig(horizon=8, steps=800, network="mlp-256")
    return train_model(EPISODES, config, CPU, tmp_path_factory.mktemp("teacher"))


@torch.no_grad()
def error(model: WorldModel, teacher: WorldModel) -> float:
    """RMSE of one call to the teacher's path."""
    noise = teacher.noise(200, 1.0, generator=torch.Generator().manual_seed(9))
    exact = sample_unipc(teacher.denoiser, SIGMA_MAX * noise, karras_sigmas(40), order=3)
    made = model.denoiser(SIGMA_MAX * noise, torch.full((200,), SIGMA_MAX))
    return float((made - exact).square().mean().sqrt())


def test_one_call_comes_near_the_end_of_the_path(teacher: WorldModel, tmp_path: Path) -> None:
    config = dataclasses.replace(distil_config(teacher.config), steps=400, learning_rate=3e-3)
    student = distil_consistency(teacher, EPISODES, config, tmp_path, levels=8)
    assert error(student, teacher) < 0.6 * error(teacher, teacher)
    assert (student.lineage.recipe, student.lineage.teacher) == ("consistency", teacher.hash)
    with pytest.raises(InputError, match="distilled for 1 network call"):
        student.levels(2)


def test_a_killed_training_resumes_to_the_same_bits(
    teacher: WorldModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(distil_config(teacher.config), steps=6)
    whole = distil_consistency(teacher, EPISODES, config, tmp_path / "whole")

    class Killed(Exception):
        pass

    step = Fit.step

    def dying(self: Fit, loss: nn.Module) -> Tensor:
        if self.steps == 4:
            raise Killed
        return step(self, loss)

    # A clock on which every step takes long enough for a checkpoint.
    monkeypatch.setattr(fit, "time", SimpleNamespace(monotonic=itertools.count(0, 100).__next__))
    with monkeypatch.context() as patch:
        patch.setattr(Fit, "step", dying)
        with pytest.raises(Killed):
            distil_consistency(teacher, EPISODES, config, tmp_path / "cut")
    assert (tmp_path / "cut" / CHECKPOINT).exists()
    resumed = distil_consistency(teacher, EPISODES, config, tmp_path / "cut")
    for a, b in zip(whole.denoiser.parameters(), resumed.denoiser.parameters(), strict=True):
        assert torch.equal(a, b)
