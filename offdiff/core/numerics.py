"""Chooses the fastest float32 matrix product that is still float32, and the thread count."""

import time

import torch
from torch import Tensor

MAX_RELATIVE_ERROR = 2e-6
"""Of a 256x256x256 product against float64: both BLAS paths of torch stay below, bf16 is 1000x above."""


def use_fastest_exact_matmul() -> str:
    """Switches torch's CPU products to oneDNN where that is faster and as exact; says what is used.

    torch's default BLAS does not take its AVX-512 path on AMD processors, oneDNN does. But on a
    processor with AMX the same switch would compute in bfloat16, so it is tried, not assumed.
    """
    before = torch.get_float32_matmul_precision()
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 256, 256, generator=generator)
    exact = a.double() @ b.double()
    base_seconds = _seconds(a, b)
    torch.set_float32_matmul_precision("medium")
    error = float(((a @ b) - exact).abs().max() / exact.abs().max())
    # 1.2: below that the gain is noise, and staying put keeps results comparable between machines.
    if error <= MAX_RELATIVE_ERROR and _seconds(a, b) * 1.2 < base_seconds:
        return "onednn"
    torch.set_float32_matmul_precision(before)
    return "default"


def _seconds(a: Tensor, b: Tensor) -> float:
    """Best of several timings of one product: the least disturbed one."""
    best = float("inf")
    for _ in range(30):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return best
