"""The trajectory premetric: what it finds near, what it leaves out, and reflow with it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from offdiff.core.errors import InputError
from offdiff.data.codec import Codec
from offdiff.data.load import load_dataset
from offdiff.data.toy import linear_gaussian
from offdiff.data.windows import Windows, hold_out
from offdiff.diffusion.config import ModelConfig
from offdiff.diffusion.denoiser import Denoiser
from offdiff.diffusion.fit import split as split_windows
from offdiff.diffusion.fit import train_model
from offdiff.diffusion.losses import Loss
from offdiff.diffusion.premetric import Premetric, fit_premetric
from offdiff.diffusion.reflow import PairsConfig, make_pairs, reflow_config, train_student
from offdiff.diffusion.world_model import WorldModel

CPU = torch.device("cpu")
HORIZON = 16


@pytest.fixture(scope="module")
def held() -> Windows:
    return split()[1]


def split() -> tuple[Windows, Windows]:
    kept, held = hold_out(load_dataset("sample").episodes, 0.1, 0)
    return Windows.of(kept, HORIZON, CPU), Windows.of(held, HORIZON, CPU, terminals=False)


@pytest.fixture(scope="module")
def premetric() -> Premetric:
    windows, _ = split()
    sample = windows.sample(20_000, generator=torch.Generator().manual_seed(0))
    return fit_premetric(windows, Codec.fit(sample, "linear"), steps=500)


def neighbours(held: Windows, codec: Codec) -> tuple[Tensor, Tensor]:
    """Windows of held-out episodes, and those that begin one step later."""
    first = (held.starts[1:] == held.starts[:-1] + 1).nonzero().squeeze(1)
    index = first[torch.randperm(len(first), generator=torch.Generator().manual_seed(1))[:500]]
    return codec.encode(held.cut(index)), codec.encode(held.cut(index + 1))


def auc(low: Tensor, high: Tensor) -> float:
    """How often a value of the first kind lies below one of the second."""
    return float((low[:, None] < high).float().mean())


def test_a_window_one_step_late_is_nearer_than_noise_of_the_same_size(
    premetric: Premetric, held: Windows
) -> None:
    clean, late = neighbours(held, premetric.codec)
    free = premetric.codec.slots.expand_as(clean)
    size = torch.linalg.vector_norm(late - clean, dim=(1, 2), keepdim=True)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2)) * free
    noise = size * noise / torch.linalg.vector_norm(noise, dim=(1, 2), keepdim=True)
    shifted, noisy = premetric(late, clean, free), premetric(clean + noise, clean, free)
    assert auc(shifted, noisy) >= 0.9


def test_gradients_reach_the_estimate_and_nothing_frozen(
    premetric: Premetric, held: Windows
) -> None:
    clean, late = neighbours(held, premetric.codec)
    estimate = late[:4].requires_grad_(True)
    free = premetric.codec.slots.expand_as(estimate)
    premetric(estimate, clean[:4], free).sum().backward()
    assert estimate.grad is not None
    for group, reached in {"state": True, "action": True, "reward": False}.items():
        gradient = estimate.grad[:, :-1, premetric.codec.group(group)]
        assert bool(gradient.ne(0).any()) == reached
    for network in (premetric.dynamics, premetric.worth):
        assert all(p.grad is None and not p.requires_grad for p in network.parameters())


def test_pinned_entries_and_those_beyond_the_end_do_not_count(premetric: Premetric) -> None:
    codec = premetric.codec
    windows = split()[0]
    # Hopper falls: windows that begin four steps before an episode's end hold four transitions.
    ends = (windows.last[windows.starts] - windows.starts == 3).nonzero().squeeze(1)[:32]
    clean = codec.encode(windows.cut(ends))
    alive = codec.alive(clean)
    assert (alive.sum(1) == 4).all()
    free = codec.slots.expand_as(clean).clone()
    free[:, 0, codec.group("state")] = False  # pinned
    estimate = clean.clone()
    estimate[:, 0, codec.group("state")] += 1.0
    estimate[:, 5:] += 1.0  # row 4 is the state in which the task ended
    estimate[:, 4, codec.group("action")] += 1.0
    estimate.requires_grad_(True)
    distance = premetric(estimate, clean, free)
    assert distance.eq(0).all()
    other = estimate.detach().clone()
    other[:, 4, codec.group("state")] += 0.1
    assert premetric(other, clean, free).gt(0).all()


def test_terms_have_unit_variance_on_data(premetric: Premetric) -> None:
    codec = premetric.codec
    windows = split()[0]
    rows = codec.encode(windows.sample(4096, generator=torch.Generator().manual_seed(5)))
    alive, found = codec.alive(rows) > 0.5, premetric.features(rows)
    for part in (found.residual[alive], found.change[alive], found.worth):
        assert float(part.var(0).mean()) == pytest.approx(1.0, abs=0.15)
    # The dynamics were learned: what they leave unexplained is small beside the change.
    assert premetric.scales[0] < premetric.scales[1] / 3


def test_the_same_data_and_seed_give_the_same_premetric(premetric: Premetric) -> None:
    """A stopped reflow fits it again and goes on with the same."""
    windows, codec = split()[0], premetric.codec
    first, second = (fit_premetric(windows, codec, steps=3) for _ in range(2))
    assert first.scales == second.scales
    for a, b in zip(first.dynamics.parameters(), second.dynamics.parameters(), strict=True):
        assert torch.equal(a, b)


class Constant(nn.Module):
    """F is the same everywhere."""

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return torch.full_like(x, 0.3)


def test_the_loss_is_rfpps_combination(premetric: Premetric, held: Windows) -> None:
    """(1 - t) Huber(v) + P(D, x0) / t, from the denoiser's own estimate; bits as ever."""
    codec = premetric.codec
    denoiser = Denoiser(Constant(), codec.slots, codec.widths, level_channels=False)
    clean = neighbours(held, codec)[0][:1]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
    for level in (0.2, 1.0, 80.0):
        sigma, t = torch.tensor([level]), level / (1 + level)
        loss, plain = Loss(denoiser, "v", "huber"), Loss(denoiser, "v", "huber")
        loss.premetric = premetric
        bits = denoiser.errors(clean, noise, sigma)[1][:, :-1].sum() / codec.slots.sum()
        estimate = denoiser(clean + level * noise, sigma)
        near = premetric(estimate, clean, codec.slots.expand_as(clean)).mean()
        expected = (1 - t) * (plain(clean, noise, sigma) - bits) + bits + near / t
        assert_close(loss(clean, noise, sigma), expected)


