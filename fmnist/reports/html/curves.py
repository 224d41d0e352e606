"""The learning curves of ``report.html``: the lines, and the numbers to show on hovering."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import fmnist.reports.drawing  # noqa: F401

# isort: split
import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from fmnist.config.results import TrialResult, ranked, winner
from fmnist.config.study import StudyConfig
from fmnist.reports import scores, words
from fmnist.reports.colours import hues

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
        are grey), ``notes`` and ``data`` (JSON for hovering); None when no metric of any epoch is
        known.
    """
    trained = [result for result in results if result.history]
    if all(scores.absence(trained, kind) for kind in ("loss", "accuracy")):
        return None
    colours, best = hues(study, results), winner(results, study.metric)
    ordered = ranked(trained, study.metric)[:MOST_LINES]
    coloured = [r for r in scores.in_grid_order(study, ordered) if r.number in colours]
    others = [r for r in ordered if r.number not in colours]
    shown = [*coloured, *others]
    last = max(len(result.history) for result in shown)
    most = max(min(MOST_POINTS // len(shown), 400), 10)
    kept = np.unique(np.linspace(0, last - 1, min(last, most)).round().astype(int))
    across = scores.epoch_limits(shown)
    up = {kind: scores.limits(coloured, kind, others) for kind in ("loss", "accuracy")}
    drawn = [
        {
            f"{split}_{kind}": scores.series(result, f"{split}_{kind}", last)[kept]
            for split in (("validation", "train") if index < len(coloured) else ("validation",))
            for kind in up
        }
        for index, result in enumerate(shown)
    ]
    aside = scores.offsets(shown)
    names = [words.named(study, result, best) for result in shown]
    worse, empty = len(trained) - len(shown), len(results) - len(trained)
    notes = {
        f"{words.counted(len(coloured), 'trial')} of the best configurations have a colour; of the "
        f"others only the {words.held_out(study)} line is drawn, thin and grey.": bool(others),
        f"{worse:,} trials that did less well are left out here.": worse > 0,
        f"{words.counted(empty, 'trial')} ended before the first epoch did.": empty > 0,
        "Of one epoch there are only points; the trials stand side by side.": last == 1,
        f"{len(kept)} of the {last:,} epochs are drawn, evenly spread.": len(kept) < last,
    }
    return {
        "panels": [
            {
                "kind": kind,
                "x": ticks(across, whole=True, at_most=8),
                "y": ticks(limits),
                "absence": scores.absence(shown, kind),
                "lines": [
                    {
                        field: path(kept + 1 + by, values, across, limits)
                        for field, values in line.items()
                        if field.endswith(kind)
                    }
                    for line, by in zip(drawn, aside, strict=True)
                ],
            }
            for kind, limits in up.items()
        ],
        "lines": names[: len(coloured)],
        "hues": [colours[result.number] for result in coloured],
        "others": len(others),
        "faintness": round(scores.faintness(len(others)), 3),
        "few_epochs": last < 4,
        "notes": [text for text, needed in notes.items() if needed],
        "data": {
            "epochs": (kept + 1).tolist(),
            "x": across,
            "y": up,
            "held": words.held_out(study),
            "places": (1 + aside).tolist() if last == 1 else None,
            "trials": [
                {
                    "name": name,
                    "number": result.number,
                    "hue": colours.get(result.number),
                    **{
                        field: [None if math.isnan(v) else round(v, 4) for v in values.tolist()]
                        for field, values in line.items()
                    },
                }
                for name, result, line in zip(names, shown, drawn, strict=True)
            ],
        },
    }


def ticks(within: Range, whole: bool = False, at_most: int = 6) -> list[tuple[str, int, str]]:
    """Choose the ticks of an axis.

    Args:
        within: the range of the axis.
        whole: whether ticks must be whole numbers.
        at_most: the number of ticks, at most.

    Returns:
        Position in percent, position in the drawing, and text of each tick.
    """
    low, high = within
    found = np.asarray(MaxNLocator(at_most, integer=whole, min_n_ticks=1).tick_values(low, high))
    found = found[(found >= low) & (found <= high)]
    step = float(np.diff(found).min()) if len(found) > 1 else 1.0
    digits = next((d for d in range(12) if abs(round(step, d) - step) < 1e-6 * step), 12)
    shares = (found - low) / (high - low)
    return [
        (f"{100 * share:.2f}", round(DRAWING_SIZE * share), f"{value:.{digits}f}")
        for share, value in zip(shares, found, strict=True)
    ]


def path(x: ArrayLike, y: ArrayLike, across: Range, up: Range) -> str:
    """An SVG path through points, with a gap where ``y`` is not finite.

    Args:
        x: ``[n]``.
        y: ``[n]``.
        across: the range of the x axis.
        up: the range of the y axis.
    """
    known = np.ma.masked_invalid(np.asarray(y, dtype=float))
    points = np.column_stack([place(x, across), DRAWING_SIZE - place(known.filled(0), up)])
    parts = []
    for run in np.ma.clump_unmasked(known) if len(known) else ():
        (first, second), steps = points[run.start], np.diff(points[run], axis=0).tolist()
        parts.append(f"M{first} {second}")
        parts += [f"l{step[0]} {step[1]}".replace(" -", "-") for step in steps]
        parts += [] if steps else ["h0"]  # a line of one point shows as a dot
    return "".join(parts)


def place(values: ArrayLike, within: Range) -> NDArray[np.int64]:
    """Where values lie in a drawing."""
    low, high = within
    # A line goes on beyond the frame, so that its slope is right at the edge.
    shares = np.clip((np.asarray(values, dtype=float) - low) / (high - low), -4.0, 5.0)
    return np.rint(DRAWING_SIZE * shares).astype(np.int64)
