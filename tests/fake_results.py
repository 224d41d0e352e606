"""Results that nobody trained, for the tests of what shows results."""

from __future__ import annotations

import itertools

import torch

from fmnist.config.results import EpochMetrics, TrialResult
from fmnist.data.fashion_mnist import Dataset
from fmnist.functional.types import Split
from fmnist.reports.findings import Findings

CLASS_NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
           "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")  # fmt: skip


def history(epochs, top=0.9):
    return tuple(EpochMetrics(1 / e, top - 0.3 / e, 1.1 / e, top - 0.2 / e)
                 for e in range(1, epochs + 1))  # fmt: skip


def results_of(study, fail=()):
    """Made-up results: the higher the number, the better, and some that failed."""
    results = []
    for number, values in enumerate(itertools.product(*study.grid.values())):
        point = dict(zip(study.grid, values, strict=True))
        if number in fail:
            bad = TrialResult(number, point, "FAIL", history(1), reason="the loss was | NaN")
            results.append(bad)
        else:
            past = history(study.epochs, 0.9 + number / 10_000)
            results.append(TrialResult(number, point, "COMPLETE", past, 0.25, 0.875, 61.0))
    return results


def no_images(count=0):
    """A split of so many labels; the images are not there."""
    return Split(
        torch.empty(0, 1, 28, 28, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64)
    )


def findings(study, results, facts, test=None, **more):
    """What a study of 60,000 training images found; no test images by default."""
    return Findings(
        study, results, Dataset(no_images(60_000), test or no_images(), ""), facts, **more
    )
