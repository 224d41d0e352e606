"""What a study leaves behind: one :class:`TrialResult` a trial, written as CSV.

This is the vocabulary that the study, the reference and the views share.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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
        return label(self.point)

    @property
    def last(self) -> EpochMetrics:
        """The last epoch's metrics; all NaN when there is none."""
        return self.history[-1] if self.history else EpochMetrics(*[math.nan] * 4)


def label(point: Point) -> str:
    """A name for a configuration that is short, unique in its grid and safe as a folder name."""
    return ",".join(f"{key}={value}" for key, value in point.items()) or "single"
