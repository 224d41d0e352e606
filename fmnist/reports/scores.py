"""What results say in numbers: scores, ranks, groups of trials, and series of metrics."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fmnist.config.results import TrialResult, Value
from fmnist.config.study import StudyConfig


def score(study: StudyConfig, result: TrialResult) -> float:
    """The final value of the selecting metric of a trial; NaN when the trial failed."""
    return float(getattr(result.final, study.metric)) if result.state == "COMPLETE" else math.nan


def scores(study: StudyConfig, results: Sequence[TrialResult]) -> list[float]:
    """The finite scores of these trials."""
    return [s for result in results if math.isfinite(s := score(study, result))]


def place(study: StudyConfig, result: TrialResult) -> int:
    """The place of a trial among the points of the grid, from 0."""
    place = 0
    for key, values in study.grid.items():
        place = place * len(values) + list(values).index(result.point[key])
    return place


def in_grid_order(study: StudyConfig, results: Sequence[TrialResult]) -> list[TrialResult]:
    """Sort the trials as the grid lists its points."""
    return sorted(results, key=lambda result: place(study, result))


def grouped(
    study: StudyConfig, results: Sequence[TrialResult], keys: Sequence[str]
) -> dict[tuple[Value, ...], list[TrialResult]]:
    """Group the trials by some axes of the grid.

    Args:
        study: the study.
        results: the trials.
        keys: the axes.

    Returns:
        Values of the axes -> trials by number, in the order of the grid, empty groups included.
    """
    groups: dict[tuple[Value, ...], list[TrialResult]] = {
        point: [] for point in itertools.product(*(study.grid[key] for key in keys))
    }
    for result in sorted(results, key=lambda r: r.number):
        groups[tuple(result.point[key] for key in keys)].append(result)
    return groups


def map_axes(study: StudyConfig) -> list[str]:
    """The axes of several values but the seed: rows and columns of a heat map, then the others.

    A cell is the mean over the seeds of the best configuration that it stands for.
    """
    used = [key for key, values in study.grid.items() if len(values) > 1 and key != "seed"]
    # The longer axis is horizontal, as screens are wide.
    return sorted(used[:2], key=lambda key: len(study.grid[key])) + used[2:]


def series(result: TrialResult, field: str, epochs: int = 0) -> NDArray[np.float64]:
    """A metric of each epoch, of ``epochs`` at least; NaN where it is unknown or not finite."""
    values = [getattr(metrics, field) for metrics in result.history]
    padded = np.array(values + [math.nan] * (epochs - len(values)), dtype=float)
    return np.where(np.isfinite(padded), padded, math.nan)


def offsets(results: Sequence[TrialResult]) -> NDArray[np.float64]:
    """How far each curve is moved to the right: curves of one point are put side by side."""
    alone = len(results) > 1 and max(len(result.history) for result in results) == 1
    return np.linspace(-0.35, 0.35, len(results)) if alone else np.zeros(len(results))


def is_point(values: NDArray[np.float64]) -> bool:
    """Whether a curve has one known value, and so needs a marker to be seen."""
    return int(np.isfinite(values).sum()) == 1


def absence(results: Sequence[TrialResult], kind: str) -> str:
    """Why there is no curve of this kind, ``"loss"`` or ``"accuracy"``; empty when there is one."""
    if not any(result.history for result in results):
        return "No trial finished an epoch."
    fields = (f"train_{kind}", f"validation_{kind}")
    known = any(np.isfinite(series(r, field)).any() for r in results for field in fields)
    return "" if known else "No value is finite."


def epoch_limits(results: Sequence[TrialResult]) -> tuple[float, float]:
    """The range of the x axis of learning curves: epochs are counted from 1."""
    last = max((len(result.history) for result in results), default=1) or 1
    margin = 0.02 * last if last > 1 else 0.5
    return 1 - margin, last + margin


def limits(
    results: Sequence[TrialResult], kind: str, others: Sequence[TrialResult] = ()
) -> tuple[float, float]:
    """The range of the y axis: that of the complete trials, so that one that diverges is cut off.

    Args:
        results: the trials that are drawn with training and held-out data.
        kind: ``"loss"`` or ``"accuracy"``.
        others: the trials that are drawn with held-out data only.
    """
    lines = [(r, f"{split}_{kind}") for r in results for split in ("train", "validation")]
    lines += [(r, f"validation_{kind}") for r in others]
    shown = [line for line in lines if line[0].state == "COMPLETE"] or lines
    values = np.concatenate([[], *(series(*line) for line in shown)])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if kind == "loss":
        high = min(high, 4 * float(np.quantile(values, 0.9)))
    else:
        low = max(low, float(np.quantile(values, 0.1)) - 0.25)
    # A margin of 0.05 vanishes beside huge values that are equal.
    margin = 0.04 * (high - low) if high - low > 1e-9 * abs(high) else max(0.05, 1e-3 * abs(high))
    return low - margin, high + margin


def faintness(lines: int) -> float:
    """The opacity of so many grey lines: the densest region is to stand out."""
    return float(np.clip(25 / max(lines, 1), 0.08, 0.6))
