"""Says whether the differences between the trials of a study exceed their noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fmnist.config.results import TrialResult, winner
from fmnist.config.study import StudyConfig
from fmnist.reports import words

SIGMAS = 1.96
"""Differences of fewer standard errors are noise: 95% of those that are chance."""


def noise_sentence(study: StudyConfig, results: Sequence[TrialResult], images: int) -> str:
    """Say how many trials cannot be told apart from the best; empty without two complete trials.

    An accuracy on n images has a binomial standard error, also where the loss selects.

    Args:
        study: the study.
        results: the results of its trials.
        images: how many images the selecting metric is of.
    """
    best = winner(results, study.metric)
    others = [r for r in results if r.state == "COMPLETE" and r is not best]
    if best is None or not others or not images:
        return ""
    high = best.last.validation_accuracy
    near = [r for r in others if abs(high - r.last.validation_accuracy) <= _margin(best, r, images)]
    of = (
        f"{words.held_out(study)} accuracy on {words.counted(images, 'image')} is uncertain by "
        f"{SIGMAS * math.sqrt(_variance(best, images)):.4f}"
    )
    if not near:
        return f"Every other trial differs from the best by more than chance: {of}."
    which = (
        "No other trial can be told apart from the best"
        if len(near) == len(others)
        else f"{len(near):,} of the {len(others):,} other trials cannot be told apart from the best"
    )
    return f"{which}: {of}, and smaller differences may be chance."


def _variance(result: TrialResult, images: int) -> float:
    accuracy = result.last.validation_accuracy
    return accuracy * (1 - accuracy) / images


def _margin(one: TrialResult, other: TrialResult, images: int) -> float:
    return SIGMAS * math.sqrt(_variance(one, images) + _variance(other, images))
