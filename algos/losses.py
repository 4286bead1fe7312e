"""The learners' formulas as pure functions; everything reduces over the last dimension only.

Dimension letters: B batch, A action, N sampled actions; leading dimensions (S, ...) pass through.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def expectile_loss(advantage: Tensor, expectile: float) -> Tensor:
    """Mean of |expectile - 1(u < 0)| * u^2. Kostrikov et al. 2021, eq. 5. (..., B) -> (...)."""
    weight = (expectile - (advantage < 0).to(advantage.dtype)).abs()
    return (weight * advantage.square()).mean(-1)


def advantage_weight(advantage: Tensor, inverse_temperature: float, maximum: float) -> Tensor:
    """min(exp(inverse_temperature * advantage), maximum). Same shape."""
    return torch.exp(inverse_temperature * advantage).clamp(max=maximum)


def gaussian_log_prob(action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log density of a diagonal normal, summed over A. (..., A) -> (...)."""
    z = (action - mean) * torch.exp(-log_std)
    return -0.5 * (z.square() + 2 * log_std + math.log(2 * math.pi)).sum(-1)


def tanh_gaussian_log_prob(pre_tanh: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log density of tanh(u), u normal, at u = `pre_tanh`, summed over A. (..., A) -> (...)."""
    # log(1 - tanh(u)^2) in a form that stays finite for large |u|.
    correction = 2 * (math.log(2) - pre_tanh - F.softplus(-2 * pre_tanh))
    return gaussian_log_prob(pre_tanh, mean, log_std) - correction.sum(-1)


def td3bc_actor_loss(q: Tensor, action: Tensor, data_action: Tensor, alpha: float) -> Tensor:
    """-lambda * mean q + mean (pi - a)^2, lambda = alpha / mean |q| (no gradient).

    Fujimoto and Gu 2021, equations 4 and 5. q: (..., B); actions: (..., B, A). Gives (...).
    """
    weight = alpha / q.detach().abs().mean(-1)
    return -weight * q.mean(-1) + (action - data_action).square().mean((-2, -1))


def rebrac_actor_loss(q: Tensor, action: Tensor, data_action: Tensor, penalty: float) -> Tensor:
    """mean(penalty * |pi - a|^2 - q / mean |q|), the penalty summed over A.

    Tarasov et al. 2023, equation 3 with the normalisation of their code. Shapes as above.
    """
    weight = 1 / q.detach().abs().mean(-1)
    distance = (action - data_action).square().sum(-1)
    return penalty * distance.mean(-1) - weight * q.mean(-1)


def rebrac_next_value(q: Tensor, action: Tensor, data_action: Tensor, penalty: float) -> Tensor:
    """min over E of q (..., E, B) minus penalty * |a~ - a'|^2 summed over A. Gives (..., B)."""
    return q.amin(-2) - penalty * (action - data_action).square().sum(-1)


def cql_gap(q_sampled: Tensor, log_density: Tensor | None, q_data: Tensor) -> Tensor:
    """logsumexp over N of (Q - log density) minus Q of the data.

    With densities: CQL(H) by importance sampling, the data action not among the samples (Kumar et
    al. 2020, appendix F). Without: CQL(rho); the data action joins the samples.
    q_sampled, log_density: (..., B, N). q_data: (..., B). Gives (..., B).
    """
    if log_density is None:
        entries = torch.cat((q_sampled, q_data.unsqueeze(-1)), dim=-1)
    else:
        entries = q_sampled - log_density
    return torch.logsumexp(entries, dim=-1) - q_data


def bellman_target(reward: Tensor, terminal: Tensor, next_value: Tensor, discount: float) -> Tensor:
    """r + discount * (1 - terminal) * V(s'). Time-outs bootstrap. Same shapes."""
    return reward + discount * (1 - terminal) * next_value


def critic_loss(q: Tensor, target: Tensor) -> Tensor:
    """Sum over E of the mean squared error. q: (S, E, B); target: (S, B). Gives (S,)."""
    return (q - target.unsqueeze(-2)).square().mean(-1).sum(-1)
