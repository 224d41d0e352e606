"""Which colour a trial has: the same in every picture of a study."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fmnist.config.results import TrialResult, by_configuration, ranked, representative
from fmnist.config.study import StudyConfig
from fmnist.reports import scores

HUES = ("#0072b2", "#d55e00", "#00805d", "#b5488f", "#b98500",
        "#3399d4", "#6f4fa0", "#8a5a2b", "#3b4248", "#7c8a1c")  # fmt: skip
"""Colours that differ for colour-blind readers, too; ``report.css`` has them as ``--c0``, ..."""


def hues(study: StudyConfig, results: Sequence[TrialResult]) -> dict[int, int]:
    """Give each trial of a small study a colour of its own; of a large study, the best ones.

    Of a study with seeds these are the trials that stand for the best configurations.

    Args:
        study: the study.
        results: the trials that are known.

    Returns:
        Trial number -> index in :data:`HUES`, in the order of the grid.
    """
    if math.prod(len(values) for values in study.grid.values()) > len(HUES):
        groups = by_configuration(results)
        first = {r.number for g in groups if (r := representative(g, study.metric))}
        best = sorted(ranked(results, study.metric), key=lambda r: r.number not in first)
        chosen = scores.in_grid_order(study, best[: len(HUES)])
        return {result.number: index for index, result in enumerate(chosen)}
    ordered = scores.in_grid_order(study, results)
    return {result.number: scores.place(study, result) for result in ordered}
