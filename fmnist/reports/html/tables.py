"""The tables of ``report.html``: results, heat map of the grid, seeds, time."""

from __future__ import annotations

import base64
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmnist.config.results import TrialResult, ranked, results_csv
from fmnist.reports import scores, words
from fmnist.reports.comparison import SCALE, Standing
from fmnist.reports.findings import Findings
from fmnist.reports.html.curves import place
from fmnist.reports.rows import exact, table_header, table_rows

MOST_ROWS = 2000
"""Rows of a table, at most. The page says how many are left out; results.csv has all of them."""
MOST_CELLS = 4000


def results_table(findings: Findings) -> dict[str, Any]:
    """The table of every trial, the best first.

    Returns:
        ``header``; ``words``, the columns that are no numbers; ``rows``; ``cut``, the number of
        rows left out. A row has its ``cells``; ``exact``, the numbers to sort by; ``share``, how
        close its configuration is to the best one in percent, for a bar; and ``state``.
        ``csv`` is results.csv in base64, and ``file`` its name.
    """
    study, winner, comparison = findings.config, findings.winner, findings.comparison
    shown = ranked(findings.results, study.metric)[:MOST_ROWS]
    rows = []
    for result, won, cells in table_rows(study, shown, winner, comparison):
        failed, standing = result.state != "COMPLETE", comparison.of[result.number]
        better = None if failed else comparison.closeness(standing)
        rows.append(
            {
                "cells": cells,
                "exact": {name: v for name, v in exact(study, result).items() if math.isfinite(v)},
                "share": None if better is None else round(100 * better),
                "state": "winner" if won else "failed" if failed else "tied" * standing.tied,
            }
        )
    cut = len(findings.results) - len(shown)
    texts = [*study.grid, "state"]
    table = results_csv(findings.results, list(study.grid)).encode("utf-8", "replace")
    return {
        "header": table_header(study),
        "words": texts,
        "rows": rows,
        "cut": cut,
        "csv": base64.b64encode(table).decode("ascii"),
        "file": f"{study.name}-results.csv",
    }


def heat_map(findings: Findings) -> dict[str, Any] | None:
    """The selecting metric over two axes of the grid but the seed, at the best of the others.

    Returns:
        None when fewer than two axes vary, or when the map has more than :data:`MOST_CELLS`.
    """
    study, comparison, keys = findings.config, findings.comparison, scores.map_axes(findings.config)
    if len(keys) < 2 or math.prod(len(study.grid[key]) for key in keys[:2]) > MOST_CELLS:
        return None
    groups = comparison.cells(study, keys[:2])

    def cell(found: Sequence[Standing]) -> dict[str, Any]:
        known = bool(found) and not math.isnan(found[0].score)
        return {
            "score": found[0].score if known else None,
            "share": round(100 * comparison.closeness(found[0])) if known else None,
            "failed": sum(len(standing.trials) - len(standing.complete) for standing in found),
            "tied": known and found[0].tied,
            "won": known and found[0] is comparison.standings[0],
        }

    rows, columns = (study.grid[key] for key in keys[:2])
    found = [s.score for s in comparison.standings if not math.isnan(s.score)]
    return {
        "row_key": keys[0],
        "column_key": keys[1],
        "columns": columns,
        "rows": [(row, [cell(groups[row, column]) for column in columns]) for row in rows],
        "seeds": len(study.grid.get("seed", ())) > 1,
        "others": keys[2:],
        "worst": found[-1] if found and not comparison.known else None,
        "best": found[0] if found else None,
        "behind": SCALE,
        "critical": comparison.critical if comparison.known and len(found) > 1 else None,
    }


def seeds_table(findings: Findings) -> dict[str, Any] | None:
    """Mean and standard deviation over the seeds of each configuration, the best first.

    Returns:
        None when the grid has fewer than two seeds.
    """
    study, comparison = findings.config, findings.comparison
    if len(study.grid.get("seed", ())) < 2:
        return None
    keys = [key for key in study.grid if key != "seed"]
    everything = scores.scores(study, findings.results) or [0.0, 1.0]
    low, high = min(everything), max(everything)
    margin = 0.06 * (high - low) or 0.01
    # Without a validation set the metric is that of the test set already.
    tested = study.test and words.metric_name(study) != "test accuracy"
    rows = []
    for standing in comparison.standings[:MOST_ROWS]:
        found = scores.scores(study, standing.complete)
        values = [found]
        if tested:
            accuracies = [r.test_accuracy for r in standing.complete]
            values.append([value for value in accuracies if math.isfinite(value)])
        first = standing is comparison.standings[0]
        state = ("winner" if first else "tied" if standing.tied else "") if found else ""
        rows.append(
            {
                "point": [standing.point[key] for key in keys],
                "numbers": [number for each in values for number in _spread(each)],
                "interval": words.interval(standing.interval),
                "n": len(standing.complete),
                "failed": len(standing.trials) - len(standing.complete),
                "strip": _strip(found, (low - margin, high + margin)),
                "state": state,
                "said": words.won(study) if state == "winner" else state,
            }
        )
    return {
        "axes": keys,
        "metrics": [words.metric_name(study), *(["test accuracy"] if tested else [])],
        "rows": rows,
        "cut": len(comparison.standings) - len(rows),
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
    from fmnist.config.settings import DYNAMIC_KEYS

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
