"""Tells images that look like nothing a network was trained on.

An image is looked at in several ways: its outlines, its areas, and the features that the network
computes of it. In each it is compared with prototypes of what the network was trained on, and its
distance from the nearest with the distances of images that are known to be of the same kind.

Source: Sun, Ming, Zhu and Li, Out-of-distribution detection with deep nearest neighbors (2022),
with prototypes in place of all training images. The first two looks do not depend on the network.
They are square roots, so that an angle between them is Hellinger's distance, in which a few strong
edges do not hide many weak ones: Arandjelovic and Zisserman, Three things everyone should know to
improve object retrieval (2012).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

UNUSUAL = 0.01
"""Images of a smaller share look like nothing that the network was trained on."""

PROTOTYPES = 30
"""Of each class, at most."""

ROUNDS = 10
"""Of k-means."""

Look = Float[Tensor, "examples width"]


class Familiar(NamedTuple):
    """What a network knows, in each of several looks.

    Attributes:
        prototypes: of length one; for each look ``[prototypes, width]``.
        distances: of images that the network was not trained on, ascending in each look.
    """

    prototypes: tuple[Float[Tensor, "prototypes width"], ...]
    distances: Float[Tensor, "looks calibration"]


def outlines(images: Float[Tensor, "examples 1 height width"]) -> Look:
    """Return how much neighbouring pixels differ, across and down: means of 3x3 places of roots."""
    across = images.diff(dim=3).abs()[:, :, :-1]
    down = images.diff(dim=2).abs()[:, :, :, :-1]
    return avg_pool2d(torch.cat([across, down], dim=1).sqrt(), 3).flatten(1)


def areas(images: Float[Tensor, "examples 1 height width"]) -> Look:
    """Return where an image is how bright: the roots of the means of 4x4 pixels."""
    return avg_pool2d(images, 4).sqrt().flatten(1)


def familiar(
    looks: Sequence[Look], labels: Int[Tensor, " examples"], calibration: Sequence[Look]
) -> Familiar:
    """Describe what a network knows.

    Args:
        looks: those of images of the training set.
        labels: their classes.
        calibration: the looks of images that the network was not trained on.

    Returns:
        float32. Looks that are not finite give numbers that are not finite.
    """
    kinds = labels.unique()
    prototypes = tuple(
        torch.cat([_prototypes(look.float()[labels == kind]) for kind in kinds]) for look in looks
    )
    return Familiar(prototypes, distances(prototypes, calibration).sort(dim=1).values)


def _prototypes(look: Look) -> Float[Tensor, "prototypes width"]:
    """Group examples of one class by their direction, and return the mean of each group.

    Source: Dhillon and Modha, Concept decompositions for large sparse text data using clustering
    (2001), spherical k-means.
    """
    count = min(PROTOTYPES, len(look))
    directions = normalize(look)
    means = directions[torch.arange(count, device=look.device) * len(look) // count]
    for _ in range(ROUNDS):
        nearest = (directions @ means.T).argmax(dim=1)
        means = normalize(torch.zeros_like(means).index_add(0, nearest, directions))
    return means


def distances(
    prototypes: Sequence[Float[Tensor, "prototypes width"]], looks: Sequence[Look]
) -> Float[Tensor, "looks examples"]:
    """Return one less the cosine of the angle to the nearest prototype, in each look.

    Args:
        prototypes: as in :class:`Familiar`.
        looks: the looks of the images.
    """
    nearest = [
        (normalize(look.float()) @ known.T).amax(dim=1)
        for known, look in zip(prototypes, looks, strict=True)
    ]
    return 1 - torch.stack(nearest)


def remoteness(
    known: Familiar, distances: Float[Tensor, "looks examples"]
) -> Float[Tensor, " examples"]:
    """Return the sum over the looks of distances in units of the known images' median.

    Args:
        known: what the network knows.
        distances: those of :func:`distances`.
    """
    median = known.distances.median(dim=1, keepdim=True).values.clamp(min=1e-6)
    return (distances / median).sum(dim=0)


def shares(
    known: Familiar, distances: Float[Tensor, "looks examples"]
) -> Float[Tensor, " examples"]:
    """Return the share of known images that are at least as far away.

    In each look, an image is counted among the known ones: with n of them, the least share is
    1 / (n + 1). The smallest of the looks is multiplied by their number, as one of several is
    small more often. So an image of the same kind has a share of at most p with a probability of
    at most p.

    Source: Vovk, Gammerman and Shafer, Algorithmic learning in a random world (2005), p-values;
    Bonferroni's inequality.

    Args:
        known: what the network knows.
        distances: those of :func:`distances`.

    Returns:
        float64, above 0 to 1.
    """
    count = known.distances.shape[1]
    nearer = torch.searchsorted(known.distances, distances.contiguous())
    each = (count - nearer + 1).double() / (count + 1)
    return (len(each) * each.amin(dim=0)).clamp(max=1)


def weights(shares: Float[Tensor, " examples"]) -> Float[Tensor, " examples"]:
    """Return how much to trust what a network says: p / :data:`UNUSUAL` of a share p, at most 1."""
    return (shares / UNUSUAL).clamp(max=1)


def less_confident(
    probabilities: Float[Tensor, "examples classes"], weights: Float[Tensor, " examples"]
) -> Float[Tensor, "examples classes"]:
    """Mix probabilities with equal ones; those of weight 1 stay as they are.

    Args:
        probabilities: what the network says.
        weights: above 0 to 1.
    """
    weight = weights[:, None]
    mixed = weight * probabilities + (1 - weight) / probabilities.shape[1]
    return torch.where(weight < 1, mixed, probabilities)
