"""What a study shares with its process while it runs: its turn, the log and Optuna's verbosity."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import ParamSpec, TypeVar

import optuna

from fmnist.reports.terminal import Progress, make_progress
from fmnist.tuning.events import Event

P = ParamSpec("P")
R = TypeVar("R")
_TURN = threading.RLock()


def in_turn(function: Callable[P, R]) -> Callable[P, R]:
    """Let one thread at a time run studies: matplotlib, logs and warnings are of the process."""

    @functools.wraps(function)
    def waits(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _TURN.acquire(blocking=False):
            if isinstance(progress := kwargs.get("progress"), Progress):
                progress.message("waiting for the study of another thread")
            _TURN.acquire()
        try:
            return function(*args, **kwargs)
        finally:
            _TURN.release()

    return waits


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Show only errors of Optuna within the block."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


Observer = Callable[[Event], object]
"""Gets each event of a run: a group starts, an epoch or a trial ends, lanes are halved."""


class _Observed(Progress):
    """Hands the events to a function."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def __call__(self, event: Event) -> None:
        self._observer(event)


def shown(progress: Progress | Observer | bool | None) -> AbstractContextManager[Progress]:
    """Return what shows the progress of a run, as a context.

    Args:
        progress: true for a display on standard output, false or None for nothing, a function that
            gets the events, or a display, which its caller opens and closes.
    """
    if isinstance(progress, Progress):
        return contextlib.nullcontext(progress)
    if callable(progress):
        return _Observed(progress)
    return make_progress(quiet=False) if progress else Progress()


class LogTo(logging.Handler):
    """A context in which the log of the package goes to the progress display."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.INFO)
        self._progress = progress
        self._logger = logging.getLogger("fmnist")

    def emit(self, record: logging.LogRecord) -> None:
        show = self._progress.message
        if record.levelno >= logging.WARNING:
            show = self._progress.warning
        show(record.getMessage())

    def __enter__(self) -> None:
        self._level = self._logger.level
        self._logger.setLevel(logging.INFO)
        self._logger.addHandler(self)

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)
