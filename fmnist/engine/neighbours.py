"""Training leaves cores to other processes that need them.

Threads that share a core with another process hold up all others, which wait for them and keep
their cores busy: one busy process on two cores made a step three to five times as slow, two studies
side by side made each other five times as slow. Fewer threads than cores avoid that. The number of
threads changes no bit of the kernels of this package.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

EVERY = 0.5
"""Seconds between two looks at least."""

Clock = Callable[[], tuple[float, float, float]]
"""Returns the time, the time that all cores of this process were busy, and that of this process."""


def read_clock() -> tuple[float, float, float]:
    """Read the times in seconds, as :data:`Clock` says.

    Raises:
        OSError: The system does not say how busy the cores are.
    """
    names = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    busy = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *columns = line.split()
        if name in names:
            user, nice, system, _idle, _waiting, interrupts, soft = map(int, columns[:7])
            busy += user + nice + system + interrupts + soft
    return time.monotonic(), busy / os.sysconf("SC_CLK_TCK"), time.process_time()


class FreeCores:
    """Counts the cores that other processes leave free.

    Args:
        most: the number of threads without other processes.
        clock: :func:`read_clock`, or a substitute in a test.
    """

    def __init__(self, most: int, clock: Clock = read_clock) -> None:
        self._most, self._clock = most, clock
        self._threads, self._last = most, self._read() if most > 1 else None

    def threads(self) -> int:
        """Return how many threads should compute now."""
        if self._last is None or time.monotonic() - self._last[0] < EVERY:
            return self._threads
        now = self._read()
        if now is not None:
            passed, busy, own = (a - b for a, b in zip(now, self._last, strict=True))
            others = max(0.0, busy - own) / passed
            self._threads = min(self._most, max(1, int(self._most - others + 0.5)))
        self._last = now
        return self._threads

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Compute with so many threads within the block."""
        threads = self.threads()
        if threads == self._most:
            yield
            return
        import numba

        before = torch.get_num_threads(), numba.get_num_threads()
        torch.set_num_threads(min(threads, before[0]))
        numba.set_num_threads(min(threads, before[1]))
        try:
            yield
        finally:
            torch.set_num_threads(before[0])
            numba.set_num_threads(before[1])

    def _read(self) -> tuple[float, float, float] | None:
        try:
            return self._clock()
        except (OSError, ValueError, AttributeError):  # no Linux, or a file of another kind
            return None
