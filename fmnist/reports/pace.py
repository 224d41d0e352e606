"""Estimates how far a study is, how fast it trains, and how long it will take."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fmnist.tuning import events


@dataclass(frozen=True)
class _Span:
    """Seconds of training and the work that was done in them, in epochs of one trial."""

    seconds: float = 0.0
    work: float = 0.0

    def __add__(self, other: _Span) -> _Span:
        return _Span(self.seconds + other.seconds, self.work + other.work)

    def __sub__(self, other: _Span) -> _Span:
        return _Span(self.seconds - other.seconds, self.work - other.work)


class Pace:
    """Follows the events of a study.

    The speed of a group is measured from its first event that has a time. Before it, kernels may
    be compiled and operations timed, which would make the first estimates nonsense.

    Attributes:
        fraction: the part of the whole study that is done, from 0 to 1.
        rate: training images a second, of all lanes of the group together; 0 while it is unknown.
        left: seconds until the end of the study; NaN while they are unknown.
    """

    def __init__(self) -> None:
        self.fraction = self.rate = 0.0
        self.left = math.nan
        self._group = events.GroupStarted(0, 0, (), 0, 0, 0, {}, "")
        self._all = 0
        self._start = self._first = self._last = self._earlier = _Span()

    def group(self, event: events.GroupStarted) -> None:
        """A group starts."""
        self._earlier += self._measured()
        self._group = event
        self._all = max(self._all, event.epochs_all, event.epochs_left)
        self._start = _Span(event.seconds, self._work(event.epoch, event.examples))
        self._first = self._last = self._start
        self.rate, self.left = 0.0, math.nan
        self._estimate(self._start.work, _Span())

    def batches(self, event: events.BatchesTrained) -> None:
        """The group has come further within an epoch."""
        work = self._work(event.epoch, event.examples)
        if math.isfinite(event.seconds):
            self._mark(event.seconds, work)
            self._estimate(work, self._last - self._first)
        else:
            self._progress(work)

    def epoch(self, event: events.EpochFinished) -> None:
        """The group has trained an epoch."""
        work = self._work(event.epoch, 0)
        self._mark(event.seconds, work)
        # Where an epoch is a single step there is nothing better yet.
        self._estimate(work, self._measured())

    def _work(self, epoch: int, examples: int) -> float:
        return len(self._group.trials) * (epoch + examples / max(self._group.images, 1))

    def _mark(self, seconds: float, work: float) -> None:
        self._last = _Span(seconds, work)
        if self._first is self._start:
            self._first = self._last

    def _measured(self) -> _Span:
        """What the group was measured by: without the time before its first mark, if possible."""
        span = self._last - self._first
        return span if span.work > 0 else self._last - self._start

    def _progress(self, work: float) -> tuple[float, float]:
        """Update the fraction; return the work that is left in this group and in later ones."""
        lanes, group = len(self._group.trials), self._group
        own = lanes * group.epochs - work
        later = max(group.epochs_left - lanes * (group.epochs - group.epoch), 0)
        self.fraction = 1 - (own + later) / max(self._all, 1)
        return own, later

    def _estimate(self, work: float, span: _Span) -> None:
        own, later = self._progress(work)
        known = span + self._earlier
        if known.work <= 0:
            return
        pace = overall = known.seconds / known.work
        if span.work > 0:
            pace = span.seconds / span.work
            self.rate = self._group.images / max(pace, 1e-9)
        self.left = own * pace + later * overall
