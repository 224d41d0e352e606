"""What a command settles for its process before torch is loaded."""

from __future__ import annotations

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
_LARGE = 1 << 30


def prepare() -> None:
    """One pool of threads for torch and Numba, and buffers that are kept when freed."""
    share_threads()
    keep_freed_buffers()


def share_threads() -> None:
    """Load the system's OpenMP before torch loads a copy of its own.

    Numba uses the system's. With two copies there are two pools, whose idle threads spin and
    take the cores from each other: a step then takes ten times as long, now and then.
    """
    with contextlib.suppress(OSError):  # without it Numba has threads of another kind
        ctypes.CDLL("libgomp.so.1")


def keep_freed_buffers() -> bool:
    """Keep glibc from handing large buffers back to the system; False where there is no glibc.

    A training step frees and asks again for the same tens of megabytes. glibc serves such blocks
    by mmap and returns them at once, and getting them anew costs page
    faults. The process stays at its high-water mark instead, which a trainer needs anyway.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE) and mallopt(_M_TRIM_THRESHOLD, _LARGE))
