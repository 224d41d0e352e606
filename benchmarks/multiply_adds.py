"""Measures how many multiply-adds the vector registers of this processor allow.

It is the limit of all arithmetic here: matrix products and convolutions reach a part of it.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import njit

from fmnist.functional.kernels.cpu.simd import WIDTH, fma, splat, total

SUMS = 12
"""Independent sums: a multiply-add takes four cycles, and two begin in each."""


@njit(nogil=True)  # type: ignore[untyped-decorator]
def _multiply_add(rounds: int, number: Any) -> Any:
    x = splat(number)
    a0 = a1 = a2 = a3 = a4 = a5 = splat(np.float32(0.1))
    b0 = b1 = b2 = b3 = b4 = b5 = splat(np.float32(0.2))
    for _ in range(rounds):
        a0, a1, a2, a3 = fma(a0, x, x), fma(a1, x, x), fma(a2, x, x), fma(a3, x, x)
        a4, a5, b0, b1 = fma(a4, x, x), fma(a5, x, x), fma(b0, x, x), fma(b1, x, x)
        b2, b3, b4, b5 = fma(b2, x, x), fma(b3, x, x), fma(b4, x, x), fma(b5, x, x)
    return total(a0 + a1 + a2 + a3 + a4 + a5 + b0 + b1 + b2 + b3 + b4 + b5)


def multiply_add_rate(rounds: int = 20_000_000) -> float:
    """Return floating-point operations a second of all cores, two for each multiply-add."""
    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(_multiply_add, [10] * cores, [np.float32(0.5)] * cores))
        began = time.perf_counter()
        list(pool.map(_multiply_add, [rounds] * cores, [np.float32(0.5)] * cores))
        return 2 * SUMS * WIDTH * rounds * cores / (time.perf_counter() - began)


if __name__ == "__main__":
    print(f"{multiply_add_rate() / 1e9:.0f} GFLOP/s")
