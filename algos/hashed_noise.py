"""Random numbers that an observation determines: a stochastic policy as a function of its input.

What a policy draws at an observation then depends on nothing else: not on the calls before, nor on
the other rows of a batch. Its evaluation has no state, and it acts alike wherever it is loaded.
Dimension letters: B rows, O observation.
"""

import math

import torch
from torch import Tensor

WORD = 1 << 64
STRIDE = 0x9E3779B97F4A7C15 - WORD
"""2^64 / golden ratio, as int64: multiples of it are far apart."""
CELL_BITS = 23
"""Of a uniform number: the centres of 2^23 cells of [0, 1] are float32 numbers."""


def observation_keys(obs: Tensor, seed: Tensor) -> Tensor:
    """(B, O) float32, () int64 -> (B,) int64: unrelated for observations that differ in any bit."""
    mantissa, exponent = torch.frexp(obs.detach().float())
    bits = (mantissa * (1 << 24)).to(torch.int64) * (1 << 9) + exponent
    column = torch.arange(1, bits.shape[1] + 1, device=obs.device) * STRIDE
    return _mixed(_mixed(bits + column).sum(1) + seed)


def uniform(keys: Tensor, n: int) -> Tensor:
    """(B,) -> (B, n) uniform numbers in (0, 1), the ends excluded: their logarithms are finite.

    Columns are the key's stream: the first m of n numbers do not depend on n.
    """
    counters = torch.arange(1, n + 1, device=keys.device) * STRIDE
    cells = _high_bits(_mixed(keys[:, None] + counters), CELL_BITS)
    return (cells.float() + 0.5) / (1 << CELL_BITS)


def normal(uniforms: Tensor) -> Tensor:
    """Standard normal numbers from uniform ones, by the inverse distribution function."""
    return torch.erfinv(2 * uniforms - 1) * math.sqrt(2)


def _mixed(word: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al. 2014); products and sums of int64 wrap around."""
    word = (word ^ _high_bits(word, 64 - 30)) * (0xBF58476D1CE4E5B9 - WORD)
    word = (word ^ _high_bits(word, 64 - 27)) * (0x94D049BB133111EB - WORD)
    return word ^ _high_bits(word, 64 - 31)


def _high_bits(word: Tensor, n: int) -> Tensor:
    """A shift to the right that fills with zeros, where int64's own fills with the sign."""
    return (word >> (64 - n)) & ((1 << n) - 1)
