"""What a finished study found: the one object that every view of the whole study is made of."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fmnist.config.results import TrialResult
from fmnist.config.results import winner as pick_winner
from fmnist.config.study import StudyConfig
from fmnist.data.fashion_mnist import CLASS_NAMES, Dataset
from fmnist.reports.comparison import Comparison, compare
from fmnist.reports.confusion import confusion_matrix


class Outputs(NamedTuple):
    """What a network computes for each example of a split; on the CPU.

    Attributes:
        probabilities: the softmax of the logits.
        features: the inputs of the last layer.
    """

    probabilities: Float[Tensor, "examples classes"]
    features: Float[Tensor, "examples width"]


@dataclass(frozen=True)
class Findings:
    """What a finished study found.

    Attributes:
        config: the study.
        results: the result of every trial.
        dataset: the training images, and the test images that ``outputs`` is about.
        provenance: name -> value: the command, versions and machine of the results. The views
            leave out an entry without a value.
        storage: Optuna's storage URL; None for the database in the run's folder.
        outputs: the winner's outputs on the test set; None when they are not computed.
        sums: the SHA-256 of each trial's parameter file as it was written, by trial number.
        lost: the numbers of the trials whose parameter file is missing or damaged.
        classes: the names of the classes, in the order of the labels.
    """

    config: StudyConfig
    results: Sequence[TrialResult]
    dataset: Dataset
    provenance: Mapping[str, str]
    storage: str | None = None
    outputs: Outputs | None = None
    sums: Mapping[int, str] = field(default_factory=dict)
    lost: Collection[int] = ()
    classes: Sequence[str] = CLASS_NAMES

    @cached_property
    def winner(self) -> TrialResult | None:
        """The trial that stands for the best configuration; None when no trial is complete."""
        return pick_winner(self.results, self.config.metric)

    @cached_property
    def comparison(self) -> Comparison:
        """The configurations, compared with the best one."""
        images = self.config.validation_images(
            len(self.dataset.test.labels), len(self.dataset.train.labels)
        )
        return compare(self.config, self.results, images)

    @cached_property
    def confusion(self) -> NDArray[np.int64] | None:
        """The winner's confusion matrix on the test set, ``[true class, predicted class]``."""
        if self.winner is None or self.outputs is None:
            return None
        predicted = self.outputs.probabilities.argmax(dim=1)
        return confusion_matrix(self.dataset.test.labels, predicted, len(self.classes))
