"""Finds the object in a photograph: where it is, and how it differs from its ground.

The ground is a smooth surface, such as paper or a wall in uneven light. It is fitted to the border
of the picture. What differs from it is the object, but for soft changes that begin at the border,
such as a shadow. Everything is decided on a small, smoothed copy, so that noise and the blocks of
a JPEG do not matter.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

SMALL = 140
"""Pixels of the longer side of the picture in which the object is looked for."""

WORKING = 4 * SMALL
"""Pixels of the longer side, at most, of the picture from which the object is cut."""

CONTRAST, NOISES = 10.0, 4.0
"""The least difference of an object from the ground: grey values, and deviations of the noise."""

SOFT, SOFT_NOISES = 9.0, 3.0
"""The largest step from a pixel to the next one in a shadow, in the same units."""

LEAST_AREA = 0.004
"""The smallest object, as a share of the picture."""

OTHERS = 1.0
"""With other parts of this share of the largest one in all, a picture has no single object."""

QUIET = 0.75
"""The noise of an even ground, at most."""

FAINT = 0.06
"""The edge of the object: this share of its contrast."""

Grey = Float[np.ndarray, "height width"]
Mask = Bool[np.ndarray, "height width"]


class Found(NamedTuple):
    """An object, cut out.

    Attributes:
        values: how much it differs from its ground, 0 to 255, float ``[height, width]``.
        is_dark: whether it is darker than the ground.
    """

    values: Grey
    is_dark: bool


def find(picture: Image.Image) -> Found | None:
    """Find the one object of a picture.

    Args:
        picture: a picture of mode L.

    Returns:
        The object; None if none stands out from its ground, or several do.
    """
    picture = picture.reduce(max(1, -(-max(picture.size) // WORKING)))
    factor = min(1.0, SMALL / max(picture.size))
    width, height = (max(1, round(side * factor)) for side in picture.size)
    resized = picture.resize((width, height), Image.Resampling.BOX)
    small = _blurred(np.asarray(resized, dtype=np.float64), 0.8)
    mask, noise = _object(small)
    if mask is None:
        return None
    near = _grown(mask)
    light = _filled(small, ~near)
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    y, x = picture.height / height, picture.width / width
    place = (
        slice(int(rows[0] * y), int(np.ceil((rows[-1] + 1) * y))),
        slice(int(columns[0] * x), int(np.ceil((columns[-1] + 1) * x))),
    )
    ground, share = (_enlarged(a, picture.size)[place] for a in (light, near.astype(np.float64)))
    pixels = np.asarray(picture, dtype=np.float64)[place]
    is_dark = bool(((ground - pixels) * share).sum() > 0)
    # An object takes away a share of the light; one in light on a dark ground adds to it.
    part = (ground - pixels) / np.maximum(ground, 1.0)
    if not is_dark:
        part = (pixels - ground) / np.maximum(255.0 - ground, 1.0)
    values = 255 * part.clip(0, 1) * (2 * share).clip(0, 1)
    # Without noise, the edge of the object is that of its faintest pixel.
    return Found(_cut(values, share > 0.5, noise > QUIET), is_dark)


def _object(small: Grey) -> tuple[Mask | None, float]:
    """Return the pixels of the single object, None if there is not one, and the noise."""
    border = np.zeros(small.shape, dtype=bool)
    edge = max(1, round(0.04 * min(small.shape)))
    border[:edge] = border[-edge:] = border[:, :edge] = border[:, -edge:] = True
    ground, noise = _surface(small, border)
    differs = np.abs(small - ground) > max(CONTRAST, NOISES * noise)
    soft = _largest_step(small) < max(SOFT, SOFT_NOISES * noise)
    inside = differs & ~_reached(soft | ~differs, border)
    labels = _labels(inside)
    names, sizes = np.unique(labels[inside], return_counts=True)
    if not len(sizes) or sizes.max() < LEAST_AREA * small.size:
        return None, noise
    if sizes.sum() > (1 + OTHERS) * sizes.max():
        return None, noise
    largest = labels == names[sizes.argmax()]
    return ~_reached(~largest, border & ~largest), noise  # with its holes


def _surface(values: Grey, known: Mask) -> tuple[Grey, float]:
    """Fit a quadratic surface to the known pixels; return it, and the deviation of the noise.

    Outliers, such as an object that touches the border, have little weight.

    Source: iteratively reweighted least squares with Cauchy's weights, squared; Holland and
    Welsch, Robust regression using iteratively reweighted least-squares (1977).
    """
    height, width = values.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1)
    inputs, targets = terms[known], values[known]
    weights, noise = np.ones(len(targets)), 0.7
    for _ in range(6):
        fitted = np.linalg.lstsq(inputs * weights[:, None], targets * weights, rcond=None)[0]
        errors = np.abs(targets - inputs @ fitted)
        noise = max(1.4826 * float(np.median(errors)), 0.7)
        weights = 1 / (1 + (errors / (3 * noise)) ** 2)
    return terms @ fitted, noise


def _largest_step(values: Grey) -> Grey:
    """Return the largest difference of each pixel from the four around it."""
    padded = np.pad(values, 1, mode="edge")
    beside = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return np.max([np.abs(values - other) for other in beside], axis=0)


def _cut(values: Grey, inside: Mask, noisy: bool) -> Grey:
    """Cut away rows and columns in which the object is too faint to be seen."""
    if not inside.any():
        return values
    smooth = _blurred(values, max(values.shape) / 112) if noisy else values
    clear = smooth > max(13.0, FAINT * float(np.percentile(values[inside], 90)))
    rows, columns = (np.flatnonzero(clear.any(axis)) for axis in (1, 0))
    if not len(rows):
        return values
    return values[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _blurred(values: Grey, sigma: float) -> Grey:
    """Smooth by a Gaussian of this deviation in pixels, of which the border cuts off a part."""
    rows, columns = (_gaussian(length, sigma) for length in values.shape)
    return rows @ values @ columns.T


def _gaussian(length: int, sigma: float) -> Grey:
    place = np.arange(length)
    weights = np.exp(-0.5 * ((place[:, None] - place) / sigma) ** 2)
    return weights / weights.sum(axis=1, keepdims=True)


def _filled(values: Grey, known: Mask) -> Grey:
    """Fill unknown pixels by the mean of the known ones around, the nearest if there are some.

    Source: Knutsson and Westin, Normalized and differential convolution (1993), on five scales.
    """
    if not known.any():
        return values
    filled, left = np.zeros_like(values), np.ones_like(values)
    for sigma in (1.5, 4.0, 10.0, 25.0, 60.0):
        weight = _blurred(known.astype(np.float64), sigma)
        mean = _blurred(np.where(known, values, 0.0), sigma) / np.maximum(weight, 1e-9)
        share = left * (20 * weight).clip(0, 1)
        filled, left = filled + share * mean, left - share
    return filled + left * values[known].mean()


def _enlarged(values: Grey, size: tuple[int, int]) -> Grey:
    picture = Image.fromarray(values.astype(np.float32))
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR), dtype=np.float64)


def _grown(mask: Mask) -> Mask:
    """Add the pixels above, below, left and right."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def _reached(passable: Mask, start: Mask) -> Mask:
    """Return the passable pixels that are connected with the start."""
    reached, size = start & passable, -1
    while size != int(reached.sum()):
        size = int(reached.sum())
        reached = _grown(reached) & passable
    return reached


def _labels(mask: Mask) -> np.ndarray:
    """Return a number for each pixel of the mask, the same within a connected part; else 0."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        beside = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
        most = np.where(mask, np.max([labels, *beside], axis=0), 0)
        # A pixel's number is the place of another pixel of its part, which may know a larger one.
        found = np.where(mask, np.concatenate([[0], most.ravel()])[most], 0)
        if (found == labels).all():
            return found
        labels = found
