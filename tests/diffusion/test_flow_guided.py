"""Flow-guided distillation: where a straight flow finishes, and what that is worth to a student."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from offdiff.core.errors import InputError
from offdiff.data.toy import linear_gaussian
from offdiff.diffusion.config import ModelConfig
from offdiff.diffusion.couplings import LEG, FlowGuided, Leg, Pairs
from offdiff.diffusion.denoiser import SIGMA_MAX, Denoiser
from offdiff.diffusion.fit import split, train_model
from offdiff.diffusion.losses import Loss
from offdiff.diffusion.mlp import WindowMLP
from offdiff.diffusion.reflow import PairsConfig, distil_config, make_pairs, train_student

STD = 0.5
CPU = torch.device("cpu")


def straight(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact denoiser of the coupling window = STD * noise, whose paths are straight lines."""
    return STD / (STD + sigma[:, None, None]) * x


def twice_as_wide(x: Tensor, sigma: Tensor) -> Tensor:
    """Of window = 2 STD * noise: a student that errs by STD * noise."""
    return 2 * STD / (2 * STD + sigma[:, None, None]) * x


def pairs_of(n: int, rows: int = 1, known: Tensor | None = None) -> Pairs:
    noise = torch.randn(n, rows, 2, generator=torch.Generator().manual_seed(3))
    return Pairs(clean=STD * noise, noise=noise, known=known, teacher="", calls=1)


def drawn(leg: Leg, n: int = 4001) -> tuple[Tensor, Tensor]:
    """The finished half of a batch."""
    coupling = FlowGuided(pairs=pairs_of(10), student=twice_as_wide, guide=straight, leg=leg)
    clean, noise, known = coupling.draw(n, 0.0, generator=torch.Generator().manual_seed(0))
    assert known is None
    half = n - n // 2
    assert_close(clean[:half], STD * noise[:half])  # pairs, untouched
    assert len(noise[:half].unique(dim=0)) <= 10
    return clean[half:], noise[half:]


def test_a_guide_alone_ends_where_its_flow_does() -> None:
    clean, noise = drawn("guide")
    # Asked at SIGMA_MAX and not at infinity, it is off by STD / SIGMA_MAX.
    assert_close(clean, STD * noise, rtol=0.01, atol=0)
    assert len(noise.unique(dim=0)) == len(noise)


def test_a_guide_mends_what_is_left_of_the_way() -> None:
    """At share s of the way sigma = (1 - s) / s: STD / (STD + sigma) of its start's error stays."""
    clean, noise = drawn("student")
    kept = (clean / noise / STD - 1)[:, 0]  # per window, the same in every entry
    assert_close(kept[:, 0], kept[:, 1], atol=1e-4, rtol=0)
    low, high = (STD / (STD + (1 - share) / share) for share in LEG)
    assert kept.min() == pytest.approx(low, abs=0.02)
    assert kept.max() == pytest.approx(high, abs=0.02)


def test_what_is_known_is_of_the_pairs_alone() -> None:
    known = torch.ones(10, 3, 4, dtype=torch.bool)
    coupling = FlowGuided(pairs=pairs_of(10, 3, known), student=straight, guide=straight)
    found = coupling.draw(5, 0.0, generator=torch.Generator().manual_seed(0)).known
    assert found is not None
    assert found.flatten(1).all(1).tolist() == [True] * 3 + [False] * 2


def one_call_error(pairs: Pairs, *, guided: bool) -> float:
    """RMSE of one call of a trained student to STD * noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = WindowMLP(2, 2, rows=4, width=64, depth=2)
    slots = torch.ones(4, 2, dtype=torch.bool)
    student = Denoiser(network, slots, [2, 0, 0, 0], level_channels=False)
    coupling = FlowGuided(pairs=pairs, student=student, guide=straight) if guided else pairs
    loss, generator = Loss(student, "x0", "huber"), torch.Generator().manual_seed(0)
    optimiser, steps = torch.optim.Adam(network.parameters(), 3e-3), 300
    # Without decay the last steps' noise is as large as what is compared.
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        clean, noise, _ = coupling.draw(64, step / steps, generator=generator)
        value = loss(clean, noise, torch.full((64,), SIGMA_MAX))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        decay.step()
    noise = torch.randn(500, 4, 2, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        made = student(SIGMA_MAX * noise, torch.full((500,), SIGMA_MAX))
    return float((made - STD * noise).square().mean().sqrt())


def test_it_helps_where_pairs_are_few_and_does_no_harm_where_they_are_many() -> None:
    few, many = pairs_of(16, 4), pairs_of(20_000, 4)
    assert one_call_error(few, guided=True) < 0.3 * one_call_error(few, guided=False)
    assert one_call_error(many, guided=True) < 1.1 * one_call_error(many, guided=False)


def test_a_student_of_pairs_and_a_guide(tmp_path: Path) -> None:
    config = ModelConfig(horizon=4, steps=30, batch_size=16, network="mlp-128")
    episodes = linear_gaussian(60, 8)
    model = train_model(episodes, config, CPU, tmp_path)
    windows, _ = split(episodes, model.config, CPU)
    pairs = make_pairs(model, windows, PairsConfig(pairs=32, levels=4))
    config = dataclasses.replace(distil_config(model.config), steps=4)

    def weights(name: str, leg: Leg | None) -> Tensor:
        student = train_student(
            model, pairs, episodes, config, tmp_path / name, recipe="distil", calls=1,
            guide=None if leg is None else model, leg=leg or "student",
        )  # fmt: skip
        return torch.cat([p.flatten() for p in student.denoiser.parameters()])

    plain, own, guides = weights("a", None), weights("b", "student"), weights("c", "guide")
    assert not torch.equal(plain, own)
    assert not torch.equal(own, guides)
    other = dataclasses.replace(
        model, codec=dataclasses.replace(model.codec, mean=model.codec.mean + 1)
    )
    with pytest.raises(InputError, match="other statistics"):
        train_student(
            model, pairs, episodes, config, tmp_path / "d", recipe="distil", calls=1, guide=other
        )
