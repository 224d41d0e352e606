"""Turns what is to be predicted upright, and states how probable each class is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from torch import Tensor

    from fmnist.inference.objects import Box
    from fmnist.inference.thumbnails import Thumbnail
    from fmnist.inference.trained import TrainedModel

TURNING = 0.4
"""What a degree of turning costs, in units of :func:`fmnist.functional.outliers.remoteness`."""

WHOLE = 0.5
"""The weight of what the network says of a picture in which no single object was found.

Garments that fill the picture are recognised like others; on patterned ground, hardly ever.
"""


class Item(NamedTuple):
    """An image to predict.

    Attributes:
        name: its name in the table.
        about: its entries in the JSON document; for a test image, also its label.
        views: grey values 0-255, a light object on dark; an object that was cut out is turned by
            several angles, and moved a little after each, until :func:`turn_upright`.
        original: the picture before, if it is to be shown.
        box: what was cut out of it.
    """

    name: str
    about: dict[str, Any]
    views: UInt8[Tensor, "angles moves 28 28"]
    original: Thumbnail | None = None
    box: Box | None = None


def turn_upright(run: Path, items: Sequence[Item]) -> list[Item]:
    """Keep of each item the angle at which it is nearest to what the winner was trained on.

    Args:
        run: the folder of the run. With one of an earlier version, or the file of an ensemble,
            nothing is turned.
        items: what is to be predicted. What was found is added to ``about``.

    Returns:
        The items, with one angle each.

    Raises:
        UserError: A file of the winner is damaged.
    """
    import torch

    from fmnist.functional import outliers
    from fmnist.inference import trained
    from fmnist.inference.views import ANGLES

    first = [item.views[:, 0] for item in items]
    known = items and run.is_dir()
    near = trained.familiarity(run, torch.cat(first)[:, None]) if known else None
    turned, begin = [], 0
    for item in items:
        chosen = 0
        if near is not None:
            own = slice(begin, begin + len(item.views))
            effort = TURNING * torch.tensor(ANGLES[: len(item.views)]).abs()
            chosen = int((near.remoteness[own] + effort).argmin())
            share = near.shares[own][chosen].item()
            item.about.update(share_as_far=share, unlike_training=share < outliers.UNUSUAL)
            begin = own.stop
        if item.about.get("cut") == "object":
            item.about["turned"] = ANGLES[chosen]
        turned.append(item._replace(views=item.views[chosen : chosen + 1]))
    return turned


def stated(trials: Sequence[TrainedModel], items: Sequence[Item]) -> list[list[float]]:
    """Compute the probability of each class, nearer to equal ones for what is to be doubted.

    Args:
        trials: the models, whose mean it is.
        items: those of :func:`turn_upright`. What the models say is added to ``about``.

    Returns:
        A row for each item.

    Raises:
        UserError: A trial's parameters cannot be used.
    """
    import torch

    from fmnist.functional import outliers
    from fmnist.inference import trained

    if not items:
        return []
    views = [item.views.flatten(0, 1) for item in items]
    of_views = trained.probabilities(trials, torch.cat(views)[:, None]).split([*map(len, views)])
    said = torch.stack([rows.mean(dim=0) for rows in of_views])
    weights = torch.tensor([WHOLE if item.about.get("cut") == "whole" else 1.0 for item in items])
    shares = torch.tensor([item.about.get("share_as_far", 1.0) for item in items])
    for item, row in zip(items, said.tolist(), strict=True):
        item.about["raw_probabilities"] = row
    return outliers.less_confident(said, weights * outliers.weights(shares)).tolist()
