"""Confusion matrices: how often each class is predicted as each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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

    Raises:
        ValueError: The two differ in length, or hold a class outside ``[0, classes)``.
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
    """The most frequent mistakes, the most frequent first; of equals, the lower classes.

    Args:
        matrix: counts ``[true class, predicted class]``.
        n: how many mistakes to return; fewer when fewer pairs occur.

    Returns:
        ``(true class, predicted class, count)`` of each.
    """
    wrong = [
        (int(true), int(predicted), int(matrix[true, predicted]))
        for true, predicted in np.argwhere(matrix)
        if true != predicted
    ]
    return sorted(wrong, key=lambda entry: (-entry[2], entry[0], entry[1]))[:n]


def integers(values: Any) -> NDArray[np.int64]:
    """Convert labels or predictions to a flat int64 array."""
    return np.asarray(values).astype(np.int64).ravel()


class Recognition(NamedTuple):
    """How well a class is recognised.

    Attributes:
        name: the class.
        images: how many images are of it.
        precision: the share of the images taken for it that are of it; NaN without one.
        recall: the share of its images that are taken for it; NaN without one.
        f1: the harmonic mean of the two (van Rijsbergen, 1979); NaN without an image of either.
    """

    name: str
    images: int
    precision: float
    recall: float
    f1: float


def recognition(matrix: NDArray[np.int64], classes: Sequence[str]) -> list[Recognition]:
    """Compute precision, recall and F1 of each class.

    Args:
        matrix: counts ``[true class, predicted class]``.
        classes: the names of the classes.
    """
    right, true, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    # 0 / 0 is NaN.
    with np.errstate(invalid="ignore"):
        shares = right / predicted, right / true, 2 * right / (predicted + true)
    columns = (true, *shares)
    return list(map(Recognition, classes, *(column.tolist() for column in columns)))
