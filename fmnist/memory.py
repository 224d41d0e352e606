"""Keeps glibc from handing large buffers back to the system after each step.

A training step frees and asks again for the same tens of megabytes. glibc serves such blocks
by mmap and returns them at once, and the page faults of getting them anew cost up to a third of
a step (benchmarks/README.md). Told to, it keeps them instead: the process stays at its
high-water mark, which is what a trainer uses anyway.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
_LARGE = 1 << 30


def keep_freed_buffers() -> bool:
    """Ask glibc to keep what is freed; False where there is no glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE) and mallopt(_M_TRIM_THRESHOLD, _LARGE))
