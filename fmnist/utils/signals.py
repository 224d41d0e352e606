"""Ctrl-C and SIGTERM as a request to stop between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(BaseException):
    """SIGTERM came. Like KeyboardInterrupt, it is not caught by ``except Exception``."""


class Stop:
    """A context that notes the first SIGINT or SIGTERM; a second one raises at once.

    The error is KeyboardInterrupt (SIGINT) or :class:`Terminated` (SIGTERM). For the first signal,
    :meth:`check` raises it, or the end of the block if that has no other error. An interrupted
    library may fail with an error of another type; the error of the signal then replaces it.
    Outside the main thread Python handles no signals, and the context does nothing.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._raised = False
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self._signal is not None

    def check(self) -> None:
        """Raise the error of a signal that came.

        Raises:
            KeyboardInterrupt: SIGINT came.
            Terminated: SIGTERM came.
        """
        if self.requested:
            self._raised = True
            raise KeyboardInterrupt if self._signal == signal.SIGINT else Terminated

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
        if error is None or (
            self._raised and not isinstance(error, KeyboardInterrupt | Terminated)
        ):
            self.check()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self._signal = self.requested, number
        if again:
            self.check()
