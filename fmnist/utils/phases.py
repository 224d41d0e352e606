"""Measures how long each phase of a run takes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


class Phases:
    """Adds up the seconds of each phase.

    Args:
        before: the seconds of an earlier part of the run, by phase.

    Attributes:
        seconds: phase -> seconds, in the order in which the phases first began.
    """

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        self.seconds = dict(before or {})

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time of the block to a phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began)

    def add(self, name: str, seconds: float) -> None:
        """Add seconds to a phase."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def waiting_for(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yield items, and add the time of waiting for them to a phase.

        The time that the caller spends on an item is not counted.
        """
        iterator = iter(items)
        while True:
            with self(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item
