"""Ctrl-C and SIGTERM: at once, or, while a step is to be finished, as soon as it is done."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)

PATIENCE = 1.5
"""Seconds that a step may take to its end, and saving it as many; else it is done again."""

AGAIN = 1.0
"""Seconds after which what was raised is raised again, if that was not the end."""


class Terminated(BaseException):
    """SIGTERM came. Not an :class:`Exception`, as KeyboardInterrupt is none: nobody handles it."""


class Stop:
    """While in it, these signals raise KeyboardInterrupt or :class:`Terminated`.

    At once, until somebody has :meth:`asked`; from then on until the end of :meth:`released`, they
    wait for :meth:`check`, but no longer than :data:`PATIENCE`: a step of a wide network may take
    a minute, and so may compiling one. A second signal does not wait. Outside of the main thread,
    where Python lets nobody handle signals, there are none.

    What is raised is not lost where a library swallows it, as LLVM's callbacks do, or stumbles
    over it: then it is raised once more, and at last in place of the stumbling.
    """

    def __init__(self) -> None:
        self._came: int | None = None
        self._asked = False
        self._raised = False
        self._before: dict[int, Any] = {}
        self._unraisable = sys.unraisablehook

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self._came is not None

    def asked(self) -> bool:
        """:attr:`requested`, by one who will ask again."""
        self._asked = True
        if self.requested:
            self._remind(PATIENCE)  # for what the asker does about it
        return self.requested

    def check(self) -> None:
        """Raise what came."""
        if self._came is not None:
            self._raised = True
            self._remind(AGAIN)
            raise self._error()

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
            self._unraisable = sys.unraisablehook
            sys.unraisablehook = self._swallowed
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if signal.SIGALRM in self._before:
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            signal.setitimer(signal.ITIMER_REAL, 0)
        if self._before:
            sys.unraisablehook = self._unraisable
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._raised and not isinstance(error, KeyboardInterrupt | Terminated):
            raise self._error() from error

    def _error(self) -> BaseException:
        return KeyboardInterrupt() if self._came == signal.SIGINT else Terminated()

    def _swallowed(self, what: sys.UnraisableHookArgs) -> None:
        if not isinstance(what.exc_value, KeyboardInterrupt | Terminated):
            self._unraisable(what)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self._came is not None
        if number in SIGNALS:
            self._came = number
        if again or not self._asked:
            self.check()
        else:
            self._remind(PATIENCE)

    def _remind(self, seconds: float) -> None:
        """Have the alarm come after so many seconds; it is nobody else's once a signal came."""
        if signal.SIGALRM not in self._before:
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._handle)
        signal.setitimer(signal.ITIMER_REAL, seconds)
