"""The tables of ``report.html``: results, heat map of the grid, seeds, time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmnist.config.results import TrialResult, Value
from fmnist.reports import scores, words
from fmnist.reports.findings import Findings
from fmnist.reports.html.curves import place
from fmnist.reports.markdown import exact, table_header, table_rows

MOST_ROWS = 2000
"""Rows of a table, at most. The page says how many are left out; results.csv has all of them."""
MOST_CELLS = 4000


def results_table(findings: Findings) -> dict[str, Any]:
    """The table of every trial.

    Returns:
        ``header``; ``words``, the columns that are no numbers; ``rows`` by trial number; ``cut``,
        the number of rows left out. A row has its ``cells``; ``exact``, the numbers to sort by;
        ``share``, the percentage of the selecting metric's range, for a bar; and ``state``.
    """
    study, winner = findings.config, findings.winner
    known = scores.scores(study, findings.results)
    shown = sorted(findings.results, key=lambda r: r.number)[:MOST_ROWS]
    if winner is not None and winner not in shown:
        shown[-1] = winner
    rows = []
    for result, won, cells in table_rows(study, shown, winner):
        failed, score = result.state != "COMPLETE", scores.score(study, result)
        better = scores.goodness(study, score, known) if math.isfinite(score) else None
        rows.append(
            {
                "cells": cells,
                "exact": {name: v for name, v in exact(result).items() if math.isfinite(v)},
                "share": None if better is None else round(100 * better),
                "state": "winner" if won else ("failed" if failed else ""),
            }
        )
    cut = len(findings.results) - len(shown)
    texts = [*study.grid, "state"]
    return {"header": table_header(study), "words": texts, "rows": rows, "cut": cut}


def heat_map(findings: Findings) -> dict[str, Any] | None:
    """The selecting metric over two axes of the grid, as a mean over the other axes.

    The seed is an axis of the map only when fewer than two other axes vary.

    Returns:
        None when fewer than two axes vary, or when the map has more than :data:`MOST_CELLS`.
    """
    study, winner, keys = findings.config, findings.winner, scores.map_axes(findings.config)
    if len(keys) < 2 or math.prod(len(study.grid[key]) for key in keys[:2]) > MOST_CELLS:
        return None
    groups = scores.grouped(study, findings.results, keys[:2])
    found = {point: scores.scores(study, trials) for point, trials in groups.items()}
    means = {point: statistics.fmean(values) for point, values in found.items() if values}
    known = sorted(means.values(), reverse=study.direction == "minimize")

    def cell(point: tuple[Value, ...]) -> dict[str, Any]:
        mean, trials = means.get(point), groups[point]
        return {
            "mean": mean,
            "share": None if mean is None else round(100 * scores.goodness(study, mean, known)),
            "failed": sum(result.state != "COMPLETE" for result in trials),
            "won": winner in trials,
        }

    rows, columns = (study.grid[key] for key in keys[:2])
    return {
        "row_key": keys[0],
        "column_key": keys[1],
        "columns": columns,
        "rows": [(row, [cell((row, column)) for column in columns]) for row in rows],
        "averaged": keys[2:],
        "worst": known[0] if known else None,
        "best": known[-1] if known else None,
    }


def seeds_table(findings: Findings) -> dict[str, Any] | None:
    """Mean and standard deviation over the seeds of each configuration, the best first.

    Returns:
        None when the grid has fewer than two seeds.
    """
    study = findings.config
    if len(study.grid.get("seed", ())) < 2:
        return None
    keys = [key for key in study.grid if key != "seed"]
    groups = scores.grouped(study, findings.results, keys)
    found = {point: scores.scores(study, trials) for point, trials in groups.items() if trials}
    everything = [score for values in found.values() for score in values] or [0.0, 1.0]
    low, high = min(everything), max(everything)
    margin = 0.06 * (high - low) or 0.01
    sign = -1 if study.direction == "maximize" else 1
    means = {point: _spread(values)[0] for point, values in found.items()}
    best = sorted(found, key=lambda point: np.nan_to_num(sign * means[point], nan=math.inf))
    # Without a validation set the metric is that of the test set already.
    tested = words.metric_name(study) != "test accuracy"
    rows = []
    for point in best[:MOST_ROWS]:
        complete = [r for r in groups[point] if r.state == "COMPLETE"]
        values = [found[point]]
        if tested:
            values.append([r.test_accuracy for r in complete if math.isfinite(r.test_accuracy)])
        rows.append(
            {
                "point": point,
                "numbers": [number for each in values for number in _spread(each)],
                "n": len(complete),
                "failed": len(groups[point]) - len(complete),
                "strip": _strip(found[point], (low - margin, high + margin)),
            }
        )
    return {
        "axes": keys,
        "metrics": [words.metric_name(study), *(["test accuracy"] if tested else [])],
        "rows": rows,
        "cut": len(found) - len(rows),
        "low": low,
        "high": high,
        "n": len(study.grid["seed"]),
    }


def time_table(findings: Findings, phases: Mapping[str, float]) -> dict[str, Any] | None:
    """Seconds and images per second of each group of lanes, and seconds of each phase.

    Args:
        findings: what the study found.
        phases: seconds by phase of the run.

    Returns:
        None when neither the trials nor the phases have a time.
    """
    study = findings.config
    images = len(findings.dataset.train.labels) - study.holdout  # of an epoch
    timed = [r for r in findings.results if r.history and r.seconds > 0]
    spent = {name: s for name, s in phases.items() if s > 0}
    if not timed and not spent:
        return None
    from fmnist.config.study import DYNAMIC_KEYS

    keys = [k for k, values in study.grid.items() if len(values) > 1 and k not in DYNAMIC_KEYS]
    groups = scores.grouped(study, timed, keys)
    # A failed trial trained fewer epochs, so its time does not compare.
    ends = sorted((r for r in timed if r.state == "COMPLETE"), key=lambda r: (r.seconds, r.number))
    return {
        "axes": keys,
        "rows": [
            {"point": point, **_speed(trials, images)} for point, trials in groups.items() if trials
        ][:MOST_ROWS],
        "total": _speed(timed, images) if timed else None,
        "ends": ends if len(ends) > 1 and ends[0].seconds < ends[-1].seconds else None,
        "phases": spent,
    }


def _speed(results: Sequence[TrialResult], images: int) -> dict[str, float]:
    seconds = sum(r.seconds for r in results)
    epoch = seconds / sum(len(r.history) for r in results)
    return {"trials": len(results), "seconds": seconds, "epoch": epoch, "rate": images / epoch}


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation; NaN where there are too few values."""
    mean = statistics.fmean(values) if values else math.nan
    return mean, statistics.stdev(values) if len(values) > 1 else math.nan


def _strip(values: Sequence[float], within: tuple[float, float]) -> dict[str, Any] | None:
    """A drawing of one line: a dot for each seed, their mean and standard deviation."""
    if not values:
        return None
    mean, spread = _spread(values)
    band = np.clip(np.nan_to_num([mean - spread, mean, mean + spread], nan=mean), *within)
    left, middle, right, *dots = place([*band, *values], within).tolist()
    return {
        "dots": "".join(f"M{dot} 50h0" for dot in dots),
        "mean": middle,
        "left": left,
        "width": right - left,
    }
