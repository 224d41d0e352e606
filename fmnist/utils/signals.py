"""Ctrl-C and SIGTERM, raised at once or after the training step that is running."""

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
"""Seconds for a step to end after a signal, and the same again to save it. A step that takes
longer is interrupted, and repeated when the study goes on."""

AGAIN = 1.0
"""Seconds after which the error is raised once more, when the program still runs."""


class Terminated(BaseException):
    """SIGTERM came. A BaseException, as KeyboardInterrupt is: ``except Exception`` lets it pass."""


class Stop:
    """A context in which signals raise KeyboardInterrupt (SIGINT) or :class:`Terminated` (SIGTERM).

    A signal raises at once until the first call of :meth:`asked`. From then on, until the block of
    :meth:`released` ends, it waits for :meth:`check`, but at most :data:`PATIENCE` seconds: a step
    of a wide network, or compiling one, may take a minute. A second signal does not wait. Outside
    the main thread Python handles no signals, and the context does nothing.

    A library may swallow the error, as LLVM's callbacks do, or fail because of it. In the first
    case it is raised once more; in the second it replaces the library's error at the end.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._asked = False
        self._raised = False
        self._before: dict[int, Any] = {}
        self._unraisable = sys.unraisablehook

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self._signal is not None

    def asked(self) -> bool:
        """:attr:`requested`, for a caller that asks again after every step."""
        self._asked = True
        if self.requested:
            self._set_alarm(PATIENCE)  # time for the caller to save its work
        return self.requested

    def check(self) -> None:
        """Raise the error of a signal that came.

        Raises:
            KeyboardInterrupt: SIGINT came.
            Terminated: SIGTERM came.
        """
        if self._signal is not None:
            self._raised = True
            self._set_alarm(AGAIN)
            raise self._error()

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Go back to raising at once when the block ends; a signal that waits is raised then."""
        try:
            yield
        finally:
            self._asked = False
        self.check()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
            self._unraisable = sys.unraisablehook
            sys.unraisablehook = self._on_unraisable
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
        return KeyboardInterrupt() if self._signal == signal.SIGINT else Terminated()

    def _on_unraisable(self, what: sys.UnraisableHookArgs) -> None:
        if not isinstance(what.exc_value, KeyboardInterrupt | Terminated):
            self._unraisable(what)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self._signal is not None
        if number in SIGNALS:
            self._signal = number
        if again or not self._asked:
            self.check()
        else:
            self._set_alarm(PATIENCE)

    def _set_alarm(self, seconds: float) -> None:
        """Start the process's alarm, which no other code uses after a signal came."""
        if signal.SIGALRM not in self._before:
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._handle)
        signal.setitimer(signal.ITIMER_REAL, seconds)
