"""What each setting of a grid brings: differences between trials that differ in nothing else."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from fmnist.config.results import TrialResult, Value, winner
from fmnist.config.study import StudyConfig
from fmnist.reports import scores
from fmnist.reports.comparison import CONFIDENCE, Interval, quantile


class Effect(NamedTuple):
    """What the value of an axis brings over that of the winner.

    Attributes:
        key: the axis.
        value: the value.
        reference: the winner's value.
        gain: the mean difference of the metric, positive if ``value`` is better.
        interval: the 95 % interval of the gain, on the same images; NaN with a single pair.
        pairs: how many pairs of trials differ in this axis alone.
    """

    key: str
    value: Value
    reference: Value
    gain: float
    interval: Interval
    pairs: int

    @property
    def verdict(self) -> str:
        """``"better"``, ``"worse"`` or ``"not told apart"``."""
        low, high = self.interval
        return "better" if low > 0 else "worse" if high < 0 else "not told apart"


def effects(study: StudyConfig, results: Sequence[TrialResult]) -> list[Effect]:
    """Compare each value of each axis with that of the winner, over all pairs of trials.

    A pair has the same values of all other axes, the seed included. So the effect is that on
    average over the values of the other axes; an axis that only helps together with another may
    hide in it.

    Args:
        study: the study.
        results: its results.

    Returns:
        The effects, in the order of the axes and their values; none without a winner, or if it is
        one by images that were trained on. Values that are in no pair are missing.
    """
    best = winner(results, study.metric)
    if best is None or study.validation_is_trained:
        return []
    sign = -1.0 if study.direction == "minimize" else 1.0
    known = {
        tuple(result.point[key] for key in study.grid): sign * score
        for result in results
        if math.isfinite(score := scores.score(study, result))
    }
    found = []
    for place, (key, values) in enumerate(study.grid.items()):
        reference = best.point[key]
        for value in values if key != "seed" else ():
            differences = [
                known[point] - known[other]
                for point in known
                if point[place] == value
                and (other := (*point[:place], reference, *point[place + 1 :])) in known
            ]
            if value != reference and differences:
                found.append(_effect(key, value, reference, differences))
    return found


def _effect(key: str, value: Value, reference: Value, differences: Sequence[float]) -> Effect:
    gain, count = statistics.fmean(differences), len(differences)
    if count < 2:
        return Effect(key, value, reference, gain, (math.nan, math.nan), count)
    error = statistics.stdev(differences) / math.sqrt(count)
    half = quantile((1 + CONFIDENCE) / 2, count - 1) * error
    return Effect(key, value, reference, gain, (gain - half, gain + half), count)


def sentence(found: Sequence[Effect]) -> str:
    """Say which of the winner's settings are better than others, and which are not told apart."""
    parts = []
    for verdict, text in (
        ("worse", "better are {}"),
        ("better", "worse are {}"),
        ("not told apart", "not told apart are {}"),
    ):
        named = [
            f"{e.key} {e.reference} and {e.value}"
            if verdict == "not told apart"
            else f"{e.key} {e.reference} than {e.value}"
            for e in found
            if e.verdict == verdict and e.pairs > 1
        ]
        if named:
            parts.append(text.format(", ".join(named)))
    if not parts:
        return ""
    return (
        "Of the winner's settings, each on average over all pairs of trials that differ in nothing "
        f"else: {'; '.join(parts)} (each with 95% confidence, on the same images)."
    )
