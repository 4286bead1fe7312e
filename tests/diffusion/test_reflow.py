"""Reflow and distillation: on a mixture with a known answer, and of a small world model."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from offdiff.core.errors import InputError
from offdiff.data.toy import linear_gaussian
from offdiff.data.windows import episodes_hash
from offdiff.diffusion.config import Law, Metric, ModelConfig
from offdiff.diffusion.couplings import Independent, Pairs, load_pairs
from offdiff.diffusion.denoiser import SIGMA_MAX, Denoiser
from offdiff.diffusion.fit import split, train_model
from offdiff.diffusion.flow_solvers import invert, restore
from offdiff.diffusion.laws import training_levels
from offdiff.diffusion.losses import Loss
from offdiff.diffusion.mlp import WindowMLP
from offdiff.diffusion.multistep import sample_unipc
from offdiff.diffusion.oracles import Mixture
from offdiff.diffusion.reflow import (
    PairsConfig,
    distil_config,
    levels_of_calls,
    make_pairs,
    reflow_config,
    train_student,
)
from offdiff.diffusion.sampling import karras_sigmas, sample_euler, student_levels
from offdiff.diffusion.world_model import WorldModel, load_model
from offdiff.distances import energy_distance

CPU = torch.device("cpu")
EPISODES = linear_gaussian(300, 12, terminal_share=0.5)
ANGLES = torch.arange(8) * torch.pi / 4
CIRCLE = 1.4 * torch.stack((ANGLES.cos(), ANGLES.sin()), 1)[:, None]
EIGHT = Mixture(torch.full((8,), 1 / 8), CIRCLE, torch.full((8,), 0.15))


def toy_pairs(n: int, seed: int) -> Pairs:
    noise = torch.randn(n, 1, 2, generator=torch.Generator().manual_seed(seed))
    clean = sample_unipc(EIGHT, SIGMA_MAX * noise, karras_sigmas(40), order=3)
    return Pairs(clean=clean, noise=noise, known=None, teacher="oracle", calls=40)


def toy_student(pairs: Pairs, law: Law, metric: Metric, steps: int = 1000) -> Denoiser:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = WindowMLP(2, 2, rows=1, width=128, depth=3)
    denoiser = Denoiser(network, torch.ones(1, 2, dtype=torch.bool), [2, 0, 0, 0],
                        level_channels=False)  # fmt: skip
    loss = Loss(denoiser, "v", metric)
    levels = training_levels(ModelConfig(law=law))
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        clean, noise, _ = pairs.draw(256, step / steps, generator=generator)
        value = loss(clean, noise, levels.sample(256, generator=generator))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        decay.step()
    return denoiser.requires_grad_(False)


def one_step(denoise: nn.Module | Mixture, noise: Tensor) -> Tensor:
    return sample_euler(denoise, SIGMA_MAX * noise, torch.tensor([SIGMA_MAX, 0.0]))  # type: ignore[arg-type]


def test_one_step_after_reflow_is_the_data() -> None:
    """R8: energy distance at one step <= 0.01 and <= 1/50 of the first flow's, which collapses."""
    student = toy_student(toy_pairs(20_000, 0), "u-shape", "huber")
    fresh = toy_pairs(4000, 1)
    data = EIGHT.sample(4000, generator=torch.Generator().manual_seed(5))
    first = energy_distance(one_step(EIGHT, fresh.noise), data)
    ours = energy_distance(one_step(student, fresh.noise), data)
    assert first > 0.5
    assert ours <= min(0.01, first / 50)
    paired = (one_step(student, fresh.noise) - fresh.clean).square().mean().sqrt()
    assert float(paired) < 0.3


