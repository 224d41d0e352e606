"""Convolution of one block of images on a CPU, and its gradients, by Numba.

A block is ``WIDTH`` images side by side: ``[channels, height, width, WIDTH]``, flat. Every number
of the network is then a vector over images, and a convolution is nothing but multiply-adds of a
vector by a weight: no shuffles, no waste at edges, the same for all kernel sizes. Sums are kept
in registers for ``TILE`` channels at a time, written out one by one, as loops over registers
cannot be. This reaches 65-90 % of the processor's multiply-add rate on the shapes of this
network, where oneDNN reaches 45-65 % (benchmarks/README.md).

Weights come in tiles, see :func:`tiled`; scratch is padded to whole tiles, results are not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from fmnist.functional.kernels.cpu.simd import WIDTH, fma, load, splat, spread, store

TILE = 6  # times two pixels or taps: twelve sums, and room for operands in 16 or 32 registers

_compiled: Any = njit(cache=True, nogil=True)


@_compiled
def whole_tiles(channels):
    """The number of channels when the last tile is filled up."""
    return -(-channels // TILE) * TILE


@_compiled
def tiled(weight):
    """``[lanes, outputs, inputs, k, k]`` as ``[lanes, tiles * inputs * k * k * TILE]``.

    The channels beyond the last are zeros.
    """
    lanes, outputs, inputs, k, _ = weight.shape
    tiles = np.zeros((lanes, whole_tiles(outputs) // TILE, inputs, k, k, TILE), np.float32)
    for lane in range(lanes):
        for o in range(outputs):
            tiles[lane, o // TILE, :, :, :, o % TILE] = weight[lane, o]
    return tiles.reshape(lanes, -1)


@_compiled
def turned(weight):
    """:func:`tiled` with inputs and outputs exchanged."""
    lanes, outputs, inputs, k, _ = weight.shape
    exchanged = np.empty((lanes, inputs, outputs, k, k), np.float32)
    for i in range(inputs):
        exchanged[:, i] = weight[:, :, i]
    return tiled(exchanged)


@_compiled
def convolve(x, tiles, y, inputs, outputs, height, width, k):
    """``y`` becomes the cross-correlation of ``x`` with the weights; two pixels at a time."""
    rows, columns = height - k + 1, width - k + 1
    plane = rows * columns * WIDTH
    for o in range(0, outputs, TILE):
        for h in range(rows):
            for left in range(0, columns, 2):
                step = WIDTH if left + 1 < columns else 0  # an odd last pixel is done twice
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
    """``dx`` becomes the gradient for the input.

    ``tiles`` are those of the weights with outputs and inputs exchanged.
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
    """Add some rows' share of the gradient for a tile of the weights to ``sums``.

    Args:
        dy: scratch ``[whole tiles, rows, columns, WIDTH]``.
        x: the input.
        sums: ``[whole tiles, inputs, k, k, WIDTH]``; the images' shares stay apart, side by side.
        o: first channel of the tile.
        top, bottom: the rows of ``dy``; so few that they stay in the nearest cache.
        inputs, height, width, k: of the input and the kernel.

    Two taps (an input channel and a place in the kernel) are done at a time.
    """
    rows, columns = height - k + 1, width - k + 1
    plane, taps = rows * columns * WIDTH, inputs * k * k
    row = taps * WIDTH
    for first in range(0, taps, 2):
        second = min(first + 1, taps - 1)  # an odd last tap is done twice
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
    """Where in the input the first pixel under this tap lies."""
    i, r, s = tap // (k * k), tap // k % k, tap % k
    return ((i * height + r) * width + s) * WIDTH


@njit(cache=True, nogil=True, inline="always")
def _load_tile(array, at, step):
    return (
        load(array, at), load(array, at + step), load(array, at + 2 * step),
        load(array, at + 3 * step), load(array, at + 4 * step), load(array, at + 5 * step),
    )  # fmt: skip


@njit(cache=True, nogil=True, inline="always")
def _store_tile(array, at, step, present, v0, v1, v2, v3, v4, v5):
    """Store a tile's sums, ``step`` apart, as far as there are channels."""
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
