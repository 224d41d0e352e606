"""Finds the object in a photograph: where it is, and how it differs from its ground.

The ground is a smooth surface, such as paper or a wall in uneven light. It is fitted to the border
of the picture. What differs from it and has a sharp outline is the object; what differs softly is a
shadow. Everything is decided on a small, smoothed copy, so that noise and the blocks of a JPEG do
not matter.
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

SHARP, SHARP_NOISES = 5.0, 1.5
"""The least difference from a further smoothed copy along a sharp outline, in the same units.

It has the object's sign on the object's side of an edge, and is zero at the edge itself; a soft
change, as at the rim of a shadow, has hardly any.

Source: Marr and Hildreth, Theory of edge detection (1980).
"""

SMOOTHED = 1.6
"""The deviation of that smoothing, in pixels."""

GAP = 8
"""Gaps in the outline of up to twice as many pixels are closed."""

LEAST_AREA = 0.004
"""The smallest object, as a share of the picture."""

OTHERS = 0.5
"""With other parts of this share of the largest one in all, a picture has no single object."""

SHADE = 20.0
"""The least darkness, in grey values, of a shadow that is told from the edge of an object."""

QUIET = 0.75
"""The noise of an even ground, at most."""

ROUGH = 10.0
"""The noise of a ground that is no smooth surface, at least."""

SEEN = 13.0
"""The least grey value of a pixel of an object."""

FAINT = 0.1
"""The edge of the object: this share of its contrast."""

Grey = Float[np.ndarray, "height width"]
Mask = Bool[np.ndarray, "height width"]

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of a picture, as shares of its width and height."""


class Found(NamedTuple):
    """An object, cut out.

    Attributes:
        values: how much it differs from its ground, 0 to 255, float ``[height, width]``.
        is_dark: whether it is darker than the ground.
        box: where it is.
    """

    values: Grey
    is_dark: bool
    box: Box


def find(picture: Image.Image) -> Found | None:
    """Find the one object of a picture.

    Args:
        picture: a picture of mode L.

    Returns:
        The object; None if none stands out from its ground, or several do.
    """
    original, times = picture.size, max(1, -(-max(picture.size) // WORKING))
    picture = picture.reduce(times)
    factor = min(1.0, SMALL / max(picture.size))
    width, height = (max(1, round(side * factor)) for side in picture.size)
    resized = picture.resize((width, height), Image.Resampling.BOX)
    small = _blurred(np.asarray(resized, dtype=np.float64), 0.8)
    mask, shadow, noise = _object(small)
    if mask is None:
        return None
    near = _grown(mask)
    lit, beside = _filled(small, ~near & ~shadow), _filled(small, ~near)
    near = mask | (near & (np.abs(lit - beside) < SHADE))  # a shadow around is left away
    rows, columns = (np.flatnonzero(near.any(axis)) for axis in (1, 0))
    y, x = picture.height / height, picture.width / width
    place = (
        slice(int(rows[0] * y), int(np.ceil((rows[-1] + 1) * y))),
        slice(int(columns[0] * x), int(np.ceil((columns[-1] + 1) * x))),
    )
    maps = (
        lit,
        beside,
        _filled(small, mask),
        near.astype(np.float64),
    )
    lit, beside, object_, share = (_enlarged(a, picture.size)[place] for a in maps)
    pixels = np.asarray(picture, dtype=np.float64)[place]
    # A shadow falls on the ground and not on the object; pixels of the edge show both, and those of
    # a gap, such as that between two legs, the ground.
    contrast = beside - object_
    mixed = (beside - pixels) * np.sign(contrast) / np.maximum(np.abs(contrast), CONTRAST)
    covered = mixed.clip(0, 1)
    ground = covered * lit + (1 - covered) * beside
    is_dark = bool(((ground - pixels) * share).sum() > 0)
    # An object takes away a share of the light; one in light on a dark ground adds to it.
    part = (ground - pixels) / np.maximum(ground, 1.0)
    if not is_dark:
        part = (pixels - ground) / np.maximum(255.0 - ground, 1.0)
    values = 255 * part.clip(0, 1) * (2 * share).clip(0, 1)
    # Without noise, the edge of the object is that of its faintest pixel.
    clear = _clear(values, share > 0.5, noise > QUIET)
    y0, x0 = (whole.start + part.start for whole, part in zip(place, clear, strict=True))
    values = values[clear]
    edges = (x0, y0, x0 + values.shape[1], y0 + values.shape[0])
    left, top, right, bottom = (
        min(1.0, edge * times / side) for edge, side in zip(edges, original * 2, strict=True)
    )
    return Found(values, is_dark, (left, top, right, bottom))


def _object(small: Grey) -> tuple[Mask | None, Mask, float]:
    """Return the single object, None if there is not one; the shadows; and the noise."""
    border = np.zeros(small.shape, dtype=bool)
    edge = max(1, round(0.04 * min(small.shape)))
    border[:edge] = border[-edge:] = border[:, :edge] = border[:, -edge:] = True
    ground, noise = _surface(small, border)
    differs = np.abs(small - ground) > max(CONTRAST, NOISES * noise)
    towards = np.sign(ground - small) * (_blurred(small, SMOOTHED) - small)
    sharp = differs & (towards > max(SHARP, SHARP_NOISES * noise))
    outside = _reached(~_grown(sharp, GAP), border)
    for _ in range(GAP + 1):
        outside |= _grown(outside) & ~sharp
    inside, shadow = differs & ~outside, differs & outside
    if noise > ROUGH:
        return None, shadow, noise
    labels = _labels(inside)
    names, sizes = np.unique(labels[inside], return_counts=True)
    if not len(sizes) or sizes.max() < LEAST_AREA * small.size:
        return None, shadow, noise
    if sizes.sum() > (1 + OTHERS) * sizes.max():
        return None, shadow, noise
    largest = labels == names[sizes.argmax()]
    return ~_reached(~largest, border & ~largest), shadow, noise  # with its holes


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


def _clear(values: Grey, inside: Mask, noisy: bool) -> tuple[slice, slice]:
    """Return the rows and columns without those in which the object is too faint to be seen."""
    if not inside.any():
        return slice(0, None), slice(0, None)
    smooth = _blurred(values, max(values.shape) / 112) if noisy else values
    clear = smooth > max(SEEN, FAINT * float(np.percentile(values[inside], 90)))
    rows, columns = (np.flatnonzero(clear.any(axis)) for axis in (1, 0))
    if not len(rows):
        return slice(0, None), slice(0, None)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


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


def _grown(mask: Mask, times: int = 1) -> Mask:
    """Add the pixels above, below, left and right, so many times."""
    for _ in range(times):
        grown = mask.copy()
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        grown[:, 1:] |= mask[:, :-1]
        grown[:, :-1] |= mask[:, 1:]
        mask = grown
    return mask


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
