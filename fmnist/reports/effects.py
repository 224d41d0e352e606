"""What each setting of a grid brings: differences between trials that differ in nothing else."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from fmnist.config.cases import CASE
from fmnist.config.results import TrialResult, Value, winner
from fmnist.config.study import StudyConfig
from fmnist.reports import scores
from fmnist.reports.comparison import CONFIDENCE, Interval, quantile


class Effect(NamedTuple):
    """What the value of an axis brings over that of the winner, or a case over the first one.

    Attributes:
        key: the axis.
        value: the value.
        reference: the winner's value, or the first case.
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

    Cases are compared with the first one, which is the winner or not: it was not picked by chance.

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
        reference = values[0] if key == CASE else best.point[key]
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
    """Say which settings and cases are better than others, and which are not told apart."""
    told = [e for e in found if e.pairs > 1]
    settings = _listed([e for e in told if e.key != CASE], reverse=True)
    cases = _listed([e for e in told if e.key == CASE], reverse=False)
    texts = []
    if settings:
        texts.append(
            "Of the winner's settings, each on average over all pairs of trials that differ in "
            f"nothing else: {settings} (each with 95% confidence, on the same images)."
        )
    if cases:
        first = next(e.reference for e in told if e.key == CASE)
        texts.append(
            f"Compared with case {first!r}, over pairs of trials that differ in the case alone: "
            f"{cases} (each with 95% confidence, on the same images)."
        )
    return " ".join(texts)


def _listed(found: Sequence[Effect], *, reverse: bool) -> str:
    """List effects by their verdict; reversed, it is the verdict on the reference."""
    parts = []
    for said in ("better", "worse", "not told apart"):
        turned = {"better": "worse", "worse": "better"}.get(said, said) if reverse else said
        joint = "and" if said == "not told apart" else "than"
        named = [
            f"{e.key} {e.reference} {joint} {e.value}" if reverse else str(e.value)
            for e in found
            if e.verdict == turned
        ]
        if named:
            parts.append(f"{said} are {', '.join(named)}")
    return "; ".join(parts)
