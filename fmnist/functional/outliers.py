"""Tells inputs that look like nothing a network was trained on, by the distance of their features.

Source: Lee, Lee, Lee and Shin, A simple unified framework for detecting out-of-distribution samples
and adversarial attacks (2018), section 2.1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

UNUSUAL = 0.005
"""Inputs of a smaller share look like nothing that the network was trained on."""

RIDGE = 1e-3
"""Added to each variance, as a share of their mean: features may not vary at all."""


class Familiar(NamedTuple):
    """The features of what a network knows.

    Attributes:
        means: the mean of each class.
        whitening: a matrix W such that features, less the mean of their class, times W have the
            covariance 1.
        distances: those of images that the network was not trained on, ascending.
    """

    means: Float[Tensor, "classes width"]
    whitening: Float[Tensor, "width width"]
    distances: Float[Tensor, " calibration"]


def familiar(
    features: Float[Tensor, "examples width"],
    labels: Int[Tensor, " examples"],
    calibration: Float[Tensor, "calibration width"],
) -> Familiar:
    """Describe what a network knows.

    Args:
        features: the inputs of the last layer for images of the training set.
        labels: their classes.
        calibration: the features of images that the network was not trained on.

    Returns:
        float32. A class without examples has no mean. Features that are not finite, or too large
        for float32, give numbers that are not finite.
    """
    x = features.double()
    kinds, of = labels.unique(return_inverse=True)
    means = torch.stack([x[of == kind].mean(dim=0) for kind in range(len(kinds))])
    centred = x - means[of]
    covariance = centred.T @ centred / len(x)
    ridge = RIDGE * covariance.diagonal().mean() + torch.finfo(torch.float32).tiny
    regular = covariance + ridge * torch.eye(len(covariance), dtype=x.dtype)
    factor, _ = torch.linalg.cholesky_ex(regular)
    identity = torch.eye(len(factor), dtype=x.dtype)
    whitening = torch.linalg.solve_triangular(factor, identity, upper=False).T
    known = Familiar(means.float(), whitening.float(), torch.empty(0))
    return known._replace(distances=distances(known, calibration).sort().values)


def distances(
    known: Familiar, features: Float[Tensor, "examples width"]
) -> Float[Tensor, " examples"]:
    """Return the distances of Mahalanobis to the nearest class; float32.

    Args:
        known: what the network knows.
        features: the inputs of the last layer.
    """
    # The differences come first: means and features may be large beside them.
    whitening = known.whitening.double()
    of_classes = [
        ((features.double() - mean) @ whitening).square().sum(dim=1)
        for mean in known.means.double()
    ]
    return torch.stack(of_classes).amin(dim=0).sqrt().float()


def shares(
    known: Familiar, features: Float[Tensor, "examples width"]
) -> Float[Tensor, " examples"]:
    """Return the share of known images that are at least as far from all classes.

    Each input is counted among the known images: with n of them, the least share is 1 / (n + 1).
    So an input of the same kind has a share of at most p with a probability of at most p.

    Source: Vovk, Gammerman and Shafer, Algorithmic learning in a random world (2005), p-values.

    Args:
        known: what the network knows.
        features: the inputs of the last layer.

    Returns:
        float64, above 0 to 1.
    """
    nearer = torch.searchsorted(known.distances, distances(known, features))
    count = len(known.distances)
    return (count - nearer + 1).double() / (count + 1)


def less_confident(
    probabilities: Float[Tensor, "examples classes"], shares: Float[Tensor, " examples"]
) -> Float[Tensor, "examples classes"]:
    """Mix the probabilities of unusual inputs with equal ones.

    Those of an input of share p < :data:`UNUSUAL` have the weight p / :data:`UNUSUAL`; all others
    stay as they are.

    Args:
        probabilities: what the network says.
        shares: those of :func:`shares`.
    """
    weight = (shares / UNUSUAL).clamp(max=1)[:, None]
    mixed = weight * probabilities + (1 - weight) / probabilities.shape[1]
    return torch.where(weight < 1, mixed, probabilities)
