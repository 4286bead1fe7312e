"""Steering by skipped and full gradients (samplers spec, section 8)."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from offdiff.core.errors import InputError
from offdiff.core.types import Spec
from offdiff.data.codec import Codec
from offdiff.diffusion.denoiser import Denoise
from offdiff.diffusion.oracles import CorrelatedGaussian, gaussian
from offdiff.diffusion.steering import (
    Steer,
    goal_cost,
    policy_cost,
    sample_steered,
    score_cost,
)

ROWS = torch.arange(16, dtype=torch.float64)
COVARIANCE = 0.95 ** (ROWS[:, None] - ROWS).abs()
PINS = torch.tensor([0, 5, 15])
GOAL = torch.tensor([-0.75, 0.5, 1.75], dtype=torch.float64)
"""The table names neither. Of all triples only this one and its mirror image give its variances;
a search found the goal, which samples miss by 1.51 as they do there (1.5)."""
FIRST = CorrelatedGaussian(torch.zeros(16, dtype=torch.float64), COVARIANCE)


def reflowed(x: Tensor, sigma: Tensor, /) -> Tensor:
    """The exact denoiser where data and noise are matched, x0 = S^(1/2) z."""
    values, vectors = torch.linalg.eigh(COVARIANCE)
    root = values.clamp(min=0).sqrt()
    return (x @ vectors * root / (root + sigma[:, None])) @ vectors.T


def conditional() -> tuple[Tensor, Tensor]:
    """Mean and covariance of the free entries given the pinned ones."""
    free = torch.tensor([i for i in range(16) if i not in PINS.tolist()])
    gain = COVARIANCE[free][:, PINS] @ torch.linalg.inv(COVARIANCE[PINS][:, PINS])
    return gain @ GOAL, COVARIANCE[free][:, free] - gain @ COVARIANCE[PINS][:, free]


def outcome(denoise: Denoise, steps: int, **options: object) -> tuple[float, float, float]:
    """RMSE of the pinned entries, of the free entries' mean, ratio of their variances.

    All is affine in the noise, so points with its mean and covariance stand for its draws.
    """
    which = torch.zeros(16, dtype=torch.bool)
    which[PINS] = True
    values = torch.zeros(16, dtype=torch.float64)
    values[PINS] = GOAL
    x = 4 * torch.cat((torch.eye(16), -torch.eye(16))).double()
    times = torch.linspace(0.999, 0, steps + 1, dtype=torch.float64)
    steer = Steer(cost=goal_cost(values, which), **options)  # type: ignore[arg-type]
    end = sample_steered(denoise, x, times, steer)
    mean, covariance = conditional()
    free = end[:, ~which]
    return (
        float((end[:, PINS] - GOAL).square().mean().sqrt()),
        float((free.mean(0) - mean).square().mean().sqrt()),
        float(free.var(0, correction=0).sum() / covariance.trace()),
    )


FULL: dict[str, object] = {"gradient": "full"}


@pytest.mark.parametrize(("denoise", "steps", "options", "expected"), [
    (FIRST, 30, {"rate": 1.0}, (1e-6, 0.096, 0.99)),
    (FIRST, 30, {"rate": 1.0, "fresh": True}, (5e-4, 0.108, 0.99)),
    (FIRST, 30, {"rate": 1.0, **FULL}, (5e-4, 0.344, 0.60)),
    (FIRST, 30, {"rate": 0.3, **FULL}, (0.029, 0.122, 0.65)),
    (FIRST, 10, {"rate": 1.0}, (1e-6, 0.270, 1.25)),
    (reflowed, 30, {"rate": 1.0}, (1e-6, 0.493, 1.83)),
    (reflowed, 30, {"rate": 1.0, **FULL}, (5e-4, 0.034, 0.96)),
    (reflowed, 10, {"rate": 1.0}, (1e-6, 0.552, 2.10)),
    (reflowed, 10, {"rate": 1.0, **FULL}, (0.007, 0.094, 0.98)),
])  # fmt: skip
def test_skipped_and_full_gradients_do_as_the_table_says(
    denoise: Denoise, steps: int, options: dict[str, object], expected: tuple[float, float, float]
) -> None:
    """K1: skipping meets the constraint and, on a reflowed model, does not spread it.

    expected: most RMSE of the pinned (0.000 there is 5e-4), the free entries' mean, their spread.
    """
    pinned, mean, trace = outcome(denoise, steps, **options)
    assert pinned <= expected[0]
    assert (mean, trace) == pytest.approx(expected[1:], abs=0.05)


@pytest.mark.parametrize(("options", "calls"), [
    ({}, 10), ({"inner": 4}, 10), ({"fresh": True}, 20), ({"gradient": "full"}, 10),
    ({"low": 0.35, "fresh": True}, 17),
])  # fmt: skip
def test_calls_and_graphs(options: dict[str, object], calls: int) -> None:
    """K1: skip leaves no graph of the network and asks it once a step, twice if fresh."""
    seen: list[bool] = []
    oracle = gaussian(torch.zeros(3, dtype=torch.float64), 1.0)

    def spy(x: Tensor, sigma: Tensor, /) -> Tensor:
        out = oracle(x, sigma)
        seen.append(out.requires_grad)
        return out

    cost = goal_cost(torch.ones(3, dtype=torch.float64), torch.tensor([True, False, True]))
    times = torch.linspace(1 - 1e-6, 0, 11, dtype=torch.float64)
    sample_steered(spy, torch.zeros(4, 3, dtype=torch.float64), times,
                   Steer(cost=cost, **options))  # type: ignore[arg-type] # fmt: skip
    assert len(seen) == calls
    assert any(seen) == (options.get("gradient") == "full")


def test_on_independent_columns_both_gradients_point_the_same_way() -> None:
    """(iii): dD/dx is a multiple of the identity."""
    oracle = gaussian(torch.zeros(5, dtype=torch.float64), 0.7)
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cost = goal_cost(torch.ones(5, dtype=torch.float64), torch.ones(5, dtype=torch.bool))
    once = torch.tensor([0.5, 0.5], dtype=torch.float64)
    moves = [
        sample_steered(oracle, x, once, Steer(cost=cost, gradient=how, rate=1e-3)) - x  # type: ignore[arg-type]
        for how in ("skip", "full")
    ]
    cosine = torch.nn.functional.cosine_similarity(*moves)
    assert_close(cosine, torch.ones_like(cosine), atol=1e-9, rtol=0)


def test_a_model_without_gradients_is_told_of() -> None:
    def deaf(x: Tensor, sigma: Tensor, /) -> Tensor:
        return x.detach() / 2

    cost = goal_cost(torch.ones(2), torch.ones(2, dtype=torch.bool))
    times = torch.tensor([0.9, 0.0])
    end = sample_steered(deaf, torch.zeros(2, 2), times, Steer(cost=cost))
    assert bool(end.isfinite().all())
    with pytest.raises(InputError, match="passes no gradient on"):
        sample_steered(deaf, torch.zeros(2, 2), times, Steer(cost=cost, gradient="full"))


def test_costs_of_a_policy_and_of_a_score() -> None:
    """Their gradients by hand, on windows of one transition."""
    mean, std = torch.tensor([0.5, 0.1, 2.0, 0.0]), torch.tensor([2.0, 0.5, 3.0, 1.0])
    codec = Codec(spec=Spec(1, 1), horizon=1, action_map="linear", mean=mean, std=std)
    rows = torch.tensor([[[0.4, 0.2, -0.3, -1.0], [1.0, 0.0, 0.0, 0.0]]], requires_grad=True)

    class Constant:
        def act(self, obs: Tensor, /) -> Tensor:
            return torch.full_like(obs, 0.6)

        def reset(self, which: Tensor, /) -> None:
            """Nothing to forget."""

    cost = policy_cost(codec, Constant(), std=0.5)
    (gradient,) = torch.autograd.grad(cost(rows).sum(), rows)
    # Action 0.1 + 0.5 * 0.2 = 0.2; (0.2 - 0.6) / 0.25 * 0.5.
    assert_close(gradient[0, 0], torch.tensor([0.0, -0.8, 0.0, 0.0]))
    value = score_cost(codec, lambda windows: windows.reward.sum(1))
    (gradient,) = torch.autograd.grad(value(rows).sum(), rows)
    assert_close(gradient[0, 0], torch.tensor([0.0, 0.0, -3.0, 0.0]))
