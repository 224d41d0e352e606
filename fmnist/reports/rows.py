"""The rows of the table of results, as texts: the same in a report, a page and on the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

from fmnist.config.results import TrialResult
from fmnist.config.study import StudyConfig
from fmnist.reports import scores, words
from fmnist.reports.comparison import Comparison, wilson
from fmnist.reports.words import held_out, metric_name, one_line

INTERVAL = "± 95%"
"""The column beside a selecting accuracy: half its 95 % interval, by the number of images."""


def metrics(study: StudyConfig) -> list[str]:
    """The columns of metrics in the table of results, those of ``exact`` among them."""
    splits = ("training", "validation" if study.validation_is_test else held_out(study), "test")
    return [" ".join(parts) for parts in product(splits, ("loss", "accuracy"))]


def table_header(study: StudyConfig) -> list[str]:
    """The columns of the results table: trial, axes of the grid, metrics, time and state."""
    shown = metrics(study)
    if study.validation_is_test:
        del shown[2:4]
    if not study.test:
        shown = [name for name in shown if not name.startswith("test ")]
    if study.metric == "validation_accuracy" and not study.validation_is_trained:
        shown.insert(shown.index(metric_name(study)) + 1, INTERVAL)
    return ["trial", *study.grid, *shown, "epochs", "time", "state"]


def short_header(study: StudyConfig) -> list[str]:
    """The columns to show where there is little space: the metric, and accuracy on the test set."""
    left_out = {*metrics(study)} - {metric_name(study), "test accuracy"}
    return [name for name in table_header(study) if name not in left_out]


def exact(study: StudyConfig, result: TrialResult) -> dict[str, float]:
    """Column -> number, of the metrics and the time."""
    known = [*result.final, result.test_loss, result.test_accuracy]
    if result.state != "COMPLETE":
        # The last finite epoch of a failed trial says nothing about its configuration.
        known = [math.nan] * len(known)
    return {**dict(zip(metrics(study), known, strict=True)), "time": result.seconds}


def table_row(
    study: StudyConfig, result: TrialResult, won: bool, comparison: Comparison
) -> list[str]:
    """A row of the results table.

    Args:
        study: the study.
        result: the trial's result.
        won: whether the trial is the winner.
        comparison: the configurations, compared with the best one.

    Returns:
        The cells in the order of :func:`table_header`, not escaped.
    """
    standing = comparison.of[result.number]
    other = "winner's seed" if standing is comparison.standings[0] else "complete"
    state = "tied" if standing.tied else other
    if study.validation_is_trained:  # nothing was chosen
        state = "complete"
    if won:
        state = words.won(study)
    score = scores.score(study, result)
    known = math.isfinite(score) and study.metric == "validation_accuracy" and comparison.images
    if result.state != "COMPLETE":
        state = f"failed: {result.reason}" if result.reason else "failed"
    cells = {
        **{name: words.decimals(value) for name, value in exact(study, result).items()},
        **{key: one_line(result.point.get(key, "-")) for key in study.grid},
        INTERVAL: words.margin(wilson(score, comparison.images)) if known else "-",
        "trial": str(result.number),
        "epochs": str(result.epochs),
        "time": words.duration(result.seconds),
        "state": one_line(state),
    }
    return [cells[name] for name in table_header(study)]


def table_rows(
    study: StudyConfig,
    results: Sequence[TrialResult],
    winner: TrialResult | None,
    comparison: Comparison,
) -> Iterator[tuple[TrialResult, bool, dict[str, str]]]:
    """Each result, whether it won, and its row: column -> text that is not escaped."""
    header = table_header(study)
    for result in results:
        won = winner is not None and result.number == winner.number
        yield result, won, dict(zip(header, table_row(study, result, won, comparison), strict=True))
