"""What a study leaves behind: one :class:`TrialResult` a trial, written as CSV.

This is the vocabulary that the study, the reference and the views share.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Value = str | int | float | bool
"""A point of a grid axis. A tuple such as ``hidden = [120, 60]`` is written ``"120-60"``."""

Point = Mapping[str, Value]
"""Grid key -> value: which configuration a trial tried."""


class EpochMetrics(NamedTuple):
    """Means over the examples of one epoch; training's are taken while the epoch trains."""

    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float


@dataclass(frozen=True)
class TrialResult:
    """How one trial ended.

    Attributes:
        number: the Optuna trial's number.
        point: the values of the grid's axes, in the grid's order.
        state: ``"COMPLETE"``, or ``"FAIL"`` when training diverged.
        history: the metrics of each epoch, first to last.
        test_loss, test_accuracy: on the test set after the last epoch; NaN when not evaluated.
        seconds: the trial's share of its group's wall time.
        reason: why it failed; empty when it did not.
    """

    number: int
    point: Point
    state: Literal["COMPLETE", "FAIL"]
    history: tuple[EpochMetrics, ...]
    test_loss: float = math.nan
    test_accuracy: float = math.nan
    seconds: float = 0.0
    reason: str = ""

    @property
    def label(self) -> str:
        """The configuration's name."""
        return label(self.point)

    @property
    def last(self) -> EpochMetrics:
        """The last epoch's metrics; all NaN when there is none."""
        return self.history[-1] if self.history else EpochMetrics(*[math.nan] * 4)


def winner(results: Iterable[TrialResult], metric: str) -> TrialResult | None:
    """The complete trial with the best last value of ``metric``; of equals, the lowest number.

    None when no trial is complete. Only ``validation_*`` is ever asked for: the test set
    reports and does not choose.
    """
    sign = -1.0 if metric == "validation_accuracy" else 1.0
    complete = [result for result in results if result.state == "COMPLETE"]
    return min(complete, key=lambda r: (sign * getattr(r.last, metric), r.number), default=None)


RESULT_COLUMNS = (
    "state",
    *EpochMetrics._fields,
    "test_loss",
    "test_accuracy",
    "epochs",
    "seconds",
    "reason",
)


def results_csv(results: Sequence[TrialResult], keys: Sequence[str]) -> str:
    """One line a trial: its number, its point, how it ended, its last epoch and its test."""
    rows = (
        (
            r.number,
            *(r.point[key] for key in keys),
            r.state,
            *map(_number, (*r.last, r.test_loss, r.test_accuracy)),
            len(r.history),
            f"{r.seconds:.1f}",
            r.reason,
        )
        for r in results
    )
    return _csv(["number", *keys, *RESULT_COLUMNS], rows)


def history_csv(results: Sequence[TrialResult]) -> str:
    """One line a trial and epoch."""
    rows = (
        [r.number, epoch, *map(_number, metrics)]
        for r in results
        for epoch, metrics in enumerate(r.history, 1)
    )
    return _csv(["number", "epoch", *EpochMetrics._fields], rows)


def _number(value: float) -> str:
    """The shortest text that reads back as the same float; nothing for NaN."""
    return "" if math.isnan(value) else repr(value)


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def label(point: Point) -> str:
    """A name for a configuration that is short, unique in its grid and safe as a folder name."""
    return ",".join(f"{key}={value}" for key, value in point.items()) or "single"
