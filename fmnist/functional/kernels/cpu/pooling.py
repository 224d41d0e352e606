"""Batch norm, ReLU and 2x2 max pooling of one block of images, and their gradients, by Numba.

Blocks are as in tiles.py: ``[channels, height, width, WIDTH]``, flat.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from fmnist.functional.kernels.cpu.simd import (
    WIDTH,
    fma,
    load,
    load_bytes,
    splat,
    store,
    store_bytes,
    total,
    where,
)

DEAD = 4  # in `which`: the ReLU let nothing through; 0-3 is the place in the square

_compiled: Any = njit(cache=True, nogil=True)


@_compiled
def valid_examples(block, examples):
    """One for each example in this block, zero beyond the last."""
    valid = np.zeros(WIDTH, np.float32)
    valid[: min(WIDTH, examples - block * WIDTH)] = 1
    return valid


@_compiled
def measure(y, means, squares, valid):
    """Mean and summed squared distance from it, of each channel of a block.

    In two passes, the second of which mends the first: nothing cancels, however far the mean is
    from zero.
    """
    channels = len(means)
    plane = y.size // channels
    count = plane // WIDTH * valid.sum()
    for c in range(channels):
        sums = splat(np.float32(0))
        for at in range(c * plane, (c + 1) * plane, WIDTH):
            sums = sums + load(y, at)
        mean = total(sums * load(valid, 0)) / count
        centre = splat(np.float32(mean))
        sums = squared = splat(np.float32(0))
        for at in range(c * plane, (c + 1) * plane, WIDTH):
            distance = load(y, at) - centre
            sums = sums + distance
            squared = fma(distance, distance, squared)
        rest = total(sums * load(valid, 0)) / count
        means[c] = np.float64(np.float32(mean)) + rest
        square = total(squared * load(valid, 0)) - rest * rest * count
        squares[c] = 0.0 if square < 0 else square  # rounding; a NaN stays


@_compiled
def merge(means, squares, examples, pixels):
    """Mean and biased variance of all blocks (Chan, Golub and LeVeque 1979)."""
    mean, square, seen = 0.0, 0.0, 0
    for block in range(len(means)):
        more = min(WIDTH, examples - block * WIDTH) * pixels
        distance, share = means[block] - mean, more / (seen + more)
        mean += distance * share
        square += squares[block] + distance * distance * (seen * share)
        seen += more
    return mean, square / seen


@_compiled
def pool(y, means, scales, biases, rows, columns, pooled, centred, which):
    """Normalise, and keep the largest of each square if it is above zero."""
    below = columns * WIDTH
    to = 0
    for c in range(len(means)):
        mean, scale, bias = splat(means[c]), splat(scales[c]), splat(biases[c])
        for i in range(rows // 2):
            at = (c * rows + 2 * i) * below
            for _ in range(columns // 2):
                best_distance = load(y, at) - mean
                best, place = fma(best_distance, scale, bias), splat(np.float32(0))
                for corner in range(1, 4):  # the first largest, or the last NaN, as torch has it
                    distance = load(y, at + (corner // 2) * below + (corner % 2) * WIDTH) - mean
                    value = fma(distance, scale, bias)
                    better = (value > best) | (value != value)
                    best = where(better, value, best)
                    best_distance = where(better, distance, best_distance)
                    place = where(better, splat(np.float32(corner)), place)
                dead = best <= splat(np.float32(0))
                store(pooled, to, where(dead, splat(np.float32(0)), best))
                store(centred, to, best_distance)
                store_bytes(which, to, where(dead, splat(np.float32(DEAD)), place))
                at += 2 * WIDTH
                to += WIDTH


@_compiled
def sums_of_passed(grad, centred, which, passed):
    """Of each channel: the sum of the gradients that passed, and of them times ``centred``."""
    channels = passed.shape[1]
    plane = grad.size // channels
    for c in range(channels):
        sums = dot = splat(np.float32(0))
        for at in range(c * plane, (c + 1) * plane, WIDTH):
            alive = load_bytes(which, at) != splat(np.float32(DEAD))
            g = where(alive, load(grad, at), splat(np.float32(0)))
            sums, dot = sums + g, fma(g, load(centred, at), dot)
        passed[0, c], passed[1, c] = total(sums), total(dot)


@_compiled
def spread_gradient(
    grad, y, which, channels, top, bottom, mean, scale, slope, constant, examples, dy,
    rows, columns,
):  # fmt: skip
    """Rows ``top`` to ``bottom`` (even, or the last) of the gradient for some channels of ``y``.

    It is ``scale * d + slope * (y - mean) + constant``, zero beyond the last example.
    """
    below, small = columns * WIDTH, columns // 2 * WIDTH
    valid, paired = load(examples, 0), min(bottom, rows // 2 * 2)
    for c in range(*channels):
        centre, factor = splat(mean[c]), splat(scale[c])
        tilt, shift = splat(slope[c]) * valid, splat(constant[c]) * valid
        for h in range(top, paired, 2):
            at = (c * rows + h) * below
            source = (c * (rows // 2) + h // 2) * small
            for _ in range(columns // 2):
                g, place = load(grad, source) * factor, load_bytes(which, source)
                for corner in range(4):
                    here = at + (corner // 2) * below + (corner % 2) * WIDTH
                    dense = fma(load(y, here) - centre, tilt, shift)
                    passed = where(place == splat(np.float32(corner)), g, splat(np.float32(0)))
                    store(dy, here, dense + passed)
                at += 2 * WIDTH
                source += WIDTH
            if columns % 2:  # the last column is in no square
                for here in (at, at + below):
                    store(dy, here, fma(load(y, here) - centre, tilt, shift))
        for here in range((c * rows + paired) * below, (c * rows + bottom) * below, WIDTH):
            store(dy, here, fma(load(y, here) - centre, tilt, shift))  # and so is the last row
