"""Batch norm, ReLU and 2x2 max pooling of one block of images, and their gradients, by Numba.

The arrays of a block are flat, with the axes ``[channels, rows, columns, WIDTH]`` in C order as in
layout.py. Those of the pooled size have the axes ``[channels, rows // 2, columns // 2, WIDTH]``.
They are float32, except for ``which`` (uint8).
"""

from __future__ import annotations

import numpy as np

from fmnist.functional.kernels.cpu.compiled import compiled
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

DEAD = 4  # in `which`: the ReLU outputs zero; 0-3 are the pixels of a square, row-major


@compiled
def valid_examples(block, examples):
    """Return which entries of a block are examples and not padding.

    Args:
        block: index of the block.
        examples: number of examples in all blocks, without the padding.

    Returns:
        float32 ``[WIDTH]``: 1 for an example, 0 for padding.
    """
    valid = np.zeros(WIDTH, np.float32)
    for i in range(min(WIDTH, examples - block * WIDTH)):
        valid[i] = 1
    return valid


@compiled
def measure(y, plane, means, squares, valid):
    """Compute the mean and the sum of squared deviations of each channel of a block.

    The second pass uses deviations from the mean of the first and corrects both results. There is
    no cancellation when the mean is far from zero.

    Args:
        y: flat ``[channels, rows, columns, WIDTH]``; there may be more channels.
        plane: length of a channel.
        means, squares: outputs, float64 ``[channels]``.
        valid: the result of :func:`valid_examples`.
    """
    count = plane // WIDTH * valid.sum()
    none = splat(np.float32(0))
    inside = load(valid, 0) > none  # selects, as the padding may overflow, and inf * 0 is NaN
    last = len(means) - 1
    for c in range(0, last + 1, 4):  # an addition waits for the one before, so four take turns
        c1, c2, c3 = min(c + 1, last), min(c + 2, last), min(c + 3, last)
        at1, at2, at3 = (c1 - c) * plane, (c2 - c) * plane, (c3 - c) * plane
        s0 = s1 = s2 = s3 = none
        for at in range(c * plane, (c + 1) * plane, WIDTH):
            s0, s1 = s0 + load(y, at), s1 + load(y, at + at1)
            s2, s3 = s2 + load(y, at + at2), s3 + load(y, at + at3)
        m0 = np.float32(total(where(inside, s0, none)) / count)
        m1 = np.float32(total(where(inside, s1, none)) / count)
        m2 = np.float32(total(where(inside, s2, none)) / count)
        m3 = np.float32(total(where(inside, s3, none)) / count)
        s0 = s1 = s2 = s3 = q0 = q1 = q2 = q3 = none
        v0, v1, v2, v3 = splat(m0), splat(m1), splat(m2), splat(m3)
        for at in range(c * plane, (c + 1) * plane, WIDTH):
            d0, d1 = load(y, at) - v0, load(y, at + at1) - v1
            d2, d3 = load(y, at + at2) - v2, load(y, at + at3) - v3
            s0, s1, s2, s3 = s0 + d0, s1 + d1, s2 + d2, s3 + d3
            q0, q1, q2, q3 = fma(d0, d0, q0), fma(d1, d1, q1), fma(d2, d2, q2), fma(d3, d3, q3)
        _write_moments(means, squares, c, m0, s0, q0, inside, count)
        _write_moments(means, squares, c1, m1, s1, q1, inside, count)
        _write_moments(means, squares, c2, m2, s2, q2, inside, count)
        _write_moments(means, squares, c3, m3, s3, q3, inside, count)


@compiled
def _write_moments(means, squares, c, mean, sums, squared, inside, count):
    """Write the results of a channel, given its mean and the deviations from it."""
    none = splat(np.float32(0))
    rest = total(where(inside, sums, none)) / count
    means[c] = np.float64(mean) + rest
    square = total(where(inside, squared, none)) - rest * rest * count
    squares[c] = 0.0 if square < 0 else square  # rounding can make it negative; a NaN is kept


