"""Measures of the probabilities of several models, and the choice of models to average."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

BINS = 15
"""Bins of confidence in :func:`calibration_error`, as in its source."""

LEAST = 1e-12
"""The least probability that :func:`measures` takes for possible, so that no loss is infinite."""


class Measures(NamedTuple):
    """How good probabilities are.

    Attributes:
        accuracy: share of examples whose likeliest class is right.
        loss: mean negative log-likelihood of the right class, in nats.
        calibration_error: see :func:`calibration_error`.
    """

    accuracy: float
    loss: float
    calibration_error: float


def measures(
    probabilities: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"]
) -> Measures:
    """Measure probabilities against the right classes.

    Args:
        probabilities: of each class; at least one example.
        labels: the right classes.

    Returns:
        The measures.
    """
    right = (probabilities.argmax(1) == labels).double().mean().item()
    return Measures(right, _loss(probabilities, labels), calibration_error(probabilities, labels))


def _loss(probabilities: Tensor, labels: Tensor) -> float:
    chosen = probabilities.gather(1, labels[:, None]).clamp(min=LEAST)
    return -chosen.double().log().mean().item()


def calibration_error(
    probabilities: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"]
) -> float:
    """Return the expected calibration error: how far confidence is from accuracy, on average.

    Examples are put into :data:`BINS` bins of equal width by the probability of the likeliest
    class. The error is the mean over the examples of the difference between the mean of this
    probability and the accuracy in their bin.
    Source: Guo et al., On Calibration of Modern Neural Networks (2017), equation 3.

    Args:
        probabilities: of each class.
        labels: the right classes.
    """
    confidence, predicted = probabilities.double().max(1)
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1  # a bin includes its upper end
    gaps = torch.zeros(BINS, dtype=torch.float64)
    gaps = gaps.index_add(0, bins, confidence - (predicted == labels).double())
    return gaps.abs().sum().item() / len(labels)


def disagreement(members: Float[Tensor, "members examples classes"]) -> float:
    """Return the share of examples on which two members predict different classes.

    It is the mean over all pairs of members; 0 for a single one.
    Source: Fort et al., Deep Ensembles: A Loss Landscape Perspective (2019), disagreement of
    predictions.

    Args:
        members: the probabilities of each member.
    """
    count, predicted = len(members), members.argmax(2)
    if count < 2:
        return 0.0
    differ = [
        (predicted[i] != predicted[j]).double().mean().item()
        for i in range(count)
        for j in range(i)
    ]
    return sum(differ) / len(differ)


def greedy(
    members: Float[Tensor, "members examples classes"], labels: Int[Tensor, " examples"], most: int
) -> list[int]:
    """Choose models to average one by one, each the one with which the mean has the least loss.

    A model may be chosen several times. Of all beginnings of the choice, the shortest with the
    least loss is returned.
    Source: Caruana et al., Ensemble Selection from Libraries of Models (2004), section 2,
    selection with replacement.

    Args:
        members: the probabilities of the models on examples that they were not trained on.
        labels: the right classes.
        most: how many are chosen at most.

    Returns:
        The positions of the chosen models, in the order of the choice.
    """
    chosen: list[int] = []
    total, losses = torch.zeros_like(members[0]), []
    for count in range(1, most + 1):
        tried = [_loss((total + own) / count, labels) for own in members]
        chosen.append(min(range(len(members)), key=tried.__getitem__))
        total = total + members[chosen[-1]]
        losses.append(tried[chosen[-1]])
    return chosen[: losses.index(min(losses)) + 1]


def growing(
    members: Float[Tensor, "members examples classes"],
    labels: Int[Tensor, " examples"],
    chosen: Sequence[int],
) -> list[Measures]:
    """Measure the mean of the first model, of the first two, and so on.

    Args:
        members: the probabilities of the models.
        labels: the right classes.
        chosen: the positions of the models in the order in which they are added.
    """
    total, found = torch.zeros_like(members[0]), []
    for count, place in enumerate(chosen, 1):
        total = total + members[place]
        found.append(measures(total / count, labels))
    return found
