"""Gaussian networks of one shape, evaluated together as batched matrix products, and their loss.

Dimension letters: E members, N rows, B batch, I inputs, D predicted numbers, H hidden units.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

CHUNK = 4096
"""Rows that pass through the networks at once: bounds the memory of big calls."""


class Rows(NamedTuple):
    """Transitions as the networks see them."""

    inputs: Tensor
    """(..., I) standardised observation and action"""
    target: Tensor
    """(..., D) standardised change of the observation, and reward"""
    terminal: Tensor
    """(...,) 0 or 1"""
    known: Tensor
    """(...,) 0 where what followed a terminal was not recorded: only `terminal` counts there"""


class Networks(NamedTuple):
    """All members' parameters."""

    weights: list[Tensor]
    """(E, in, out) for every layer; the last gives mean D, log-variance D, logit of the end 1"""
    biases: list[Tensor]
    """(E, 1, out)"""
    max_log_variance: Tensor
    """(D,) learned soft upper bound"""
    min_log_variance: Tensor
    """(D,) learned soft lower bound"""

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(E, B, I) -> mean (E, B, D), log-variance (E, B, D), logit of the task's end (E, B)."""
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = torch.baddbmm(bias, x, weight).relu()
        width = len(self.max_log_variance)
        out = torch.baddbmm(self.biases[-1], x, self.weights[-1])
        mean, raw, logit = out.split([width, width, 1], dim=-1)
        below = self.max_log_variance - softplus(self.max_log_variance - raw)
        log_variance = self.min_log_variance + softplus(below - self.min_log_variance)
        return mean, log_variance, logit.squeeze(-1)

    def chunks(self, inputs: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(N, I) shared by all members -> what `__call__` gives for some rows after others."""
        for part in inputs.split(CHUNK):
            yield self(part.expand(len(self.weights[0]), -1, -1))

    def tensors(self) -> list[Tensor]:
        """Everything that is learned."""
        return [*self.weights, *self.biases, self.max_log_variance, self.min_log_variance]

    def subset(self, members: Tensor) -> "Networks":
        """Copies of some members, by number."""
        weights, biases = [w[members] for w in self.weights], [b[members] for b in self.biases]
        return self._replace(weights=weights, biases=biases)


def initial(
    inputs: int, hidden: Sequence[int], outputs: int, members: int, generator: torch.Generator
) -> Networks:
    """Untrained networks with D = outputs, on the generator's device."""
    device = generator.device
    sizes = (inputs, *hidden, 2 * outputs + 1)
    weights = [
        torch.randn(members, i, o, generator=generator, device=device) * i**-0.5
        for i, o in pairwise(sizes)
    ]
    biases = [torch.zeros(members, 1, o, device=device) for o in sizes[1:]]
    bounds = [torch.full((outputs,), bound, device=device) for bound in (0.5, -10.0)]
    networks = Networks(weights, biases, *bounds)
    for tensor in networks.tensors():
        tensor.requires_grad_(True)
    return networks


def loss(networks: Networks, rows: Rows) -> Tensor:
    """Summed over members: Gaussian likelihood, cross-entropy of the end; and the bounds' width.

    rows: fields (E, B, ...). -> scalar.
    """
    mean, log_variance, logit = networks(rows.inputs)
    each = (mean - rows.target).square() * (-log_variance).exp() + log_variance
    gaussian = (each.mean(-1) * rows.known).mean(1).sum()
    end = binary_cross_entropy_with_logits(logit, rows.terminal, reduction="none").mean(1).sum()
    width = (networks.max_log_variance - networks.min_log_variance).sum()
    return gaussian + end + 0.01 * width


@torch.no_grad()
def squared_error(networks: Networks, rows: Rows) -> Tensor:
    """(E,) mean squared error of the members' means. rows: fields (N, ...), shared by all."""
    mean = torch.cat([mean for mean, _, _ in networks.chunks(rows.inputs)], dim=1)
    each = (mean - rows.target).square().mean(-1) * rows.known
    return each.sum(1) / rows.known.sum().clamp_min(1)
