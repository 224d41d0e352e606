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
        test_loss, test_accuracy: metrics on the test set of the parameters that are its result;
            NaN if it failed, or if the study leaves the test set unseen.
        seconds: the trial's share of its group's wall time.
        reason: the reason of a failure; empty if the trial is complete.
        kept: the epoch whose parameters are its result; 0 is the last.
        window: over how many last epochs its final metrics are means; 1 if another epoch is kept.
    """

    number: int
    point: Point
    state: Literal["COMPLETE", "FAIL"]
    history: tuple[EpochMetrics, ...]
    test_loss: float = math.nan
    test_accuracy: float = math.nan
    seconds: float = 0.0
    reason: str = ""
    kept: int = 0
    window: int = 1

    @property
    def label(self) -> str:
        """The name of the configuration."""
        return label(self.point)

    @property
    def epochs(self) -> int:
        """Number of epochs that it was trained, that in which the loss was not finite included."""
        return len(self.history) + (self.state == "FAIL")

    @property
    def final(self) -> EpochMetrics:
        """The metrics that count: of the kept epoch, or means; all NaN if there is no epoch."""
        if self.kept:
            return self.history[self.kept - 1]
        if self.window == 1 or not self.history:
            return self.history[-1] if self.history else EpochMetrics(*[math.nan] * 4)
        counting = self.history[-self.window :]
        return EpochMetrics(*(math.fsum(c) / len(c) for c in zip(*counting, strict=True)))


def best_epoch(history: Sequence[EpochMetrics], metric: str) -> int:
    """Return the epoch with the best value of the metric, from 1, the first of equals; or 0."""
    sign = -1.0 if metric.endswith("accuracy") else 1.0
    values = [sign * getattr(metrics, metric) for metrics in history]
    return values.index(min(values)) + 1 if values else 0


def configuration(point: Point) -> Point:
    """Return a point without its seed: the trials of a configuration differ in the seed only."""
    return {key: value for key, value in point.items() if key != "seed"}


def by_configuration(results: Iterable[TrialResult]) -> list[list[TrialResult]]:
    """Group the results by configuration, each group by trial number."""
    groups: dict[tuple[tuple[str, Value], ...], list[TrialResult]] = {}
    for result in sorted(results, key=lambda r: r.number):
        groups.setdefault(tuple(sorted(configuration(result.point).items())), []).append(result)
    return list(groups.values())


def rank(trials: Sequence[TrialResult], metric: str) -> tuple[bool, float, int]:
    """Return what a configuration is sorted by, given its trials: the best has the least.

    That is whether a seed failed, the mean over the seeds that were completed, and the lowest
    number. So a configuration that fails with some seeds is behind all that never do.
    """
    sign = -1.0 if metric == "validation_accuracy" else 1.0
    known = [getattr(r.final, metric) for r in trials if r.state == "COMPLETE"]
    values = [value for value in known if math.isfinite(value)]
    mean = sign * math.fsum(values) / len(values) if values else math.inf
    return len(values) < len(trials), mean, min(r.number for r in trials)


def representative(trials: Sequence[TrialResult], metric: str) -> TrialResult | None:
    """Return the median trial of a configuration; None when no trial is complete.

    Of two in the middle it is the worse one, of equals the one with the higher number.
    """
    complete = [result for result in trials if result.state == "COMPLETE"]
    ordered = sorted(complete, key=lambda result: rank([result], metric))
    return ordered[len(ordered) // 2] if ordered else None


def ranked(results: Iterable[TrialResult], metric: str) -> list[TrialResult]:
    """Sort the trials: the best configuration first, failed ones last.

    Of each configuration the trial that stands for it is first, then the best seed. So the winner
    is the first of all, though another trial may have had a luckier seed.
    """
    ordered: list[TrialResult] = []
    for trials in sorted(by_configuration(results), key=lambda trials: rank(trials, metric)):
        first = representative(trials, metric)
        ordered += sorted(trials, key=lambda r: (r is not first, rank([r], metric)))
    return sorted(ordered, key=lambda result: result.state != "COMPLETE")


def winner(results: Iterable[TrialResult], metric: str) -> TrialResult | None:
    """Return the trial that stands for the best configuration; None when no trial is complete.

    The best configuration has the best mean of the metric's final value over its seeds; of equals
    it is the one with the lowest number. Its median trial stands for it.

    Args:
        results: the results of the trials.
        metric: ``"validation_accuracy"`` or ``"validation_loss"``.
    """
    groups = [g for g in by_configuration(results) if any(r.state == "COMPLETE" for r in g)]
    if not groups:
        return None
    return representative(min(groups, key=lambda trials: rank(trials, metric)), metric)


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
            *map(_number, (*r.final, r.test_loss, r.test_accuracy)),
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
