"""The learning curves of ``report.html``: the lines, and the numbers to show on hovering."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist.config.results import winner
from fmnist.reports import words

if TYPE_CHECKING:
    from fmnist.config.results import TrialResult
    from fmnist.config.study import StudyConfig

COLOURS = 10
"""Trials with a colour of their own, at most; the lines of the others are thin and grey."""
MOST_LINES = 1000
MOST_POINTS = 24_000
"""Points of one metric in all lines together, at most; more would make the page slow."""
DRAWING_SIZE = 1000
"""Width and height of a drawing in its own units; the page scales it."""

Range = tuple[float, float]


def curves(study: StudyConfig, results: Sequence[TrialResult]) -> dict[str, Any] | None:
    """Loss and accuracy of every trial, as the template and the script need them.

    Args:
        study: the study.
        results: the result of every trial, in any order.

    Returns:
        ``panels`` (lines and ticks), ``lines`` (the coloured trials), ``others`` (how many
        are grey), ``notes`` and ``data`` (JSON for hovering); None when no epoch was finished.
    """
    shown = _by_rank(study, [result for result in results if result.history])[:MOST_LINES]
    if not shown:
        return None
    coloured = shown[:COLOURS]
    if len(shown) <= COLOURS:  # the legend is in the order of the grid
        grid = {key: list(values) for key, values in study.grid.items()}
        coloured.sort(key=lambda r: [grid[key].index(r.point[key]) for key in grid])
    shown = [*coloured, *shown[COLOURS:]]
    last = max(len(result.history) for result in shown)
    most = max(min(MOST_POINTS // len(shown), 400), 10)
    kept = np.unique(np.linspace(0, last - 1, min(last, most)).round().astype(int))
    margin = 0.02 * last if last > 1 else 0.5
    across = (1 - margin, last + margin)
    panels, ranges = [], {}
    for kind in ("loss", "accuracy"):
        ranges[kind] = up = limits(shown, kind)
        panels.append(
            {
                "kind": kind,
                "title": kind.capitalize(),
                "x": ticks(across, whole=True, at_most=8),
                "y": ticks(up),
                "lines": [
                    {
                        name: path(kept + 1, _values(result, f"{name}_{kind}", kept), across, up)
                        for name in (
                            ("validation", "train") if index < COLOURS else ("validation",)
                        )
                    }
                    for index, result in enumerate(shown)
                ],
            }
        )
    best = winner(results, study.metric)
    return {
        "panels": panels,
        "lines": [_named(result, best) for result in coloured],
        "others": len(shown) - len(coloured),
        # Fainter when there are more, so that the densest region stands out.
        "faintness": round(min(max(25 / max(len(shown) - len(coloured), 1), 0.08), 0.6), 3),
        "few_epochs": last < 4,
        "notes": _notes(study, results, shown, len(kept), last),
        "data": {
            "epochs": (kept + 1).tolist(),
            "x": across,
            "y": ranges,
            "held": words.held_out(study),
            "trials": [
                {
                    "name": _named(result, best),
                    "number": result.number,
                    **{
                        f"{name}_{kind}": _rounded(_values(result, f"{name}_{kind}", kept))
                        for kind in ("loss", "accuracy")
                        for name in (
                            ("validation", "train") if index < COLOURS else ("validation",)
                        )
                    },
                }
                for index, result in enumerate(shown)
            ],
        },
    }


def limits(results: Sequence[TrialResult], kind: str) -> Range:
    """The range of the y axis: that of the complete trials, so that one that diverges is cut off.

    Args:
        results: the trials.
        kind: ``"loss"`` or ``"accuracy"``.
    """
    shown = [result for result in results if result.state == "COMPLETE"] or results
    every = slice(None)
    values = np.concatenate(
        [_values(r, f"{name}_{kind}", every) for r in shown for name in ("train", "validation")]
    )
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if kind == "loss":
        high = min(high, 4 * float(np.quantile(values, 0.9)))
    else:
        low = max(low, float(np.quantile(values, 0.1)) - 0.25)
    margin = 0.04 * (high - low) or 0.05
    return low - margin, high + margin


def ticks(within: Range, whole: bool = False, at_most: int = 6) -> list[tuple[str, float, str]]:
    """Choose the ticks of an axis.

    Args:
        within: the range of the axis.
        whole: whether ticks must be whole numbers.
        at_most: the number of ticks, at most.

    Returns:
        Position in percent, position in the drawing, and text of each tick.
    """
    from matplotlib.ticker import MaxNLocator

    low, high = within
    found = MaxNLocator(at_most, integer=whole, min_n_ticks=1).tick_values(low, high)
    step = float(np.diff(found).min()) if len(found) > 1 else 1.0
    digits = 0 if whole else max(0, math.ceil(-math.log10(step) - 1e-9))
    digits += not whole and digits < 12 and abs(round(step, digits) - step) > 1e-9
    return [
        (f"{100 * share:.2f}", round(DRAWING_SIZE * share), f"{value:.{digits}f}")
        for value in found
        if 0 <= (share := (value - low) / (high - low)) <= 1
    ]


def path(x: Any, y: Any, across: Range, up: Range) -> str:
    """An SVG path through points, with a gap where ``y`` is not finite.

    Args:
        x: ``[n]``.
        y: ``[n]``.
        across: the range of the x axis.
        up: the range of the y axis.
    """
    parts: list[str] = []
    before: tuple[int, int] | None = None
    alone = False
    for one, other in zip(x, y, strict=True):
        if not math.isfinite(other):
            parts += ["h0"] if alone else []  # a line of one point shows as a dot
            before, alone = None, False
            continue
        here = _place(one, across), DRAWING_SIZE - _place(other, up)
        if before is None:
            parts.append(f"M{here[0]} {here[1]}")
        else:
            parts.append(f"l{here[0] - before[0]} {here[1] - before[1]}".replace(" -", "-"))
        alone, before = before is None, here
    return "".join(parts) + ("h0" if alone else "")


def _place(value: float, within: Range) -> int:
    low, high = within
    # A line goes on beyond the frame, so that its slope is right at the edge.
    return round(DRAWING_SIZE * min(max((value - low) / (high - low), -4.0), 5.0))


def _by_rank(study: StudyConfig, results: Sequence[TrialResult]) -> list[TrialResult]:
    """Sort the trials: the best first, failed ones last, equals by number."""
    sign = -1.0 if study.direction == "maximize" else 1.0

    def rank(result: TrialResult) -> tuple[float, int]:
        score = words.score(study, result)
        return (sign * score if math.isfinite(score) else math.inf), result.number

    return sorted(results, key=rank)


def _values(result: TrialResult, field: str, kept: Any) -> Any:
    """A metric at the kept epochs, float64 ``[epochs]``; NaN after the trial's last epoch."""
    values = np.array([getattr(metrics, field) for metrics in result.history], dtype=float)
    if isinstance(kept, slice):
        return values[kept]
    inside = kept < len(values)
    return np.where(inside, values[np.where(inside, kept, 0)], math.nan)


def _rounded(values: Any) -> list[float | None]:
    return [round(float(v), 4) if math.isfinite(v) else None for v in values]


def _named(result: TrialResult, best: TrialResult | None) -> str:
    text = f"{result.number}: {words.one_line(result.label)}"
    if best is not None and result.number == best.number:
        return f"{text} (winner)"
    return text if result.state == "COMPLETE" else f"{text} (failed)"


def _notes(
    study: StudyConfig,
    results: Sequence[TrialResult],
    shown: Sequence[TrialResult],
    kept: int,
    last: int,
) -> list[str]:
    notes = []
    if len(shown) > COLOURS:
        notes.append(
            f"The {COLOURS} trials with the best {words.metric_name(study)} have a colour; of the "
            f"others only the {words.held_out(study)} line is drawn, thin and grey."
        )
    if (left := sum(bool(result.history) for result in results) - len(shown)) > 0:
        notes.append(f"{left:,} trials that did less well are left out here.")
    if empty := sum(not result.history for result in results):
        trials = "1 trial" if empty == 1 else f"{empty:,} trials"
        notes.append(f"{trials} ended before the first epoch did.")
    if kept < last:
        notes.append(f"{kept} of the {last:,} epochs are drawn, evenly spread.")
    return notes
