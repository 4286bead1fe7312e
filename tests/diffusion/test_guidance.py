"""Guidance against products of distributions that are known in closed form."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from offdiff.core.types import Spec, Trajectories
from offdiff.data.codec import ActionMap, Codec
from offdiff.diffusion.guidance import (
    PolicyGuidance,
    ScoreGuidance,
    compose,
    guided,
    guided_jointly,
)
from offdiff.diffusion.released import ReleasedGuidance, sample_released
from offdiff.diffusion.sampling import karras_sigmas, sample_heun


class Constant:
    """A Gaussian policy of the same mean and spread in every state."""

    def __init__(self, mean: float, std: float, width: int = 3) -> None:
        self.mean, self.std, self.width = mean, std, width

    def act(self, obs: Tensor, /) -> Tensor:
        return torch.full((*obs.shape[:-1], self.width), self.mean)

    def distribution(self, obs: Tensor, /) -> tuple[Tensor, Tensor]:
        return self.act(obs), torch.full((*obs.shape[:-1], self.width), self.std)

    def reset(self, which: Tensor, /) -> None:
        """Nothing to forget."""


def codec(action_map: ActionMap, horizon: int = 32, actions: int = 3) -> Codec:
    """Standard normal columns: nothing is shifted or scaled."""
    width = 1 + actions + 2
    return Codec(
        spec=Spec(1, actions),
        horizon=horizon,
        action_map=action_map,
        mean=torch.zeros(width),
        std=torch.ones(width),
    )


def standard_normal(x: Tensor, sigma: Tensor, /) -> Tensor:
    """E[x0 | x] for unit normal columns, but for the terminal, which never is."""
    estimate = x / (1 + sigma.view(-1, 1, 1) ** 2)
    estimate[..., -1] = -1.0
    return estimate


def guided_actions(
    action_map: ActionMap, target: float, std: float, strength: float, steps: int, n: int = 20_000
) -> Tensor:
    c = codec(action_map, horizon=1, actions=1)
    policy = Constant(target, std, 1)
    guidance = PolicyGuidance(
        codec=c, policy=policy, strength=strength, low=0.0, high=1e9, clamp=1e9
    )
    x = 80 * torch.randn(n, 2, c.columns, generator=torch.Generator().manual_seed(0))
    rows = sample_heun(guided(standard_normal, guidance), x, karras_sigmas(steps))
    return c.actions(rows)[0].flatten()


# target, std, strength; mean and std at 16 and 32 steps: PGD spec, table of section 16.2.
CALIBRATED = [
    (0.5, 1.0, 0.5, (0.099, 0.603), (0.105, 0.588)),
    (0.5, 1.0, 1.0, (0.165, 0.563), (0.173, 0.549)),
    (0.9, 1.0, 1.0, (0.293, 0.539), (0.299, 0.523)),
    (0.9, 1.0, 2.0, (0.428, 0.449), (0.435, 0.434)),
    (0.5, 0.2, 0.25, (0.388, 0.350), (0.393, 0.334)),
    (0.5, 0.2, 1.0, (0.472, 0.197), (0.474, 0.184)),
]


@pytest.mark.parametrize(("target", "std", "strength", "at16", "at32"), CALIBRATED)
def test_calibrated_guidance_reproduces_the_table(
    target: float,
    std: float,
    strength: float,
    at16: tuple[float, float],
    at32: tuple[float, float],
) -> None:
    for steps, (mean, spread) in ((16, at16), (32, at32)):
        found = guided_actions("tanh", target, std, strength, steps)
        assert float(found.mean()) == pytest.approx(mean, abs=0.01)
        assert float(found.std()) == pytest.approx(spread, abs=0.01)


@pytest.mark.parametrize(("mean", "std", "strength"), [(1.0, 1.0, 1.0), (2.0, 0.5, 1.0), (1, 1, 4)])
def test_linear_actions_follow_the_product_of_gaussians(
    mean: float, std: float, strength: float
) -> None:
    found = guided_actions("linear", mean, std, strength, 64)
    precision = 1 + strength / std**2
    assert float(found.mean()) == pytest.approx(strength * mean / std**2 / precision, abs=0.02)
    assert float(found.var()) == pytest.approx(1 / precision, abs=0.02)


def test_without_strength_nothing_moves() -> None:
    c = codec("linear")
    guidance = PolicyGuidance(codec=c, policy=Constant(0.5, 0.1), strength=0.0)
    estimate = torch.randn(4, 33, c.columns)
    assert torch.equal(guidance(estimate, torch.ones(4)), estimate)


def test_only_actions_of_living_rows_move_and_no_further_than_the_clamp() -> None:
    c = codec("linear", horizon=4)
    estimate = torch.zeros(1, 5, c.columns)
    estimate[:, :, c.group("terminal")] = torch.tensor([-1.0, 1.0, 1.0, 1.0, 1.0])[None, :, None]
    guidance = PolicyGuidance(codec=c, policy=Constant(9.0, 0.01), strength=1.0, clamp=0.5)
    moved = guidance(estimate, torch.ones(1)) - estimate
    assert_close(moved[0, :, 1], torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0]))
    moved[..., c.group("action")] = 0
    assert moved.abs().sum() == 0


def test_guidance_acts_only_between_its_levels() -> None:
    c = codec("linear")
    guidance = PolicyGuidance(codec=c, policy=Constant(0.5, 0.1), low=0.1, high=10.0)
    moved = guidance(torch.zeros(3, 33, c.columns), torch.tensor([0.05, 1.0, 20.0]))
    assert (moved.abs().amax((1, 2)) > 0).tolist() == [False, True, False]


def test_measured_variance_scales_the_shift() -> None:
    c = codec("linear")
    base = PolicyGuidance(codec=c, policy=Constant(0.5, 10.0), strength=1e-3)
    halved = replace(base, variance=lambda sigma: base.variance(sigma) / 2)
    x, sigma = torch.zeros(2, 33, c.columns), torch.ones(2)
    assert_close(halved(x, sigma) * 2, base(x, sigma), rtol=1e-4, atol=1e-9)


def test_joint_guidance_moves_what_is_tied_to_the_actions() -> None:
    # State and action of a row are one standard normal number: the product of N(0, 1) and
    # N(1, 1) is N(1/2, 1/2), for the state as for the action.
    c = codec("linear", horizon=1, actions=1)

    def tied(x: Tensor, sigma: Tensor, /) -> Tensor:
        v = sigma.view(-1, 1) ** 2
        mean = x[:, :, :2].sum(-1) / (2 + v)
        rest = torch.stack((torch.zeros_like(mean), -torch.ones_like(mean)), dim=-1)
        return torch.cat((mean[..., None].expand(-1, -1, 2), rest), dim=-1)

    def variance(sigma: Tensor) -> Tensor:
        return (sigma**2 / (2 + sigma**2)).view(-1, 1, 1)

    guidance = PolicyGuidance(
        codec=c, policy=Constant(1.0, 1.0, 1), variance=variance, low=0.0, high=1e9, clamp=1e9
    )
    x = 80 * torch.randn(20_000, 2, c.columns, generator=torch.Generator().manual_seed(0))
    rows = sample_heun(guided_jointly(tied, guidance), x, karras_sigmas(64))
    for column in (0, 1):
        assert float(rows[:, 0, column].mean()) == pytest.approx(0.5, abs=0.02)
        assert float(rows[:, 0, column].var()) == pytest.approx(0.5, abs=0.03)


def test_a_linear_score_shifts_a_gaussian_by_its_gradient() -> None:
    # exp(k x) N(0, 1) is N(k, 1).
    c = codec("linear", horizon=1, actions=1)

    def first_state(windows: Trajectories) -> Tensor:
        return windows.obs[:, 0, 0]

    guidance = ScoreGuidance(codec=c, score=first_state, strength=0.7, clamp=1e9)
    x = 80 * torch.randn(20_000, 2, c.columns, generator=torch.Generator().manual_seed(0))
    rows = sample_heun(guided(standard_normal, compose(guidance)), x, karras_sigmas(64))
    assert float(rows[:, 0, 0].mean()) == pytest.approx(0.7, abs=0.03)
    assert float(rows[:, 1, 0].mean()) == pytest.approx(0.0, abs=0.03)


# target, std, coefficient; mean and std of the released arithmetic: PGD spec, table of section 7.1.
RELEASED = [
    (0.5, 1.0, 0.25, 0.320, 0.453),
    (0.5, 1.0, 0.5, 0.519, 0.208),
    (0.5, 1.0, 1.0, 0.501, 0.025),
    (0.9, 1.0, 1.0, 0.900, 0.019),
    (0.5, 0.2, 1.0, 0.501, 0.026),
]


@pytest.mark.parametrize(("target", "std", "coefficient", "mean", "spread"), RELEASED)
def test_released_guidance_reproduces_the_table(
    target: float, std: float, coefficient: float, mean: float, spread: float
) -> None:
    c = codec("tanh")
    random = torch.Generator().manual_seed(0)
    x = 80 * torch.randn(200, 33, c.columns, generator=random)
    guidance = ReleasedGuidance(codec=c, policy=Constant(target, std), coefficient=coefficient)
    rows = sample_released(
        standard_normal, x, karras_sigmas(256), generator=random, guidance=guidance
    )
    found = c.actions(rows)[0]
    assert float(found.mean()) == pytest.approx(mean, abs=0.02)
    assert float(found.std()) == pytest.approx(spread, abs=0.02)


def test_released_strength_falls_to_zero_at_the_last_step() -> None:
    guidance = ReleasedGuidance(codec=codec("tanh"), policy=Constant(0.5, 1.0))
    strengths = [guidance.strength(i, 256) for i in range(256)]
    assert strengths[0] == pytest.approx(1.004, abs=1e-3)
    assert strengths[-1] == 0
    assert strengths == sorted(strengths, reverse=True)


def test_a_vanishing_gradient_makes_no_nan() -> None:
    # Saturated tanh: every derivative underflows to 0 (defect D5 of the released code).
    c = codec("tanh")
    guidance = ReleasedGuidance(codec=c, policy=Constant(0.5, 1.0), denoised=False)
    x = torch.full((2, 33, c.columns), 80.0)
    moved = guidance(standard_normal, x, torch.full((2,), 80.0), 0, 256)
    assert moved.isfinite().all()