def test_reflow_takes_it_and_remembers_it(tmp_path: Path) -> None:
    episodes = linear_gaussian(40, 12, terminal_share=0.5)
    config = ModelConfig(horizon=8, steps=20, network="mlp-128", holdout=0.2)
    teacher = train_model(episodes, config, CPU, tmp_path)
    windows, _ = split_windows(episodes, config, CPU)
    pairs = make_pairs(teacher, windows, PairsConfig(pairs=128, levels=4))
    premetric = fit_premetric(windows, teacher.codec, steps=20)
    student = replace(reflow_config(config), steps=10)

    def reflowed(name: str, premetric: Premetric | None) -> WorldModel:
        return train_student(
            teacher, pairs, episodes, student, tmp_path / name, recipe=name, premetric=premetric
        )

    plain, dyn = reflowed("reflow", None), reflowed("reflow, premetric dyn", premetric)
    assert dyn.lineage.recipe == "reflow, premetric dyn"
    assert dyn.denoiser.state_dict().keys() == plain.denoiser.state_dict().keys()
    differ = [
        not torch.equal(a, b)
        for a, b in zip(plain.denoiser.parameters(), dyn.denoiser.parameters(), strict=True)
    ]
    assert any(differ)
    with pytest.raises(InputError, match="goes with the metric huber, not with l2"):
        train_student(
            teacher, pairs, episodes, replace(student, metric="l2"), tmp_path, recipe="reflow",
            premetric=premetric,
        )  # fmt: skip
