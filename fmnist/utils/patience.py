"""Waits for trouble to pass, such as a full disk or a locked database, and then tries again."""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from fmnist.utils.errors import system_error

T = TypeVar("T")

SECONDS = 600.0
"""How long a study waits, by default."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_LOOK = 0.1  # seconds between two looks for a signal

_log = logging.getLogger(__name__)


@dataclass
class _Patience:
    seconds: float
    check: Callable[[], object]
    lost: bool = False  # a call has given up, so those around it do not wait again


_NONE = _Patience(0.0, lambda: None)
_patience = ContextVar("patience", default=_NONE)


@contextlib.contextmanager
def patient(seconds: float, check: Callable[[], object]) -> Iterator[None]:
    """A context in which :func:`repeated` waits; elsewhere it does not.

    Args:
        seconds: how long to wait for trouble to pass.
        check: called several times a second during a wait; ends it by an error of its own, such as
            that of a signal.
    """
    before = _patience.set(_Patience(seconds, check))
    try:
        yield
    finally:
        _patience.reset(before)


def full_disk(error: Exception) -> str:
    """Describe the error of a full disk; empty for another error."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return system_error(error)
    return ""


def repeated(action: Callable[[], T], passing: Callable[[Exception], str] = full_disk) -> T:
    """Call a function, again and again while it fails for a reason that passes.

    The log says when the wait begins and when it ends. Of calls within calls, the innermost one
    that knows the reason waits.

    Args:
        action: the function. A second call must be right whatever the first one has done.
        passing: describes an error that passes; returns an empty text for another error.

    Returns:
        What the function returns.

    Raises:
        Exception: The function raised it, and it does not pass or has not passed in time.
    """
    patience = _patience.get()
    seconds = patience.seconds
    began, pause = None, _FIRST_PAUSE
    while True:
        try:
            result = action()
            break
        except Exception as error:
            reason, now = "" if patience.lost else passing(error), time.monotonic()
            if began is None and reason and seconds:
                began = now
                _log.warning("%s; trying again for up to %.0f s", reason, seconds)
            if not reason or began is None:
                raise
            if now >= began + seconds:
                patience.lost = True
                raise
        until = min(now + pause, began + seconds)
        pause = min(2 * pause, _LONGEST_PAUSE)
        while (left := until - time.monotonic()) > 0:
            patience.check()
            time.sleep(min(left, _LOOK))
    if began is not None:
        _log.warning("that has passed, after %.0f s", time.monotonic() - began)
    return result
