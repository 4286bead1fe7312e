"""The machine's side of training: device, matrix products, memory."""

import ctypes
import os
import platform
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from offdiff.core.errors import InputError

MAX_RELATIVE_ERROR = 2e-6
"""Of a 256x256x256 product against float64: torch's float32 kernels stay below, bf16 does not."""


FEW_ROWS = 16


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


@contextmanager
def default_products() -> Iterator[None]:
    """Runs a block with torch's default BLAS, whatever `use_fastest_exact_matmul` chose.

    Its sums do not depend on how many rows are multiplied at once (from four rows on), those of
    oneDNN do in their last bits.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def products_of(rows: int) -> AbstractContextManager[None]:
    """Runs a block whose matrix products have so many rows with the library that suits them.

    oneDNN prepares every product anew: with few rows that takes longer than torch's default BLAS
    takes for all of it (256 x 256 weights, AVX-512: 22 against 5 microseconds for one row, 28
    against 27 for 16).
    """
    return default_products() if rows <= FEW_ROWS else nullcontext()


def _seconds(a: Tensor, b: Tensor) -> float:
    """Best of several timings of one product: the least disturbed one."""
    best = float("inf")
    for _ in range(30):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return best


def keep_freed_memory() -> None:
    """Tells glibc to keep big freed blocks instead of handing them back to the system.

    A training step frees and takes the same megabytes over and over; without this every step pays
    the page faults again (up to a quarter of the time of CQL, as profiled). Does nothing on other
    C libraries.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL("libc.so.6")
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    library.mallopt(mmap_threshold, 1 << 30)
    library.mallopt(trim_threshold, (1 << 31) - 1)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Runs a block with so many CPU threads; 0 takes every core this process may use."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or len(os.sched_getaffinity(0)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_device(name: str) -> torch.device:
    """auto, cpu, cuda or cuda:N -> a device that exists. Raises InputError otherwise."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown device {name!r}; choose auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name!r} is not supported; choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {name!r} asked for, but torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    return device
