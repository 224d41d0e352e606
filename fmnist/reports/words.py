"""The wording that every view shares: names of metrics, numbers, spans of time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fmnist.config.results import TrialResult
    from fmnist.config.study import StudyConfig

TEST_WAS_SEEN = "holdout = 0: the test set was looked at every epoch"
"""The mark on every table and figure of a study that has no validation set of its own."""


def one_line(text: object) -> str:
    """The text on one line, without control characters: safe for a terminal and a table."""
    words = " ".join(str(text).split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)


def protocol_note(study: StudyConfig) -> str:
    """:data:`TEST_WAS_SEEN` where it applies, else empty."""
    return TEST_WAS_SEEN if study.validation_is_test else ""


def held_out(study: StudyConfig) -> str:
    """What the ``validation_*`` metrics of this study were measured on, as an adjective."""
    return "test" if study.validation_is_test else "validation"


def metric_name(study: StudyConfig) -> str:
    """The metric that selects in words, such as ``"validation accuracy"``."""
    return f"{held_out(study)} {study.metric.removeprefix('validation_')}"


def score(study: StudyConfig, result: TrialResult) -> float:
    """The value a trial is judged by: the selecting metric after its last epoch, or NaN."""
    return float(getattr(result.last, study.metric)) if result.state == "COMPLETE" else math.nan


def decimals(value: float, digits: int = 4) -> str:
    """A metric to ``digits`` decimals; a dash when there is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def duration(seconds: float) -> str:
    """A span of time in the two units that matter, such as ``"3 min 20 s"``."""
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
