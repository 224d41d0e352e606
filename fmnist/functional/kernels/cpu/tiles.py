"""Convolution of one block of images on a CPU, and its gradients, by Numba.

A block holds ``WIDTH`` images. It is a flat float32 array with the axes ``[channels, height, width,
WIDTH]`` in C order, so the images are the fastest index. A vector then holds one pixel of ``WIDTH``
images, and a convolution consists of multiply-adds of a vector and a weight, without shuffles or
special cases at edges, for all kernel sizes. The sums of ``TILE`` channels are kept in registers.
They are separate variables, because a loop cannot index registers. This reaches 65-90 % of the
processor's multiply-add rate on the shapes of this network, where oneDNN reaches 45-65 %
(benchmarks/README.md).

The arrays of a convolution are

* ``x [inputs, height, width, WIDTH]``: the input
* ``y [outputs, rows, columns, WIDTH]``: the output, with ``rows = height - k + 1`` and
  ``columns = width - k + 1``
* ``tiles [outputs / TILE rounded up, inputs, k, k, TILE]``: the weights, see :func:`tiled`

``dx`` and ``dy`` are the gradients for ``x`` and ``y``. Temporary arrays are padded to whole tiles
of channels, results are not. A *tap* is an input channel and a position in the kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from fmnist.functional.kernels.cpu.simd import WIDTH, fma, load, splat, spread, store

TILE = 6  # channels; times 2 pixels or taps: 12 sums, which leaves 4 of 16 registers for operands

_compiled: Any = njit(cache=True, nogil=True)


@_compiled
def whole_tiles(channels):
    """Round a number of channels up to a multiple of ``TILE``."""
    return -(-channels // TILE) * TILE


@_compiled
def tiled(weight):
    """Arrange weights in tiles of ``TILE`` output channels.

    Args:
        weight: float32 ``[lanes, outputs, inputs, k, k]``.

    Returns:
        float32 ``[lanes, -1]``, flat ``[tiles, inputs, k, k, TILE]`` in each lane. The last tile
        is padded with zeros.
    """
    lanes, outputs, inputs, k, _ = weight.shape
    tiles = np.zeros((lanes, whole_tiles(outputs) // TILE, inputs, k, k, TILE), np.float32)
    for lane in range(lanes):
        for o in range(outputs):
            tiles[lane, o // TILE, :, :, :, o % TILE] = weight[lane, o]
    return tiles.reshape(lanes, -1)


@_compiled
def turned(weight):
    """Arrange weights in tiles of ``TILE`` input channels: :func:`tiled` of the transpose.

    Args:
        weight: float32 ``[lanes, outputs, inputs, k, k]``.

    Returns:
        float32 ``[lanes, -1]``, flat ``[tiles, outputs, k, k, TILE]`` in each lane.
    """
    lanes, outputs, inputs, k, _ = weight.shape
    exchanged = np.empty((lanes, inputs, outputs, k, k), np.float32)
    for i in range(inputs):
        exchanged[:, i] = weight[:, :, i]
    return tiled(exchanged)


@_compiled
def convolve(x, tiles, y, inputs, outputs, height, width, k):
    """Compute the cross-correlation of ``x`` with the weights, two pixels at a time.

    Args:
        x: flat ``[inputs, height, width, WIDTH]``.
        tiles: a lane of the result of :func:`tiled`.
        y: output, flat ``[outputs, rows, columns, WIDTH]``.
        inputs, outputs, height, width, k: sizes.
    """
    rows, columns = height - k + 1, width - k + 1
    plane = rows * columns * WIDTH
    for o in range(0, outputs, TILE):
        for h in range(rows):
            for left in range(0, columns, 2):
                step = WIDTH if left + 1 < columns else 0  # an odd last pixel is computed twice
                a0 = a1 = a2 = a3 = a4 = a5 = splat(np.float32(0))
                b0 = b1 = b2 = b3 = b4 = b5 = splat(np.float32(0))
                tap = o * inputs * k * k
                for i in range(inputs):
                    for r in range(k):
                        at = ((i * height + h + r) * width + left) * WIDTH
                        for _ in range(k):
                            a, b = load(x, at), load(x, at + step)
                            w = spread(tiles, tap)
                            a0, b0 = fma(w, a, a0), fma(w, b, b0)
                            w = spread(tiles, tap + 1)
                            a1, b1 = fma(w, a, a1), fma(w, b, b1)
                            w = spread(tiles, tap + 2)
                            a2, b2 = fma(w, a, a2), fma(w, b, b2)
                            w = spread(tiles, tap + 3)
                            a3, b3 = fma(w, a, a3), fma(w, b, b3)
                            w = spread(tiles, tap + 4)
                            a4, b4 = fma(w, a, a4), fma(w, b, b4)
                            w = spread(tiles, tap + 5)
                            a5, b5 = fma(w, a, a5), fma(w, b, b5)
                            at += WIDTH
                            tap += TILE
                to, present = o * plane + (h * columns + left) * WIDTH, outputs - o
                _store_tile(y, to, plane, present, a0, a1, a2, a3, a4, a5)
                _store_tile(y, to + step, plane, present, b0, b1, b2, b3, b4, b5)


@_compiled
def input_gradient(dy, tiles, dx, inputs, outputs, height, width, k):
    """Compute the gradient for the input.

    Args:
        dy: flat ``[outputs, rows, columns, WIDTH]``; it may be padded to whole tiles.
        tiles: a lane of the result of :func:`turned`.
        dx: output, flat ``[inputs, height, width, WIDTH]``.
        inputs, outputs, height, width, k: sizes.
    """
    rows, columns = height - k + 1, width - k + 1
    plane = rows * columns * WIDTH
    for i in range(0, inputs, TILE):
        for r in range(height):
            top, bottom = max(0, r - k + 1), min(rows - 1, r)
            for c in range(width):
                left, right = max(0, c - k + 1), min(columns - 1, c)
                a0 = a1 = a2 = a3 = a4 = a5 = splat(np.float32(0))
                for o in range(outputs):
                    for h in range(top, bottom + 1):
                        tap = ((i // TILE * outputs + o) * k + r - h) * k + c - left
                        tap *= TILE
                        at = o * plane + (h * columns + left) * WIDTH
                        for _ in range(left, right + 1):
                            d = load(dy, at)
                            a0 = fma(spread(tiles, tap), d, a0)
                            a1 = fma(spread(tiles, tap + 1), d, a1)
                            a2 = fma(spread(tiles, tap + 2), d, a2)
                            a3 = fma(spread(tiles, tap + 3), d, a3)
                            a4 = fma(spread(tiles, tap + 4), d, a4)
                            a5 = fma(spread(tiles, tap + 5), d, a5)
                            at += WIDTH
                            tap -= TILE
                to = ((i * height + r) * width + c) * WIDTH
                _store_tile(dx, to, height * width * WIDTH, inputs - i, a0, a1, a2, a3, a4, a5)


@_compiled
def weight_gradient(dy, x, sums, o, top, bottom, inputs, height, width, k):
    """Add the contribution of some rows to the gradient for a tile of weights, two taps at a time.

    Args:
        dy: flat ``[outputs padded to whole tiles, rows, columns, WIDTH]``.
        x: flat ``[inputs, height, width, WIDTH]``.
        sums: updated; flat ``[outputs padded to whole tiles, inputs, k, k, WIDTH]``. The gradient
            is the sum over the last axis.
        o: the first output channel of the tile.
        top, bottom: the range of rows of ``dy``, which should fit in the L1 cache.
        inputs, height, width, k: sizes.
    """
    rows, columns = height - k + 1, width - k + 1
    plane, taps = rows * columns * WIDTH, inputs * k * k
    row = taps * WIDTH
    for first in range(0, taps, 2):
        second = min(first + 1, taps - 1)  # an odd last tap is computed twice
        from_a, from_b = _tap_offset(first, height, width, k), _tap_offset(second, height, width, k)
        to_a, to_b = (o * taps + first) * WIDTH, (o * taps + second) * WIDTH
        a0, a1, a2, a3, a4, a5 = _load_tile(sums, to_a, row)
        b0, b1, b2, b3, b4, b5 = _load_tile(sums, to_b, row)
        from_dy = o * plane + top * columns * WIDTH
        for h in range(top, bottom):
            at = h * width * WIDTH
            for _ in range(columns):
                a, b = load(x, from_a + at), load(x, from_b + at)
                d = load(dy, from_dy)
                a0, b0 = fma(d, a, a0), fma(d, b, b0)
                d = load(dy, from_dy + plane)
                a1, b1 = fma(d, a, a1), fma(d, b, b1)
                d = load(dy, from_dy + 2 * plane)
                a2, b2 = fma(d, a, a2), fma(d, b, b2)
                d = load(dy, from_dy + 3 * plane)
                a3, b3 = fma(d, a, a3), fma(d, b, b3)
                d = load(dy, from_dy + 4 * plane)
                a4, b4 = fma(d, a, a4), fma(d, b, b4)
                d = load(dy, from_dy + 5 * plane)
                a5, b5 = fma(d, a, a5), fma(d, b, b5)
                at += WIDTH
                from_dy += WIDTH
        _store_tile(sums, to_a, row, TILE, a0, a1, a2, a3, a4, a5)
        _store_tile(sums, to_b, row, TILE, b0, b1, b2, b3, b4, b5)


@_compiled
def _tap_offset(tap, height, width, k):
    """Return the index in ``x`` of the first pixel that is multiplied by a tap."""
    i, r, s = tap // (k * k), tap // k % k, tap % k
    return ((i * height + r) * width + s) * WIDTH


@njit(cache=True, nogil=True, inline="always")
def _load_tile(array, at, step):
    """Load the sums of a tile, ``step`` elements apart."""
    return (
        load(array, at), load(array, at + step), load(array, at + 2 * step),
        load(array, at + 3 * step), load(array, at + 4 * step), load(array, at + 5 * step),
    )  # fmt: skip


@njit(cache=True, nogil=True, inline="always")
def _store_tile(array, at, step, present, v0, v1, v2, v3, v4, v5):
    """Store the sums of a tile, ``step`` elements apart, for at most ``present`` channels."""
    store(array, at, v0)
    if present > 1:
        store(array, at + step, v1)
    if present > 2:
        store(array, at + 2 * step, v2)
    if present > 3:
        store(array, at + 3 * step, v3)
    if present > 4:
        store(array, at + 4 * step, v4)
    if present > 5:
        store(array, at + 5 * step, v5)
