"""Scales what a picture shows to the network's 28x28 pixels."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fmnist.inference.objects import SEEN

IMAGE_SIZE = 28
ANGLES = (0, 10, -10, 15, -15)
"""Degrees, counterclockwise, by which an object is turned to see in which way it is upright."""


def of_object(values: np.ndarray) -> UInt8[np.ndarray, "5 3 28 28"]:
    """Turn and scale an object; and scale it with a pixel of ground at its left, and at its right.

    A network that was trained on objects that are all in one place is sensitive to it: the mean of
    the three is right for 0.5 % more of the photographs (docs/measurement.md).
    """
    picture = Image.fromarray(values.astype(np.float32))
    small = picture.reduce(max(1, max(values.shape) // (4 * IMAGE_SIZE)))
    views = []
    for angle in ANGLES:
        turned = _turned(small, angle) if angle else values
        pixel = max(1, round(max(turned.shape) / IMAGE_SIZE))
        margins = ((0, 0), (pixel, 0), (0, pixel))
        views.append([_scaled(np.pad(turned, ((0, 0), margin))) for margin in margins])
    return np.array(views)


def _turned(picture: Image.Image, angle: float) -> np.ndarray:
    """Turn an object counterclockwise by an angle in degrees, and cut the empty border away."""
    turned = np.asarray(picture.rotate(angle, Image.Resampling.BILINEAR, expand=True))
    rows, columns = (np.flatnonzero((turned > SEEN).any(axis)) for axis in (1, 0))
    if not len(rows):
        return turned
    return turned[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _scaled(values: np.ndarray) -> UInt8[np.ndarray, "28 28"]:
    """Scale an object by its longer edge, with its middle in that of a square of zeros.

    One that has a whole number of pixels then is placed as in :func:`of_whole`.
    """
    side = max(values.shape)

    def margin(length: int) -> float:
        scaled = IMAGE_SIZE * length / side
        if abs(scaled - round(scaled)) < 0.04:
            return (IMAGE_SIZE - round(scaled) + 1) // 2 * side / IMAGE_SIZE
        return (side - length) / 2

    y, x = map(margin, values.shape)
    top, left = int(np.ceil(y)), int(np.ceil(x))
    padded = np.pad(values, ((top, top + 1), (left, left + 1))).astype(np.float32)
    box = (left - x, top - y, left - x + side, top - y + side)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    scaled = Image.fromarray(padded).resize(size, Image.Resampling.LANCZOS, box)
    return np.asarray(scaled).clip(0, 255).round().astype(np.uint8)


def of_whole(picture: Image.Image, ground: int) -> UInt8[np.ndarray, "28 28"]:
    """Scale a picture by its longer edge, and put it in the middle of a square."""
    scale = IMAGE_SIZE / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    scaled = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))
    square = np.full((IMAGE_SIZE, IMAGE_SIZE), ground, dtype=np.uint8)
    # An odd margin has its larger half left and on top, as in the data set.
    y, x = (IMAGE_SIZE - height + 1) // 2, (IMAGE_SIZE - width + 1) // 2
    square[y : y + height, x : x + width] = scaled.clip(0, 255).round()
    return square
