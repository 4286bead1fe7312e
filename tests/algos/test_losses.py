"""Formulas against golden numbers computed independently in float64 (tolerance 1e-9)."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from offdiff.algos.losses import (
    advantage_weight,
    bellman_target,
    cql_gap,
    critic_loss,
    expectile_loss,
    gaussian_log_prob,
    rebrac_actor_loss,
    rebrac_next_value,
    tanh_gaussian_log_prob,
    td3bc_actor_loss,
)
from offdiff.algos.optim import cosine_rate

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "learner_golden.json").read_text())


def t(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(got: Tensor, expected: Any) -> None:
    torch.testing.assert_close(got, t(expected), rtol=0, atol=1e-9)


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.8, 0.9])
def test_expectile_loss(expectile: float) -> None:
    golden = GOLDEN["expectile_loss"]
    close(expectile_loss(t(golden["u"]), expectile), golden[f"tau_{expectile}"])


def test_expectile_at_a_half_is_half_of_least_squares() -> None:
    u = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    close(expectile_loss(u, 0.5), float(u.square().mean() / 2))


@pytest.mark.parametrize("beta", [3, 10])
def test_iql_weights(beta: int) -> None:
    golden = GOLDEN["iql_weights"]
    got = advantage_weight(t(golden["adv"]), beta, 100.0)
    torch.testing.assert_close(got, t(golden[f"beta_{beta}_clip_100"]), rtol=1e-12, atol=0)


def test_gaussian_log_prob() -> None:
    g = GOLDEN["diag_gaussian_logprob"]
    close(gaussian_log_prob(t(g["action"]), t(g["mean"]), t(g["log_std"])), g["logprob"])


def test_tanh_gaussian_log_prob() -> None:
    g = GOLDEN["tanh_gaussian_logprob"]
    got = tanh_gaussian_log_prob(t(g["pre_tanh"]), t(g["mean"]), t(g["log_std"]))
    close(got, g["logprob"])


def test_tanh_gaussian_log_prob_is_finite_far_out() -> None:
    far = tanh_gaussian_log_prob(t([[40.0]]), t([[40.0]]), t([[0.0]]))
    # log N(0) - log(1 - tanh^2(40)); the second term is -2 (log 2 - 40) up to e^-80.
    expected = -0.5 * math.log(2 * math.pi) - 2 * (math.log(2) - 40)
    close(far, [expected])


def test_td3bc_actor_loss() -> None:
    g = GOLDEN["td3bc_actor_loss"]
    close(td3bc_actor_loss(t(g["q"]), t(g["pi"]), t(g["data"]), g["alpha"]), g["loss"])


def test_td3bc_weight_carries_no_gradient() -> None:
    g = GOLDEN["td3bc_actor_loss"]
    q = t(g["q"]).requires_grad_()
    td3bc_actor_loss(q, t(g["pi"]), t(g["data"]), g["alpha"]).backward()
    close(q.grad, [-g["lambda"] / 3] * 3)


def test_rebrac_actor_loss() -> None:
    g = GOLDEN["rebrac_actor_loss"]
    close(rebrac_actor_loss(t(g["q"]), t(g["pi"]), t(g["data"]), g["beta1"]), g["loss"])


def test_rebrac_target() -> None:
    g = GOLDEN["rebrac_target"]
    q = torch.stack((t(g["q1_target"]), t(g["q2_target"])))
    next_value = rebrac_next_value(
        q, t(g["next_action_policy"]), t(g["next_action_data"]), g["beta2"]
    )
    close(bellman_target(t(g["r"]), t(g["done"]), next_value, g["gamma"]), g["y"])


def test_cql_gap_with_and_without_densities() -> None:
    g = GOLDEN["cql"]
    dims = g["action_dim"]
    q = torch.cat((t(g["q_random"]), t(g["q_next_policy_at_s"]), t(g["q_current_policy"])), dim=1)
    uniform = torch.full_like(t(g["q_random"]), dims * math.log(0.5))
    density = torch.cat((uniform, t(g["logp_next"]), t(g["logp_current"])), dim=1)
    gap = cql_gap(q, density, t(g["q_data"]))
    close(gap, g["diff_importance_sampled"])
    close(cql_gap(q, None, t(g["q_data"])), g["diff_plain"])
    close(10 * gap.mean(), g["penalty_alpha10_no_lagrange"])


def test_critic_loss_sums_over_the_ensemble_and_averages_over_the_batch() -> None:
    q, target = t([[[1.0, 2.0], [3.0, 5.0]]]), t([[0.0, 1.0]])
    close(critic_loss(q, target), [(1 + 1) / 2 + (9 + 16) / 2])


def test_terminal_rows_do_not_bootstrap() -> None:
    got = bellman_target(t([1.0, 1.0]), t([0.0, 1.0]), t([10.0, 10.0]), 0.9)
    close(got, [10.0, 1.0])


def test_cosine_rate() -> None:
    golden = GOLDEN["cosine_lr"]
    for step in ("0", "250000", "500000", "750000", "1000000"):
        got = cosine_rate(golden["base"], int(step), golden["max_steps"])
        assert got == pytest.approx(golden[step], abs=1e-15)
