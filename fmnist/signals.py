"""Ctrl-C and SIGTERM: at once, or, while a step is to be finished, as soon as it is done."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)

PATIENCE = 3.0
"""Seconds that a step may take to its end; what it would have brought is then done again."""


class Terminated(BaseException):
    """SIGTERM came. Not an :class:`Exception`, as KeyboardInterrupt is none: nobody handles it."""


class Stop:
    """While in it, these signals raise KeyboardInterrupt or :class:`Terminated`.

    At once, until somebody has :meth:`asked`; from then on until the end of :meth:`released`, they
    wait for :meth:`check`, but no longer than :data:`PATIENCE`: a step of a wide network may take
    a minute, and so may compiling one. A second signal does not wait. Outside of the main thread,
    where Python lets nobody handle signals, there are none.
    """

    def __init__(self) -> None:
        self._came: int | None = None
        self._asked = False
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal came that has not been raised yet."""
        return self._came is not None

    def asked(self) -> bool:
        """:attr:`requested`, by one who will ask again."""
        self._asked = True
        return self.requested

    def check(self) -> None:
        """Raise what came."""
        if self._came is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            number, self._came = self._came, None
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """After the block nobody asks any more."""
        try:
            yield
        finally:
            self._asked = False
        self.check()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        waited = self._came is not None
        if number in SIGNALS:
            self._came = number
        if waited or not self._asked:
            self.check()
        elif self._came is not None:
            self._before.setdefault(signal.SIGALRM, signal.signal(signal.SIGALRM, self._handle))
            signal.setitimer(signal.ITIMER_REAL, PATIENCE)
