"""Convolution of one block of images on a CPU, and its gradients, by Numba.

The layout of the arrays is described in layout.py:

* ``x [inputs, height, width, WIDTH]``: the input, with its padding
* ``y [outputs, rows, columns, WIDTH]``: the output, with ``rows = height - k + 1`` and
  ``columns = width - k + 1``
* ``tiles``: weights in tiles

``dx`` and ``dy`` are the gradients for ``x`` and ``y``. A *tap* is an input channel and a position
in the kernel.

The sums of some channels and pixels, or channels and taps, are kept in registers (sums.py). What
they need again and again stays in the L1 cache: a part of the weights, or of ``dy``. Each sum is
added up in the same order whatever the sizes of these parts, so they change no bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fmnist.functional.kernels.cpu.compiled import compiled
from fmnist.functional.kernels.cpu.layout import SMALL, TILE, tile_ranges, tile_size
from fmnist.functional.kernels.cpu.simd import WIDTH, load, store, total
from fmnist.functional.kernels.cpu.sums import (
    add_products,
    add_scaled,
    add_scaled_first,
    add_scaled_last,
    add_window,
    load_sums,
    shifted,
    store_sums,
    totals,
    zeros,
)

OUTPUTS, TAPS = (4, 6) if WIDTH == 16 else (2, 4)
"""Output channels and taps of the sums of the weight gradient. Tiles have whole ``OUTPUTS``."""

WINDOW = 5
"""Kernels of this size have sums of a row of taps. It is a tenth faster, a fifth for one input."""

NEAR = 4096
"""Floats of weights that are used for all pixels, one after the other: a part of the L1 cache."""


def _define_convolve(channels: int) -> Any:
    @compiled
    def convolve(x, tiles, y, o, inputs, outputs, top, bottom, height, width, k, before, after):
        columns = width - k + 1
        plane = (height - k + 1) * columns * WIDTH
        near = max(1, NEAR // (channels * k * k))
        for first in range(0, inputs, near):
            end = min(first + near, inputs)
            for h in range(top, bottom):
                from_r, to_r = max(0, before - h), min(k, height - after - h)
                for left in range(0, columns, 2):
                    from_s, to_s = max(0, before - left - 1), min(k, width - after - left)
                    step = WIDTH if left + 1 < columns else 0  # an odd last pixel is computed twice
                    to = (h * columns + left) * WIDTH
                    sums = zeros(channels, 2)
                    if first:
                        sums = load_sums(sums, y, to, plane, step, outputs - o)
                    for i in range(first, end):
                        for r in range(from_r, to_r):
                            tap = (o * inputs + i * channels) * k * k
                            tap += (r * k + from_s) * channels
                            at = ((i * height + h + r) * width + left + from_s) * WIDTH
                            for _ in range(from_s, to_s):
                                sums = add_scaled(sums, tiles, tap, x, at, step)
                                at += WIDTH
                                tap += channels
                    store_sums(sums, y, to, plane, step, outputs - o)

    return convolve


_convolve_large, _convolve_small = _define_convolve(TILE), _define_convolve(SMALL)


@compiled
def convolve_tile(x, tiles, y, o, inputs, outputs, top, bottom, height, width, k, before, after):
    """Compute some rows of the cross-correlation of ``x`` with the weights of a tile.

    Args:
        x: flat ``[inputs, height, width, WIDTH]``.
        tiles: the weights, see ``fill_tiles``.
        y: output, flat ``[outputs - o, rows, columns, WIDTH]``.
        o: the first output channel of the tile.
        inputs, outputs: numbers of channels.
        top, bottom: the first row and the end of the range.
        height, width, k: sizes, with the frame.
        before, after: width of the frame of zeros, most of which is skipped.
    """
    sizes = (inputs, outputs, top, bottom, height, width, k, before, after)
    if tile_size(o, outputs) == TILE:
        _convolve_large(x, tiles, y, o, *sizes)
    else:
        _convolve_small(x, tiles, y, o, *sizes)


def _define_input_gradient(channels: int) -> Any:
    @compiled
    def gradient(dy, tiles, dx, i, inputs, outputs, height, width, k, before, after):
        rows, columns = height - k + 1, width - k + 1
        plane, right = rows * columns * WIDTH, width - after
        length = right - before
        large = (height - before - after) * length * WIDTH
        near = max(1, NEAR // (channels * k * k))
        for first in range(0, outputs, near):
            end = min(first + near, outputs)
            for r in range(before, height - after):
                top, bottom = max(0, r - k + 1), min(rows - 1, r)
                for c in range(before, right, 2):
                    other = min(c + 1, right - 1)  # an odd last pixel is computed twice
                    step = (other - c) * WIDTH
                    to = i * large + ((r - before) * length + c - before) * WIDTH
                    sums = zeros(channels, 2)
                    if first:
                        sums = load_sums(sums, dx, to, large, step, inputs - i)
                    # The columns of the kernel that meet dy, from right to left, begin and end for
                    # the second pixel at most one further to the right.
                    begin, begin_second = min(k - 1, c), min(k - 1, other)
                    end_first, stop = max(0, c - columns + 1), max(0, other - columns + 1)
                    for o in range(first, end):
                        for h in range(top, bottom + 1):
                            tap = ((i * outputs + o * channels) * k + (r - h) * channels) * k
                            at = o * plane + (h * columns + c) * WIDTH
                            for s in range(begin_second, begin, -1):
                                sums = add_scaled_last(
                                    sums, tiles, tap + s * channels, dy, at - s * WIDTH, step
                                )
                            for s in range(begin, stop - 1, -1):
                                sums = add_scaled(
                                    sums, tiles, tap + s * channels, dy, at - s * WIDTH, step
                                )
                            for s in range(stop - 1, end_first - 1, -1):
                                sums = add_scaled_first(
                                    sums, tiles, tap + s * channels, dy, at - s * WIDTH, step
                                )
                    store_sums(sums, dx, to, large, step, inputs - i)

    return gradient


_input_gradient_large = _define_input_gradient(TILE)
_input_gradient_small = _define_input_gradient(SMALL)


@compiled
def input_gradient(dy, tiles, dx, inputs, outputs, height, width, k, before, after):
    """Compute the gradient for the input, without its frame.

    Args:
        dy: flat ``[outputs, rows, columns, WIDTH]``; it may have more channels.
        tiles: the weights with inputs and outputs exchanged, see ``fill_tiles``.
        dx: output, flat ``[inputs, height - before - after, width - before - after, WIDTH]``.
        inputs, outputs, height, width, k: sizes, with the frame.
        before, after: width of the frame, see ``framed``.
    """
    for i, _ in tile_ranges(inputs):
        if tile_size(i, inputs) == TILE:
            _input_gradient_large(
                dy, tiles, dx, i, inputs, outputs, height, width, k, before, after
            )
        else:
            _input_gradient_small(
                dy, tiles, dx, i, inputs, outputs, height, width, k, before, after
            )


@compiled
def tap_places(inputs, height, width, k):
    """Return, for each tap, the index in ``x`` of the first pixel that it is multiplied by.

    The last one is repeated, so that every tap has ``TAPS`` at it and after it.
    """
    places = np.empty(inputs * k * k + TAPS - 1, np.int64)
    tap = 0
    for i in range(inputs):
        for r in range(k):
            for s in range(k):
                places[tap] = ((i * height + r) * width + s) * WIDTH
                tap += 1
    for i in range(tap, len(places)):
        places[i] = places[tap - 1]
    return places


@compiled
def weight_gradient(
    dy, block, x, image, sums, fresh, strips, places, first, end, rows, width, plane, k
):  # fmt: skip
    """Add the contribution of some strips to the gradient for weights of ``OUTPUTS`` channels.

    Args:
        dy: flat ``[blocks, OUTPUTS, rows, columns, WIDTH]``; it may have more channels.
        block: length of a block of ``dy``.
        x: flat ``[blocks, inputs, height, width, WIDTH]``.
        image: length of a block of ``x``.
        sums: updated; flat ``[end - first, OUTPUTS, WIDTH]``, with room for ``TAPS`` more. The
            gradient is the sum over the last axis.
        fresh: whether the sums begin with zero, whatever is in ``sums``.
        strips: int64 ``[strips, 3]``: of each the block, the first row and the end. Together they
            should fit in the L1 cache.
        places: the result of :func:`tap_places`.
        first, end: the first tap and the end of the range, of whole input channels.
        rows: the first row of ``x`` that is not in its frame, and the end.
        width: of ``x``.
        plane: length of a channel of a block of ``dy``.
        k: side of the kernel.
    """
    if k == WINDOW:
        _by_window(dy, block, x, image, sums, fresh, strips, places, first, end, rows, width, plane)
    else:
        _by_taps(dy, block, x, image, sums, fresh, strips, places, first, end, width, plane, k)


@compiled
def _by_taps(dy, block, x, image, sums, fresh, strips, places, first, end, width, plane, k):
    columns, row = width - k + 1, OUTPUTS * WIDTH
    for tap in range(first, end, TAPS):
        to = (tap - first) * row
        products = zeros(OUTPUTS, TAPS)
        if not fresh:
            products = load_sums(products, sums, to, WIDTH, row, OUTPUTS)
        for strip in range(len(strips)):
            from_dy = strips[strip, 0] * block + strips[strip, 1] * columns * WIDTH
            for h in range(strips[strip, 1], strips[strip, 2]):
                at = strips[strip, 0] * image + h * width * WIDTH
                for _ in range(columns):
                    products = add_products(products, dy, from_dy, plane, x, places, tap, at)
                    at += WIDTH
                    from_dy += WIDTH
        store_sums(products, sums, to, WIDTH, row, OUTPUTS)


@compiled
def _by_window(dy, block, x, image, sums, fresh, strips, places, first, end, rows, width, plane):
    """Do it for a row of taps at a time: the next pixel needs the same vectors of x but one."""
    columns, row = width - WINDOW + 1, OUTPUTS * WIDTH
    for tap in range(first, end, WINDOW):
        to = (tap - first) * row
        products = zeros(OUTPUTS, WINDOW)
        if not fresh:
            products = load_sums(products, sums, to, WIDTH, row, OUTPUTS)
        for strip in range(len(strips)):
            r = tap // WINDOW % WINDOW
            for h in range(max(strips[strip, 1], rows[0] - r), min(strips[strip, 2], rows[1] - r)):
                from_dy = strips[strip, 0] * block + h * columns * WIDTH
                at = strips[strip, 0] * image + places[tap] + h * width * WIDTH
                window = zeros(1, WINDOW)
                for _ in range(WINDOW - 1):
                    window = shifted(window, x, at)
                    at += WIDTH
                for _ in range(columns):
                    window = shifted(window, x, at)
                    products = add_window(products, dy, from_dy, plane, window)
                    at += WIDTH
                    from_dy += WIDTH
        store_sums(products, sums, to, WIDTH, row, OUTPUTS)


@compiled
def write_gradient(sums, part, taps):
    """Add up the sums of a channel.

    Args:
        sums: flat ``[taps, OUTPUTS, WIDTH]``, from the sums of the channel on.
        part: output, flat ``[taps]``.
        taps: number of taps.
    """
    tap, row = 0, OUTPUTS * WIDTH
    while tap + WIDTH <= taps:
        store(part, tap, totals(sums, tap * row, row))
        tap += WIDTH
    while tap < taps:
        part[tap] = total(load(sums, tap * row))
        tap += 1
