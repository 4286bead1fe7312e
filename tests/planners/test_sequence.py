"""Sequence denoisers: what is known stays, guidance is affine, refinement follows the posterior."""

from functools import partial

import pytest
import torch
from torch import Tensor

from offdiff.diffusion.denoiser import LevelLaw
from offdiff.diffusion.sampling import karras_sigmas, sample_ddim
from offdiff.planners.sequence import (
    SequenceDenoiser,
    SequenceLaw,
    sample_given,
    sequence_loss,
)

ROWS, COLUMNS = 5, 3


def denoiser(*, conditional: bool = True) -> SequenceDenoiser:
    torch.manual_seed(0)
    made = SequenceDenoiser("mlp-128", COLUMNS, ROWS, conditional=conditional)
    for parameter in made.parameters():  # also those that begin at zero
        torch.nn.init.normal_(parameter, std=0.1)
    return made.eval().requires_grad_(False)


def window(n: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, values = torch.randn(2, n, ROWS, COLUMNS, generator=generator)
    known = torch.rand(n, ROWS, COLUMNS, generator=generator) < 0.3
    return x, values, known


def test_known_entries_leave_as_they_were_given_bit_for_bit() -> None:
    x, values, known = window()
    sampler = partial(sample_ddim, sigmas=karras_sigmas(3, 0.02, 20))
    denoise = denoiser().given(values, known, torch.ones(4), weight=1.7)
    rows = sample_given(sampler, denoise, 20 * x, values, known)
    assert torch.equal(rows[known], values[known])
    assert not torch.equal(rows[~known], values[~known])


def test_what_the_start_holds_where_entries_are_known_does_not_matter() -> None:
    x, values, known = window()
    denoise = denoiser().given(values, known)
    sigma = torch.full((4,), 2.0)
    assert torch.equal(denoise(x, sigma), denoise(torch.where(known, 1e3, x), sigma))


def test_guidance_is_affine_in_its_weight() -> None:
    x, values, known = window()
    sigma, condition = torch.full((4,), 0.7), torch.linspace(-1, 1, 4)

    def at(weight: float) -> Tensor:
        return denoiser().given(values, known, condition, weight=weight)(x, sigma)

    null = denoiser().given(values, known)(x, sigma)
    flagged = torch.stack((condition, torch.ones(4)), dim=-1)
    full = denoiser()(torch.where(known, values, x), sigma, known, flagged)
    assert torch.equal(at(0), null)
    torch.testing.assert_close(at(1), full)
    torch.testing.assert_close(at(2.5), null + 2.5 * (full - null))
    assert (full - null).abs().max() > 1e-3


def test_the_null_condition_is_not_a_wanted_return_of_zero() -> None:
    x, values, known = window()
    sigma = torch.full((4,), 0.7)
    zero = denoiser().given(values, known, torch.zeros(4))(x, sigma)
    assert not torch.allclose(zero, denoiser().given(values, known)(x, sigma))


def test_no_loss_on_what_is_known_or_not_counted() -> None:
    x, values, known = window()
    sigma = torch.full((4,), 0.5)
    loss = denoiser(conditional=False).loss(values, x, sigma, known, None)
    assert (loss[known] == 0).all()
    assert (loss[~known] > 0).all()
    nothing = sequence_loss(
        denoiser(conditional=False), values, known, torch.zeros_like(values), None, SequenceLaw(),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert nothing == 0


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_refining_with_the_exact_denoiser_follows_the_gaussian_posterior(levels: int) -> None:
    """Data N(m, v): the probability flow maps x at sigma to m + (x - m) sqrt(v / (v + sigma^2)).

    Its discretisation has a closed form, too: every step multiplies x - m by a known factor.
    """
    mean, variance, start = 0.7, 0.25, 0.4

    def exact(x: Tensor, sigma: Tensor, /) -> Tensor:
        s2 = sigma.view(-1, 1, 1) ** 2
        return (variance * x + s2 * mean) / (variance + s2)

    generator = torch.Generator().manual_seed(0)
    proposal = torch.full((20_000, 1, 1), 1.5, dtype=torch.float64)
    noise = torch.randn(proposal.shape, generator=generator, dtype=torch.float64)
    sigmas = karras_sigmas(levels, 0.02, start)
    none = torch.zeros_like(proposal, dtype=torch.bool)
    sampler = partial(sample_ddim, sigmas=sigmas)
    rows = sample_given(sampler, exact, proposal + start * noise, proposal, none)
    factor = 1.0
    for now, following in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        factor *= 1 + (following - now) * now / (variance + now**2)
    expected = mean + factor * (1.5 - mean)
    assert rows.mean().item() == pytest.approx(expected, abs=4 * factor * start / 20_000**0.5)
    assert rows.std().item() == pytest.approx(factor * start, rel=0.02)


def test_training_learns_the_conditional_mean_of_what_is_pinned() -> None:
    """A random walk with a pinned end is a bridge: its middle lies half-way, at any level."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    made = SequenceDenoiser("mlp-128", 1, 3, conditional=False)
    optimiser = torch.optim.Adam(made.parameters(), 3e-3)
    start = torch.tensor([[True], [False], [False]])
    law = SequenceLaw(levels=LevelLaw(mean=0.0), fill=0.7)
    for step in range(600):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1 - step / 600)
        walk = torch.randn(256, 3, 1, generator=generator).mul(0.7).cumsum(1)
        loss = sequence_loss(
            made, walk, start, torch.ones_like(walk), None, law, generator=generator
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    values = torch.zeros(64, 3, 1)
    values[:, 0], values[:, 2] = -0.5, 1.0
    known = torch.tensor([[True], [False], [True]]).expand(64, 3, 1)
    noise = 20 * torch.randn(64, 3, 1, generator=generator)
    with torch.no_grad():
        middle = made.given(values, known)(noise, torch.full((64,), 20.0))[:, 1].mean()
        loose = made.given(values, start.expand(64, 3, 1))(noise, torch.full((64,), 20.0))
    assert middle.item() == pytest.approx(0.25, abs=0.12)
    assert loose[:, 2].mean().item() == pytest.approx(-0.5, abs=0.15)  # nothing pulls it away