def test_annealed_noise_is_standard_normal_at_every_stage() -> None:
    """A1."""
    noise = torch.randn(1000, 2, 2, generator=torch.Generator().manual_seed(0))
    noise = (noise - noise.mean()) / noise.std(correction=0)
    pairs = Pairs(clean=noise, noise=noise, known=None, teacher="", calls=1).annealed(0.5)
    for beta in (1.0, 0.7, 0.3, 0.0):
        generator = torch.Generator().manual_seed(1)
        drawn = pairs.draw(100_000, 0.5 * (1 - beta), generator=generator)
        assert float(drawn.noise.var()) == pytest.approx(1, abs=0.01)
        linked = float((drawn.noise * drawn.clean).mean())
        assert linked == pytest.approx((1 - beta**2) ** 0.5, abs=0.01)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> WorldModel:
    config = ModelConfig(horizon=8, steps=800, network="mlp-256")
    return train_model(EPISODES, config, CPU, tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def pairs(teacher: WorldModel) -> Pairs:
    windows, _ = split(EPISODES, teacher.config, CPU)
    return make_pairs(teacher, windows, PairsConfig(pairs=1500))


@torch.no_grad()
def errors(model: WorldModel, of: WorldModel, calls: int) -> float:
    noise = of.noise(200, 1.0, generator=torch.Generator().manual_seed(9))
    exact = sample_unipc(of.denoiser, SIGMA_MAX * noise, karras_sigmas(40), order=3)
    sigmas = dataclasses.replace(model, gaussian=None).levels(calls)
    made = sample_euler(model.denoiser, float(sigmas[0]) * noise, sigmas)
    return float((made - exact).square().mean().sqrt())


def test_students_need_fewer_calls(teacher: WorldModel, pairs: Pairs, tmp_path: Path) -> None:
    config = dataclasses.replace(reflow_config(teacher.config), steps=400)
    student = train_student(teacher, pairs, EPISODES, config, tmp_path, recipe="reflow")
    for calls in (1, 2, 4):
        assert errors(student, teacher, calls) < 0.6 * errors(teacher, teacher, calls)
    student.save(tmp_path / "s.safetensors")
    back = load_model(tmp_path / "s.safetensors", CPU, data_hash=episodes_hash(EPISODES))
    assert (back.lineage, back.hash) == (student.lineage, student.hash)
    assert back.lineage.teacher == teacher.hash
    assert torch.equal(back.errors.error, teacher.errors.error)


def test_a_distilled_model_refuses_more_calls(
    teacher: WorldModel, pairs: Pairs, tmp_path: Path
) -> None:
    """R9; and a smaller student, slid into the pairs, is a student too."""
    config = dataclasses.replace(distil_config(teacher.config), steps=300, network="mlp-128")
    student = train_student(
        teacher, pairs.annealed(0.25), EPISODES, config, tmp_path, recipe="distil", calls=1
    )
    assert errors(student, teacher, 1) < errors(teacher, teacher, 1)
    assert student.levels(1).tolist() == pytest.approx([SIGMA_MAX, 0.0])
    with pytest.raises(InputError, match="distilled for 1 network call"):
        student.levels(2)


def test_a_student_of_two_calls(teacher: WorldModel, pairs: Pairs, tmp_path: Path) -> None:
    """k-step distillation: it is trained at the levels of its calls, and called nowhere else."""
    config = dataclasses.replace(distil_config(teacher.config), steps=300)
    student = train_student(teacher, pairs, EPISODES, config, tmp_path, recipe="distil", calls=2)
    assert errors(student, teacher, 2) < 0.6 * errors(teacher, teacher, 2)
    assert torch.equal(student.levels(2), student_levels(2))
    for calls in (1, 3):
        with pytest.raises(InputError, match="distilled for 2 network call"):
            student.levels(calls)
    with pytest.raises(ValueError, match="goes with the law 'end'"):
        train_student(teacher, pairs, EPISODES, config, tmp_path, recipe="distil")


def test_the_levels_of_a_student_of_k_calls_are_drawn_equally_often() -> None:
    law = levels_of_calls(3)
    drawn = law.sample(3000, generator=torch.Generator().manual_seed(0))
    found, counts = drawn.unique(return_counts=True)
    assert_close(found.flip(0), student_levels(3)[:-1].float(), rtol=1e-4, atol=0)
    assert counts.min() > 900


def test_pairs_are_kept_and_belong_to_their_teacher(
    teacher: WorldModel, pairs: Pairs, tmp_path: Path
) -> None:
    pairs.save(tmp_path / "p.safetensors")
    back = load_pairs(tmp_path / "p.safetensors", CPU, teacher.hash, pairs.made)
    assert torch.equal(back.clean, pairs.clean)
    with pytest.raises(InputError, match="no pairs of this teacher"):
        load_pairs(tmp_path / "p.safetensors", CPU, "another", pairs.made)
    with pytest.raises(InputError, match="were made with pairs 1500"):
        load_pairs(tmp_path / "p.safetensors", CPU, teacher.hash, str(PairsConfig(pairs=9)))
    stranger = dataclasses.replace(pairs, teacher="another")
    with pytest.raises(InputError, match="made by another teacher"):
        train_student(teacher, stranger, EPISODES, reflow_config(teacher.config), tmp_path,
                      recipe="reflow")  # fmt: skip


def test_pairs_from_noise_and_from_data_are_of_one_ode(teacher: WorldModel) -> None:
    """The ODE takes a pair's noise to its window, whichever of the two was there first."""
    windows, _ = split(EPISODES, teacher.config, CPU)
    for share, limit in ((0.0, 0.02), (1.0, 0.25)):
        made = make_pairs(teacher, windows, PairsConfig(pairs=128, real_share=share, levels=32))
        again = sample_unipc(teacher.denoiser, SIGMA_MAX * made.noise, karras_sigmas(64), order=3)
        columns = teacher.denoiser.continuous
        off = (again - made.clean)[..., columns].square().mean().sqrt()
        assert float(off) < limit


def test_pinned_states_stay_pinned_in_pairs_and_students(tmp_path: Path) -> None:
    config = ModelConfig(horizon=4, steps=60, levels="mixed", network="unet-32")
    teacher = train_model(EPISODES, config, CPU, tmp_path / "t")
    windows, _ = split(EPISODES, teacher.config, CPU)
    pairs = make_pairs(teacher, windows, PairsConfig(pairs=64))
    assert pairs.known is not None
    assert 0.2 < float(pairs.known[:, 0, 0].float().mean()) < 0.8
    assert not bool(pairs.known[:, 1:].any())
    student = train_student(
        teacher, pairs, EPISODES, dataclasses.replace(reflow_config(config), steps=5),
        tmp_path / "s", recipe="reflow",
    )  # fmt: skip
    assert student.denoiser.level_channels


def test_a_window_is_turned_into_noise_and_back(teacher: WorldModel) -> None:
    windows, _ = split(EPISODES, teacher.config, CPU)
    clean = (
        Independent(windows, teacher.codec)
        .draw(64, 0.0, generator=torch.Generator().manual_seed(0))
        .clean
    )
    columns = teacher.denoiser.continuous
    with torch.no_grad():
        back = restore(teacher.denoiser, invert(teacher.denoiser, clean, steps=20), steps=20)
    off = (back - clean)[..., columns].square().mean().sqrt()
    assert float(off) < 0.05


def test_objectives_and_metrics_of_a_loss() -> None:
    """v against EDM's F by hand; Huber of a large error is its length over the entries."""

    class Half(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return torch.full_like(x, 0.5)

    denoiser = Denoiser(Half(), torch.ones(2, 3, dtype=torch.bool), [3, 0, 0, 0],
                        level_channels=False)  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(5, 2, 3, generator=generator) for _ in range(2))
    sigma = torch.tensor([0.1, 0.5, 1.0, 3.0, 20.0])
    s = sigma[:, None, None]
    t = s / (1 + s)
    x = clean + s * noise
    estimate = x / (s**2 + 1) + 0.5 * s / (s**2 + 1).sqrt()
    # v = (x_t - x0) / t with x_t = (1 - t) x; its target is noise - clean.
    error = ((1 - t) * x - estimate) / t - (noise - clean)
    assert_close(Loss(denoiser, "v", "l2")(clean, noise, sigma), error.square().mean())
    knee = 0.00054 * 6
    length = (error.square().sum((1, 2)) + knee**2).sqrt() - knee
    assert_close(Loss(denoiser, "v", "huber")(clean, noise, sigma), length.sum() / 30)
