"""What the time of a run went to."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


class Phases:
    """Adds up seconds by name.

    Attributes:
        seconds: by name, in the order in which the names first came.
    """

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        self.seconds = dict(before or {})

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """The time in the block is this phase's."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began)

    def add(self, name: str, seconds: float) -> None:
        """So much more of this phase."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def waiting_for(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """The items; what they take to come is this phase's, not what is done with them."""
        rest = iter(items)
        while True:
            with self(name):
                try:
                    item = next(rest)
                except StopIteration:
                    return
            yield item
