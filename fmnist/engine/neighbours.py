"""Training leaves cores to other processes that need them.

Threads that share a core with another process hold up all others, which wait for them and keep
their cores busy: one busy process on two cores made a step four to five times as slow, and two
studies side by side were three to eight times as slow each. Fewer threads than cores avoid that.
The number of threads changes no bit of the kernels of this package.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

EVERY = 0.25
"""Seconds between two looks at least."""

IDLE = 0.1
"""Seconds without computing after which looking begins anew."""

Times = tuple[float, float, float]
"""The time, how long all cores of this process were busy, and how long with this process."""


def _own_cores() -> set[int]:
    """Return the cores that this process may use; none where the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def read_times() -> Times:
    """Read the times in seconds.

    Raises:
        OSError: The system does not say how busy the cores are.
    """
    names = {f"cpu{core}" for core in _own_cores()}
    busy = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *columns = line.split()
        if name in names:
            user, nice, system, _idle, _waiting, interrupts, soft = map(int, columns[:7])
            busy += user + nice + system + interrupts + soft
    return time.monotonic(), busy / os.sysconf("SC_CLK_TCK"), time.process_time()


class FreeCores:
    """Counts the cores that other processes leave free while this one computes.

    Args:
        most: the number of threads without other processes.
        cores: the number of cores that this process may use; None for that of the system.
        read: :func:`read_times`, or a substitute in a test.
        now: the clock, or a substitute.
    """

    def __init__(
        self,
        most: int,
        cores: int | None = None,
        read: Callable[[], Times] = read_times,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._cores = most, cores or len(_own_cores()) or most
        self._times, self._now = read, now
        self.threads = most
        self._began = self._read() if most > 1 else None
        self._left = self._began[0] if self._began else 0.0

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Compute with so many threads within the block."""
        if self._began is None:
            yield
            return
        if self._now() - self._left > IDLE:  # what others did meanwhile does not count
            self._began = self._read()
        with _at_most(self.threads):
            yield
        self._look()

    def _look(self) -> None:
        """Set the number of threads by what other processes did since the last look."""
        self._left = self._now()
        if self._began is None or self._left - self._began[0] < EVERY:
            return
        now = self._read()
        if now is not None:
            passed, busy, own = (a - b for a, b in zip(now, self._began, strict=True))
            others = max(0.0, busy - own) / passed
            self.threads = min(self._most, max(1, int(self._cores - others + 0.5)))
        self._began = now

    def _read(self) -> Times | None:
        try:
            return self._times()
        except (OSError, ValueError, AttributeError):  # no Linux, or a file of another kind
            return None


@contextlib.contextmanager
def _at_most(threads: int) -> Iterator[None]:
    """Compute with at most so many threads within the block."""
    import numba

    before = torch.get_num_threads(), numba.get_num_threads()
    if threads >= max(before):
        yield
        return
    torch.set_num_threads(min(threads, before[0]))
    numba.set_num_threads(min(threads, before[1]))
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])