@compiled
def merge(means, squares, examples, pixels):
    """Combine the statistics of the blocks of one channel.

    Source: Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for Computing
    Sample Variances (1979).

    Args:
        means, squares: mean and sum of squared deviations of each block, float64 ``[blocks]``.
        examples: number of examples in all blocks, without the padding.
        pixels: number of pixels of an example.

    Returns:
        The mean and the biased variance, float64.
    """
    mean, square, seen = 0.0, 0.0, 0
    for block in range(len(means)):
        more = min(WIDTH, examples - block * WIDTH) * pixels
        distance, share = means[block] - mean, more / (seen + more)
        mean += distance * share
        square += squares[block] + distance * distance * (seen * share)
        seen += more
    return mean, square / seen


@compiled
def pool(y, means, scales, biases, valid, rows, columns, pooled, centred, which):
    """Apply batch norm, ReLU and 2x2 max pooling to a block. The outputs of padding are zero.

    Args:
        y: output of the convolution, flat ``[channels, rows, columns, WIDTH]``.
        means, scales, biases: of each channel, float32 ``[channels]``.
        valid: the result of :func:`valid_examples`.
        rows, columns: size of the images in ``y``.
        pooled: output of the pooled size.
        centred: output of the pooled size: ``y - mean`` at the largest pixel of each square.
        which: output of the pooled size, uint8: the position of that pixel, or ``DEAD``.
    """
    below = columns * WIDTH
    to = 0
    none = splat(np.float32(0))
    outside = load(valid, 0) <= none
    for c in range(len(means)):
        mean, scale, bias = splat(means[c]), splat(scales[c]), splat(biases[c])
        for i in range(rows // 2):
            at = (c * rows + 2 * i) * below
            for _ in range(columns // 2):
                best_distance = load(y, at) - mean
                best, place = fma(best_distance, scale, bias), splat(np.float32(0))
                for corner in range(1, 4):  # the first largest, or the last NaN, as in torch
                    distance = load(y, at + (corner // 2) * below + (corner % 2) * WIDTH) - mean
                    value = fma(distance, scale, bias)
                    better = (value > best) | (value != value)
                    best = where(better, value, best)
                    best_distance = where(better, distance, best_distance)
                    place = where(better, splat(np.float32(corner)), place)
                dead = (best <= none) | outside
                store(pooled, to, where(dead, none, best))
                store(centred, to, where(outside, none, best_distance))
                store_bytes(which, to, where(dead, splat(np.float32(DEAD)), place))
                at += 2 * WIDTH
                to += WIDTH


@compiled
def sums_of_passed(grad, centred, which, passed):
    """Sum, for each channel, the gradients that pass the ReLU.

    Args:
        grad, centred, which: flat arrays of the pooled size.
        passed: output, float32 ``[2, channels]``: the sum of the gradients, and the sum of the
            gradients times ``centred``.
    """
    channels = passed.shape[1]
    plane = grad.size // channels
    for c in range(channels):
        sums = dot = splat(np.float32(0))
        for at in range(c * plane, (c + 1) * plane, WIDTH):
            alive = load_bytes(which, at) != splat(np.float32(DEAD))
            g = where(alive, load(grad, at), splat(np.float32(0)))
            sums, dot = sums + g, fma(g, load(centred, at), dot)
        passed[0, c], passed[1, c] = total(sums), total(dot)


@compiled
def spread_gradient(
    grad, y, which, channels, top, bottom, mean, linear, examples, dy, rows, columns
):  # fmt: skip
    """Compute some rows of the gradient for some channels of ``y``.

    The gradient is ``linear[0] * d + linear[1] * (y - mean) + linear[2]``, where ``d`` is ``grad``
    propagated back through pooling and ReLU. It is zero in the padding.

    Args:
        grad, which: flat arrays of the pooled size.
        y: output of the convolution, flat ``[channels, rows, columns, WIDTH]``.
        channels: number of channels; there may be more.
        top, bottom: the first row, which is even, and the end of the range, which is even or
            ``rows``.
        mean: of each channel, float32 ``[channels]``.
        linear: float32 ``[3, channels]``.
        examples: the result of :func:`valid_examples`.
        dy: output, flat ``[channels, rows, columns, WIDTH]``.
        rows, columns: size of the images in ``y``.
    """
    below, small = columns * WIDTH, columns // 2 * WIDTH
    none, paired = splat(np.float32(0)), min(bottom, rows // 2 * 2)
    inside = load(examples, 0) > none
    for c in range(channels):
        centre, factor = splat(mean[c]), splat(linear[0, c])
        tilt = where(inside, splat(linear[1, c]), none)
        shift = where(inside, splat(linear[2, c]), none)
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
