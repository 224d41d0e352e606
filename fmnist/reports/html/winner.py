"""The winner on the test set, for ``report.html``: confusion matrix, mistakes, calibration."""

from __future__ import annotations

import base64
import io
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fmnist.reports import words
from fmnist.reports.confusion import integers, most_confused, recognition
from fmnist.reports.findings import Findings
from fmnist.reports.html.curves import ticks

BINS = 10
PAIRS = 6
EXAMPLES = 8


class Calibration(NamedTuple):
    """Confidence and accuracy in bins of equal width.

    Attributes:
        counts: the examples in each bin, int64 ``[bins]``.
        confidence: the mean confidence in each bin, float64 ``[bins]``; NaN in an empty bin.
        accuracy: the accuracy in each bin, float64 ``[bins]``; NaN in an empty bin.
        error: the expected calibration error.
    """

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    error: float


def calibration(probabilities: Any, labels: Any, bins: int = BINS) -> Calibration:
    """Compare a classifier's confidence, its highest probability, with its accuracy.

    The expected calibration error is the mean over examples of the distance between accuracy and
    mean confidence of their bin (Guo et al., 2017). As in that paper, a bin includes its upper
    bound and not its lower one.

    Args:
        probabilities: ``[examples, classes]``.
        labels: true classes, integers ``[examples]``.
        bins: the number of bins.

    Raises:
        ValueError: There is no example.
    """
    probabilities, labels = np.asarray(probabilities, float), np.asarray(labels).ravel()
    if not len(labels):
        raise ValueError("calibration needs at least one example")
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    place = np.digitize(sure, edges, right=True)
    counts = np.bincount(place, minlength=bins).astype(np.int64)
    # 0 / 0 is NaN in an empty bin.
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, sure, minlength=bins) / counts
        accuracy = np.bincount(place, right.astype(float), minlength=bins) / counts
    gaps = np.nan_to_num(np.abs(accuracy - confidence))
    return Calibration(counts, confidence, accuracy, float(gaps @ counts / counts.sum()))


def calibration_sentence(found: Calibration, who: str) -> str:
    """Say how confident a network is, how often it is right, and how far the two differ."""
    total = found.counts.sum()
    sure = float(np.nansum(found.confidence * found.counts) / total)
    right = float(np.nansum(found.accuracy * found.counts) / total)
    text = (
        f"On average {who} is {sure:.1%} sure of its class, and right on {right:.1%} of the "
        f"test images. The expected calibration error in {len(found.counts)} bins is "
        f"{words.decimals(found.error)} (Guo et al., 2017)"
    )
    if abs(sure - right) < 0.01:
        return f"{text}: its confidence is about right on the whole."
    return f"{text}: it is {'overconfident' if sure > right else 'underconfident'}."


def winner_parts(findings: Findings) -> dict[str, Any]:
    """What the template shows of the winner on the test set.

    Returns:
        ``confusion``, ``recognition``, ``pairs``, ``calibration`` and others by name; none without
        a winner, its outputs or any test image.

    Raises:
        ValueError: The winner's outputs and the test set differ in their number of examples.
    """
    test, outputs, classes = findings.dataset.test, findings.outputs, findings.classes
    if findings.winner is None or outputs is None or not len(test.labels):
        return {}
    labels = integers(test.labels.cpu())
    chances = outputs.probabilities.detach().double().cpu().numpy()
    if len(chances) != len(labels):
        raise ValueError(f"{len(labels)} labels, but {len(chances)} rows of probabilities")
    matrix = findings.confusion
    assert matrix is not None
    totals = matrix.sum(axis=1, keepdims=True)
    shares = matrix / np.maximum(totals, 1)
    found, who = calibration(chances, labels), words.best_name(findings.config)
    pairs, images, predicted = [], test.images.cpu().numpy(), chances.argmax(axis=1)
    for true, other, count in most_confused(matrix, PAIRS):
        chosen = np.flatnonzero((labels == true) & (predicted == other))[:EXAMPLES]
        pairs.append(
            {
                "true": classes[true],
                "predicted": classes[other],
                "count": words.part(count, matrix[true].sum()),
                "examples": [(png(images[i, 0]), i, f"{chances[i, other]:.0%}") for i in chosen],
            }
        )
    return {
        "sentences": words.confusion_sentences(matrix, classes, who),
        "classes": classes,
        "confusion": zip(classes, matrix.tolist(), shares.tolist(), totals.flat, strict=True),
        "recognition": recognition(matrix, classes),
        "pairs": pairs,
        "calibration": {
            "sentence": calibration_sentence(found, who),
            "bars": [*zip(*(values.tolist() for values in found[:3]), strict=True)],
            "axis": ticks((0.0, 1.0), at_most=5),
        },
    }


def png(pixels: NDArray[np.uint8]) -> str:
    """Encode grey pixels, uint8 ``[height, width]``, as the data URI of a PNG file."""
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode("ascii")
