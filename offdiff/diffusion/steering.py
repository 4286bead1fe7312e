"""Steering a flow by a cost of its clean estimate, with or without its network's gradient.

FlowChef (arXiv 2412.00100) moves the state by the cost's gradient with respect to the estimate, as
if the estimate moved with the state one to one: no graph through the network, no backward pass.
That meets a cost and does not spread it: entries that the cost does not name follow only as far as
the remaining steps let them, and hardly in a reflowed model. Take it for costs of all entries (a
policy's likelihood, a value); take trained conditioning (`pinned`) or the full gradient for few.

The calibrated guidance of `guidance` skips the gradient too, in closed form; this is the general
tool. On the rectified-flow path. Dimension letters: B windows, T rows, D columns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from offdiff.core.errors import InputError
from offdiff.core.protocols import Policy
from offdiff.data.codec import Codec
from offdiff.diffusion.denoiser import Denoise
from offdiff.diffusion.flow_solvers import OnPath
from offdiff.diffusion.guidance import Score, policy_moments
from offdiff.diffusion.paths import RectifiedFlow

Cost = Callable[[Tensor], Tensor]
"""Clean estimates (B, ...) -> (B,), differentiable; to be made small."""


@dataclass(frozen=True, kw_only=True)
class Steer:
    """How a cost moves the state. ValueError for values out of range."""

    cost: Cost
    gradient: Literal["skip", "full"] = "skip"
    """skip: with respect to the estimate. full: through the network, for a backward pass a step."""
    rate: float = 0.3
    """Step of the state per gradient; 1 solves a squared error's half in one step."""
    inner: int = 1
    """Steps at every level; with the full gradient each of them is a call."""
    fresh: bool = False
    """Ask the network again after the move: twice the calls of `skip`."""
    low: float = 0.0
    high: float = 1.0
    """Times between which to steer."""

    def __post_init__(self) -> None:
        if not 0 < self.rate < float("inf") or self.inner < 1:
            raise ValueError("rate must be above 0 and inner at least 1")


def sample_steered(denoise: Denoise, x: Tensor, times: Tensor, steer: Steer) -> Tensor:
    """Euler's method from x at times[0] on the rectified-flow path, steered before every step.

    Calls per step: skip 1 (fresh 2), full 1 with `inner` 1. Raises InputError for the full gradient
    of a denoiser that passes none on, such as a quantised one.
    """
    model = OnPath(denoise, RectifiedFlow())
    for now, following in pairwise(times.tolist()):
        velocity = None
        if steer.low <= now <= steer.high:
            move = _skipping if steer.gradient == "skip" else _full
            x, velocity = move(model, x, now, steer)
        if velocity is None:
            velocity = model.velocity(x, now)
        x = x + (following - now) * velocity
    return x


def _skipping(model: OnPath, x: Tensor, t: float, steer: Steer) -> tuple[Tensor, Tensor | None]:
    """The moved state, and the velocity at the old one: frozen, as the estimate is x - t v."""
    with torch.no_grad():
        velocity = model.velocity(x, t)
    for _ in range(steer.inner):
        x = x - steer.rate * _gradient(steer.cost, x - t * velocity)
    return x, None if steer.fresh else velocity


def _full(model: OnPath, x: Tensor, t: float, steer: Steer) -> tuple[Tensor, Tensor | None]:
    """The moved state, and the velocity at the last state that was asked."""
    for _ in range(steer.inner):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            estimate = model.clean(leaf, t)
            if not estimate.requires_grad:
                raise InputError(
                    "this model passes no gradient on to its input (is it quantised?); steer with "
                    "gradient='skip'"
                )
            (gradient,) = torch.autograd.grad(steer.cost(estimate).sum(), leaf)
        velocity = (x - estimate.detach()) / t
        x = x - steer.rate * gradient
    return x, None if steer.fresh else velocity


def _gradient(cost: Cost, estimate: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = estimate.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(cost(leaf).sum(), leaf)
    return gradient


def goal_cost(values: Tensor, which: Tensor) -> Cost:
    """Half the squared distance to values (broadcast to (B, ...)) where `which` is True."""
    return lambda estimate: ((estimate - values) * which).square().flatten(1).sum(1) / 2


def policy_cost(codec: Codec, policy: Policy, std: float = 1.0) -> Cost:
    """The policy's surprise at the actions of encoded windows (B, T, D), up to a constant.

    States are taken as they are. std: spread of a policy that only acts, in action units.
    """

    def cost(estimate: Tensor) -> Tensor:
        with torch.no_grad():
            mean, spread = policy_moments(policy, codec.states(estimate.detach())[:, :-1], std)
        action, _ = codec.actions(estimate)
        surprise = ((action - mean) / spread).square().sum(-1) / 2
        return (surprise * codec.alive(estimate.detach())).sum(1)

    return cost


def score_cost(codec: Codec, score: Score) -> Cost:
    """Minus a score of decoded windows: a return, a value."""
    return lambda estimate: -score(codec.decode(estimate))
