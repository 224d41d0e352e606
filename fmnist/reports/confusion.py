"""Which classes are taken for which: the counts behind figures and report."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def confusion_matrix(labels: Any, predictions: Any, classes: int = 10) -> NDArray[np.int64]:
    """Count examples by true class (row) and predicted class (column).

    Args:
        labels: true classes, integers ``[N]`` (numpy, a CPU tensor or a sequence).
        predictions: predicted classes, likewise.
        classes: how many there are; every label lies in ``[0, classes)``.

    Returns:
        ``int64 [classes, classes]``.
    """
    true, predicted = integers(labels), integers(predictions)
    if true.shape != predicted.shape:
        raise ValueError(f"{true.size} labels, but {predicted.size} predictions")
    for name, values in (("label", true), ("prediction", predicted)):
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise ValueError(f"a {name} lies outside 0..{classes - 1}")
    counts = np.bincount(true * classes + predicted, minlength=classes**2)
    return counts.reshape(classes, classes).astype(np.int64)


def most_confused(matrix: NDArray[np.int64], n: int) -> list[tuple[int, int, int]]:
    """The ``n`` most frequent mistakes as ``(true, predicted, count)``, the worst first.

    Pairs that never occur are left out; of equals, the lower classes come first.
    """
    wrong = [
        (int(true), int(predicted), int(matrix[true, predicted]))
        for true, predicted in np.argwhere(matrix)
        if true != predicted
    ]
    return sorted(wrong, key=lambda entry: (-entry[2], entry[0], entry[1]))[:n]


def integers(values: Any) -> NDArray[np.int64]:
    """Labels or predictions as a flat int64 array."""
    return np.asarray(values).astype(np.int64).ravel()
