"""The tables of ``report.html``: results, heat map of the grid, seeds, time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from fmnist.reports import words
from fmnist.reports.html.curves import DRAWING_SIZE
from fmnist.reports.markdown import table_header, table_row

if TYPE_CHECKING:
    from fmnist.config.results import TrialResult, Value
    from fmnist.reports.findings import Findings

MOST_ROWS = 2000
"""Rows of a table, at most. The page says how many are left out; results.csv has all of them."""
MOST_CELLS = 4000

Cell = dict[str, Any]


def results_table(findings: Findings) -> dict[str, Any]:
    """The table of every trial.

    Returns:
        ``header``; ``rows`` by trial number; ``cut``, the number of rows left out. A cell has its
        text; ``sort``, the number to sort by where the text does not give the order; and
        ``share``, the percentage of the selecting metric's range, for a bar.
    """
    study, results, winner = findings.config, findings.results, findings.winner
    judged = words.metric_name(study)
    scores = [s for r in results if math.isfinite(s := words.score(study, r))]
    low, high = (min(scores), max(scores)) if scores else (0.0, 0.0)
    header = table_header(study)
    rows = []
    ordered = sorted(results, key=lambda r: r.number)
    shown = ordered[:MOST_ROWS]
    if winner is not None and winner.number not in {r.number for r in shown}:
        shown[-1] = winner
    for result in shown:
        won = winner is not None and result.number == winner.number
        exact = _exact(result)
        cells = []
        for name, text in zip(header, table_row(study, result, won), strict=True):
            cell: Cell = {"text": text, "word": name in study.grid or name == "state"}
            if name not in study.grid and math.isfinite(exact.get(name, math.nan)):
                cell["sort"] = f"{exact[name]:.8g}"
            if name == judged and math.isfinite(score := words.score(study, result)):
                share = (score - low) / (high - low) if high > low else 1.0
                cell["share"] = round(100 * (share if study.direction == "maximize" else 1 - share))
            cells.append(cell)
        state = "winner" if won else ("failed" if result.state != "COMPLETE" else "")
        rows.append({"cells": cells, "state": state})
    columns = [
        {"name": n, "word": n in study.grid or n == "state", "judged": n == judged} for n in header
    ]
    return {"header": columns, "rows": rows, "cut": len(ordered) - len(shown)}


def heat_map(findings: Findings) -> dict[str, Any] | None:
    """The selecting metric over two axes of the grid, as a mean over the other axes.

    The seed is an axis of the map only when fewer than two other axes vary.

    Returns:
        None when fewer than two axes vary, or when the map has more than :data:`MOST_CELLS`.
    """
    study, results, winner = findings.config, findings.results, findings.winner
    used = [key for key, values in study.grid.items() if len(values) > 1]
    used.sort(key=lambda key: key == "seed")
    if len(used) < 2:
        return None
    # The longer axis is horizontal, as screens are wide.
    row_key, column_key = sorted(used[:2], key=lambda key: len(study.grid[key]))
    rows, columns = list(study.grid[row_key]), list(study.grid[column_key])
    if len(rows) * len(columns) > MOST_CELLS:
        return None
    members: dict[tuple[Value, Value], list[TrialResult]] = {}
    for result in results:
        members.setdefault((result.point[row_key], result.point[column_key]), []).append(result)
    means = {
        place: statistics.fmean(scores)
        for place, trials in members.items()
        if (scores := [s for r in trials if math.isfinite(s := words.score(study, r))])
    }
    low, high = (min(means.values()), max(means.values())) if means else (0.0, 0.0)
    best_at = (winner.point[row_key], winner.point[column_key]) if winner else None

    def cell(place: tuple[Value, Value]) -> Cell:
        trials = members.get(place, [])
        failed = sum(r.state != "COMPLETE" for r in trials)
        if place not in means:
            return {
                "text": "failed" if failed else "not run",
                "share": None,
                "note": "",
                "won": False,
            }
        share = (means[place] - low) / (high - low) if high > low else 0.5
        share = share if study.direction == "maximize" else 1 - share
        return {
            "text": words.decimals(means[place]),
            "share": round(100 * share),
            "note": f"{failed} failed" if failed else "",
            "won": place == best_at,
        }

    return {
        "row_key": row_key,
        "column_key": column_key,
        "columns": [words.one_line(value) for value in columns],
        "rows": [
            {"name": words.one_line(row), "cells": [cell((row, column)) for column in columns]}
            for row in rows
        ],
        "averaged": used[2:],
        "worst": words.decimals(low if study.direction == "maximize" else high),
        "best": words.decimals(high if study.direction == "maximize" else low),
    }


def seeds_table(findings: Findings) -> dict[str, Any] | None:
    """Mean and standard deviation over the seeds of each configuration, the best first.

    Returns:
        None when the grid has fewer than two seeds.
    """
    study, results = findings.config, findings.results
    if len(study.grid.get("seed", ())) < 2:
        return None
    keys = [key for key in study.grid if key != "seed"]
    groups: dict[tuple[Value, ...], list[TrialResult]] = {}
    for result in sorted(results, key=lambda r: r.number):
        groups.setdefault(tuple(result.point[key] for key in keys), []).append(result)
    scores = {
        point: [s for r in trials if math.isfinite(s := words.score(study, r))]
        for point, trials in groups.items()
    }
    everything = [score for found in scores.values() for score in found]
    low, high = (min(everything), max(everything)) if everything else (0.0, 1.0)
    margin = 0.06 * (high - low) or 0.01
    within = (low - margin, high + margin)
    sign = -1 if study.direction == "maximize" else 1
    order = {point: index for index, point in enumerate(product(*(study.grid[k] for k in keys)))}

    def rank(point: tuple[Value, ...]) -> tuple[float, int]:
        found = scores[point]
        return (sign * statistics.fmean(found) if found else math.inf), order[point]

    # Without a validation set the metric is that of the test set already.
    tested = not (study.validation_is_test and study.metric == "validation_accuracy")
    rows = []
    for point in sorted(groups, key=rank)[:MOST_ROWS]:
        trials = groups[point]
        complete = [r for r in trials if r.state == "COMPLETE"]
        failed = len(trials) - len(complete)
        values = [scores[point]]
        if tested:
            values.append([r.test_accuracy for r in complete if math.isfinite(r.test_accuracy)])
        numbers = [figure for each in values for figure in (_mean(each), _spread(each))]
        rows.append(
            {
                "point": [words.one_line(value) for value in point],
                "numbers": [{"text": words.decimals(v), "sort": f"{v:.8g}"} for v in numbers],
                "n": len(complete),
                "failed": failed,
                "strip": _strip(scores[point], within),
            }
        )
    return {
        "axes": keys,
        "metrics": [words.metric_name(study), *(["test accuracy"] if tested else [])],
        "rows": rows,
        "cut": len(groups) - len(rows),
        "low": words.decimals(low),
        "high": words.decimals(high),
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
    study, images = findings.config, findings.training_images
    timed = [r for r in findings.results if r.history and r.seconds > 0]
    spent = {name: s for name, s in phases.items() if s > 0}
    if not timed and not spent:
        return None
    from fmnist.config.study import DYNAMIC_KEYS

    keys = [k for k, values in study.grid.items() if len(values) > 1 and k not in DYNAMIC_KEYS]
    groups: dict[tuple[Value, ...], list[TrialResult]] = {}
    for result in timed:
        groups.setdefault(tuple(result.point[key] for key in keys), []).append(result)
    order = {point: index for index, point in enumerate(product(*(study.grid[k] for k in keys)))}
    lines = [
        {
            "point": [words.one_line(value) for value in point],
            "trials": len(groups[point]),
            **_speed(groups[point], images),
        }
        for point in sorted(groups, key=lambda point: order[point])[:MOST_ROWS]
    ]
    slowest = max((line["epoch_seconds"] for line in lines), default=1.0)
    for line in lines:
        line["share"] = round(100 * line["epoch_seconds"] / slowest)
    # A failed trial trained fewer epochs, so its time does not compare.
    ends = sorted((r for r in timed if r.state == "COMPLETE"), key=lambda r: (r.seconds, r.number))
    total, all_phases = _speed(timed, images), sum(spent.values())
    return {
        "axes": keys,
        "rows": lines,
        "total": total,
        "trials": len(timed),
        "ends": ends if len(ends) > 1 and ends[0].seconds < ends[-1].seconds else None,
        "phases": [
            {
                "name": words.one_line(name),
                "time": words.duration(seconds),
                "sort": f"{seconds:.8g}",
                "percent": f"{seconds / all_phases:.1%}",
                "share": round(100 * seconds / max(spent.values())),
            }
            for name, seconds in spent.items()
        ],
    }


def _speed(results: Sequence[TrialResult], images: int) -> dict[str, Any]:
    seconds, epochs = sum(r.seconds for r in results), sum(len(r.history) for r in results)
    each = seconds / epochs if epochs else math.nan
    rate = images / each if each > 0 else math.nan
    return {
        "time": words.duration(seconds),
        "seconds": f"{seconds:.8g}",
        "epoch_seconds": each,
        "epoch": f"{each:.3g} s" if each < 1 else words.duration(each),
        "rate": f"{rate:,.0f}" if math.isfinite(rate) else "-",
        "rate_sort": f"{rate:.8g}",
    }


def _exact(result: TrialResult) -> dict[str, float]:
    """Column -> exact number, of the cells whose text is rounded or has a unit."""
    if result.state != "COMPLETE":
        return {"time": result.seconds}
    last = result.last
    return {
        "training loss": last.train_loss,
        "training accuracy": last.train_accuracy,
        "validation loss": last.validation_loss,
        "validation accuracy": last.validation_accuracy,
        "test loss": result.test_loss,
        "test accuracy": result.test_accuracy,
        "time": result.seconds,
    }


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def _strip(values: Iterable[float], within: tuple[float, float]) -> dict[str, Any] | None:
    """A drawing of one line: a dot for each seed, their mean and standard deviation."""
    values = list(values)
    if not values:
        return None
    low, high = within

    def place(value: float) -> int:
        return round(DRAWING_SIZE * min(max((value - low) / (high - low), 0.0), 1.0))

    mean, spread = _mean(values), _spread(values)
    half = spread if math.isfinite(spread) else 0.0
    left, right = place(mean - half), place(mean + half)
    return {
        "dots": "".join(f"M{place(value)} 50h0" for value in values),
        "mean": place(mean),
        "left": left,
        "width": right - left,
    }
