"""The results of the trials of a study, and their CSV files.

The study, the reference model and the reports share these types.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Value = str | int | float | bool
"""A value of a grid axis. A tuple such as ``hidden = [120, 60]`` is written ``"120-60"``."""

Point = Mapping[str, Value]
"""The values of the grid's axes for one trial, by the name of the axis."""


class EpochMetrics(NamedTuple):
    """Means over the examples of an epoch. In training, each batch counts before its step."""

    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial.

    Attributes:
        number: the number of the trial in Optuna.
        point: the values of the grid's axes, in the order of the grid.
        state: ``"COMPLETE"``, or ``"FAIL"`` if training diverged.
        history: the metrics of each epoch in which all of them were finite.
        test_loss, test_accuracy: metrics on the test set after the last epoch; NaN if it failed.
        seconds: the trial's share of its group's wall time.
        reason: the reason of a failure; empty if the trial is complete.
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
        """The name of the configuration."""
        return label(self.point)

    @property
    def epochs(self) -> int:
        """Number of epochs that it was trained, that in which the loss was not finite included."""
        return len(self.history) + (self.state == "FAIL")

    @property
    def last(self) -> EpochMetrics:
        """The metrics of the last epoch; all NaN if there is none."""
        return self.history[-1] if self.history else EpochMetrics(*[math.nan] * 4)


def winner(results: Iterable[TrialResult], metric: str) -> TrialResult | None:
    """Return the complete trial with the best last value of a metric; None without one.

    Args:
        results: the results of the trials.
        metric: ``"validation_accuracy"`` or ``"validation_loss"``. Of equal trials, the one with
            the lowest number wins.
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
    """Return ``results.csv``: a row for each trial."""
    rows = (
        (
            r.number,
            *(r.point[key] for key in keys),
            r.state,
            *map(_number, (*r.last, r.test_loss, r.test_accuracy)),
            r.epochs,
            f"{r.seconds:.1f}",
            r.reason,
        )
        for r in results
    )
    return _csv(["number", *keys, *RESULT_COLUMNS], rows)


def history_csv(results: Sequence[TrialResult]) -> str:
    """Return ``history.csv``: a row for each epoch of each trial."""
    rows = (
        [r.number, epoch, *map(_number, metrics)]
        for r in results
        for epoch, metrics in enumerate(r.history, 1)
    )
    return _csv(["number", "epoch", *EpochMetrics._fields], rows)


def _number(value: float) -> str:
    """Return the shortest text that parses as the same float; empty for NaN."""
    return "" if math.isnan(value) else repr(value)


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def label(point: Point) -> str:
    """Return a name of a configuration. It is unique in its grid and safe as a folder name."""
    return ",".join(f"{key}={value}" for key, value in point.items()) or "single"
