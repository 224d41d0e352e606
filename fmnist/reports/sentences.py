"""Sentences about a study, computed from its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fmnist.reports.confusion import most_confused
from fmnist.reports.words import decimals, metric_name, one_line, score

if TYPE_CHECKING:
    from fmnist.config.results import TrialResult
    from fmnist.config.study import StudyConfig


def winner_sentence(study: StudyConfig, winner: TrialResult | None) -> str:
    """Say which trial won, by which metric, and how it does on the test set.

    Args:
        study: the study.
        winner: its winner; None when no trial is complete.
    """
    if winner is None:
        return "No trial was completed, so there is no winner."
    text = (
        f"The winner is trial {winner.number} ({one_line(winner.label)}), with the best "
        f"{metric_name(study)} after its last epoch, {decimals(score(study, winner))}."
    )
    if study.validation_is_test:
        return f"{text} The test set itself chose it, so this figure is optimistic."
    return (
        f"{text} On the test set, which had no part in the choice, its accuracy is "
        f"{decimals(winner.test_accuracy)} and its loss {decimals(winner.test_loss)}."
    )


def protocol_sentences(study: StudyConfig) -> str:
    """Say which images were trained on, which selected the winner, and which were reported."""
    epochs = f"{study.epochs} epoch" + ("s" if study.epochs != 1 else "")
    if study.validation_is_test:
        return (
            f"Every configuration was trained for {epochs} on all training images. Nothing was "
            "held out: what stands where validation would is the test set, looked at every "
            "epoch, and it chose the winner. This is a protocol to compare with others, not an "
            "estimate of how well the winner does on new images."
        )
    return (
        f"Every configuration was trained for {epochs}. {study.holdout:,} images, the same for "
        f"every trial, were held out from training: the {metric_name(study)} on them after the "
        "last epoch picks the winner. The test set was evaluated once a trial, at its end; it is "
        "reported and was never used to choose."
    )


def confusion_sentences(matrix: NDArray[np.int64], classes: Sequence[str]) -> str:
    """Say which classes the winner confuses.

    Args:
        matrix: its confusion matrix on the test set, counts ``[true class, predicted class]``.
        classes: the names of the classes.
    """
    total, wrong = int(matrix.sum()), int(matrix.sum() - np.trace(matrix))
    if not wrong:
        return f"The winner is right on all {total:,} test images."
    rows = matrix.sum(axis=1)
    pairs = [
        f"{classes[true]} for {classes[predicted]} ({count:,} of {rows[true]:,}, "
        f"{count / rows[true]:.1%})"
        for true, predicted, count in most_confused(matrix, 3)
    ]
    text = (
        f"The winner is wrong on {wrong:,} of the {total:,} test images ({wrong / total:.1%}). "
        f"Most often it takes {_listed(pairs)}."
    )
    right = np.diag(matrix) / np.where(rows, rows, 1)
    present = [index for index in range(len(rows)) if rows[index]]
    best, worst = max(present, key=lambda i: right[i]), min(present, key=lambda i: right[i])
    if right[best] > right[worst]:
        text += (
            f" It knows {classes[best]} best ({right[best]:.1%} right) and {classes[worst]} "
            f"least ({right[worst]:.1%})."
        )
    return text


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
