"""Random changes of training images: mirrored, moved, partly erased.

The functions are pure: the random numbers are arguments. Pixels that come from outside an image are
black, as the background of the images is.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fmnist.functional.kernels.slices import slices

Images = Float[Tensor, "batch channels height width"]

AREA = (0.02, 0.33)
"""The least and the largest share of an image that :func:`erase` covers."""

RATIO = (0.3, 1 / 0.3)
"""The least and the largest height of the erased rectangle, over its width."""


def flip(images: Images, noise: Float[Tensor, "batch 1"]) -> Images:
    """Mirror the images whose random number is below a half, left to right.

    Source: torchvision.transforms.v2.RandomHorizontalFlip. With numbers that move by a half from
    epoch to epoch, an example is mirrored in every other epoch: alternating flip, Jordan, 94% on
    CIFAR-10 in 3.29 Seconds on a Single GPU (2024), section 3.6.

    Args:
        images: the images.
        noise: uniform numbers in [0, 1).
    """
    return torch.where(noise[:, :, None, None] < 0.5, images.flip(3), images)


def shift(
    images: Images, noise: Float[Tensor, "batch 2"], most: Float[Tensor, ""], reach: int
) -> Images:
    """Move each image by up to ``most`` pixels along both axes; all whole moves are equally likely.

    Source: torchvision.transforms.v2.RandomCrop(28, padding=most).

    Args:
        images: the images.
        noise: uniform numbers in [0, 1), for the rows and for the columns.
        most: a whole number of pixels.
        reach: at least ``most``: how far the images are padded, the same for all lanes.
    """
    most = most.to(noise.dtype)
    twice = most + most
    # The product is below 2 * most + 1 but may be rounded to it.
    drawn = torch.minimum(torch.floor(noise * (twice + 1)), twice)
    rows, columns = (drawn + (reach - most)).long().unbind(1)
    channels, height, width = images.shape[1:]
    line = width + 2 * reach
    # A moved image is one slice of the padded one, with some pixels too many at the end of a line.
    padded = F.pad(images, (reach, reach, reach, reach + 1)).flatten(0, 1).flatten(1)
    starts = (rows * line + columns)[:, None].expand(-1, channels).flatten()
    moved = slices(padded, starts, height * line)
    return moved.view(len(images), channels, height, line)[..., :width]


def erase(images: Images, noise: Float[Tensor, "batch 5"], rate: Float[Tensor, ""]) -> Images:
    """Set a random rectangle of an image to black, with probability ``rate``.

    Source: Zhong et al., Random Erasing Data Augmentation (2020), algorithm 1, in the form of
    torchvision.transforms.v2.RandomErasing. A rectangle that is longer than the image is cut, where
    those draw again.

    Args:
        images: the images.
        noise: uniform numbers in [0, 1): whether to erase, the area, the ratio of the sides, the
            row, and the column.
        rate: the probability, from 0 to 1.
    """
    chance, area, ratio, row, column = noise.unbind(1)
    height, width = images.shape[2:]
    area = (AREA[0] + (AREA[1] - AREA[0]) * area) * (height * width)
    low, high = map(math.log, RATIO)
    ratio = torch.exp(low + (high - low) * ratio)
    erased = (chance < rate.to(noise.dtype))[:, None, None]
    for dim, size, place, length in (
        (1, height, row, torch.sqrt(area * ratio)),
        (2, width, column, torch.sqrt(area / ratio)),
    ):
        length = length.round().clamp(1, size)
        start = torch.minimum(torch.floor(place * (size - length + 1)), size - length)
        places = torch.arange(size, device=images.device, dtype=noise.dtype)
        covered = (places >= start[:, None]) & (places < (start + length)[:, None])
        erased = erased & covered.unsqueeze(3 - dim)
    return torch.where(erased[:, None], 0.0, images)
