"""The wording that every view shares: names of metrics, numbers, durations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fmnist.config.results import TrialResult
    from fmnist.config.study import StudyConfig

TEST_WAS_SEEN = "holdout = 0: the test set was looked at every epoch"
"""The note on every table and figure of a study without a validation set."""


def one_line(text: object) -> str:
    """Put a text on one line and replace control characters, for a terminal or a table."""
    words = " ".join(str(text).split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)


def protocol_note(study: StudyConfig) -> str:
    """:data:`TEST_WAS_SEEN` when the study selects on the test set; otherwise empty."""
    return TEST_WAS_SEEN if study.validation_is_test else ""


def held_out(study: StudyConfig) -> str:
    """The split that the ``validation_*`` metrics are of: ``"validation"`` or ``"test"``."""
    return "test" if study.validation_is_test else "validation"


def metric_name(study: StudyConfig) -> str:
    """The name of the selecting metric, such as ``"validation accuracy"``."""
    return f"{held_out(study)} {study.metric.removeprefix('validation_')}"


def score(study: StudyConfig, result: TrialResult) -> float:
    """The selecting metric of a trial after its last epoch; NaN when the trial failed."""
    return float(getattr(result.last, study.metric)) if result.state == "COMPLETE" else math.nan


def decimals(value: float, digits: int = 4) -> str:
    """Write a metric with ``digits`` decimals; a dash when it is not finite."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def duration(seconds: float) -> str:
    """Write seconds in one or two units, such as ``"3 min 20 s"``; a dash when not finite."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
