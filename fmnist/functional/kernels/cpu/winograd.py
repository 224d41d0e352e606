"""Convolution of a group of blocks and its gradients by Winograd's algorithm, by Numba.

A convolution of many channels can do with fewer multiplications. The output is cut into squares
of ``m`` x ``m`` pixels, the images into the squares of ``n`` x ``n`` that these depend on. Each is
transformed (transforms.py); the transforms are multiplied, position by position, by those of the
weights, and summed over the channels; transformed back they are the output. With kernels of 5 x 5,
a pixel takes 4 multiplications and not 25. The gradients are the transposed of the same steps.

Transformed images have a *plane* for each of the ``n * n`` positions, and in it a *row* for each
channel: a vector for each square of each block of a group. Rows and planes have some numbers more
at their ends, as powers of two apart would share few sets of a cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fmnist.functional.kernels.cpu.compiled import compiled
from fmnist.functional.kernels.cpu.layout import (
    SMALL,
    TILE,
    scratch,
    tile_ranges,
    tile_size,
    whole_tiles,
)
from fmnist.functional.kernels.cpu.simd import WIDTH, load, splat, store
from fmnist.functional.kernels.cpu.sums import add_crossed, add_scaled, store_sums, totals, zeros
from fmnist.functional.kernels.cpu.transforms import (
    INPUTS,
    INPUTS_BACK,
    KERNEL,
    KERNEL_BACK,
    OUTPUTS,
    OUTPUTS_BACK,
    add_transform,
    tile_side,
    transform,
)

ROWS, COLUMNS = (4, 6) if WIDTH == 16 else (4, 3)
"""Outputs and inputs of the sums of the weight gradient that are in registers."""

LINE = 16
"""Floats of a cache line."""


@compiled
def sides(k):
    """Return ``m`` and ``n``."""
    m = tile_side(k)
    return m, m + k - 1


@compiled
def row_length(vectors):
    """Return the length of a row."""
    return vectors * WIDTH + LINE


@compiled
def plane_length(channels, vectors):
    """Return the length of a plane, which has room for a few channels more."""
    return (channels + max(ROWS, COLUMNS)) * row_length(vectors) + LINE


@compiled
def weight_plane(outputs, inputs):
    """Return the length of a plane of transformed weights: tiles, as in layout.py."""
    return whole_tiles(outputs) * inputs + 2 * LINE


@compiled
def transform_weights(weight, planes):
    """Transform the weights of a lane.

    Args:
        weight: ``[outputs, inputs, k, k]``.
        planes: output, flat ``[n * n, weight_plane(outputs, inputs)]``.
    """
    outputs, inputs, k, _ = weight.shape
    _, n = sides(k)
    plane, size = weight_plane(outputs, inputs), TILE * inputs + LINE
    taps, columns = scratch(k * k * size), scratch(n * k * WIDTH)
    taps[:] = 0
    begin = 0
    for first, end in tile_ranges(outputs):
        channels = tile_size(first, outputs)
        for o in range(channels):
            for i in range(inputs):
                for r in range(k):
                    for s in range(k):
                        tap = weight[first + o, i, r, s] if first + o < end else np.float32(0)
                        taps[(r * k + s) * size + i * channels + o] = tap
        for at in range(0, inputs * channels, WIDTH):  # the next tile writes over what is too much
            for s in range(k):
                source, to = s * size + at, s * WIDTH
                transform(KERNEL, k, taps, source, k * size, columns, to, k * WIDTH)
            for r in range(n):
                to = r * n * plane + begin + at
                transform(KERNEL, k, columns, r * k * WIDTH, WIDTH, planes, to, plane)
        begin += inputs * channels


@compiled
def weights_back(sums, outputs, inputs, wide, k, gradient):
    """Compute the gradient for the weights from that for their transforms.

    Args:
        sums: flat ``[n * n, outputs, wide]``.
        outputs, inputs, wide, k: sizes; ``wide`` are the inputs, rounded up to whole vectors.
        gradient: output, flat ``[outputs, inputs, k, k]``.
    """
    _, n = sides(k)
    plane = outputs * wide
    rows, taps = scratch(k * n * WIDTH), scratch(k * k * WIDTH)
    for o in range(outputs):
        for i in range(0, inputs, WIDTH):
            for c in range(n):
                at = c * plane + o * wide + i
                transform(KERNEL_BACK, k, sums, at, n * plane, rows, c * WIDTH, n * WIDTH)
            for r in range(k):
                at, to = r * n * WIDTH, r * k * WIDTH
                transform(KERNEL_BACK, k, rows, at, WIDTH, taps, to, WIDTH)
            to = (o * inputs + i) * k * k
            for j in range(min(WIDTH, inputs - i)):
                for tap in range(k * k):
                    gradient[to] = taps[tap * WIDTH + j]
                    to += 1


@compiled
def transform_images(images, inputs, height, width, down, right, k, planes, first, vectors):
    """Transform the images of a block.

    Args:
        images: flat ``[inputs, height, width, WIDTH]``.
        inputs, height, width: sizes, with the frame.
        down, right: numbers of squares.
        k: side of the kernel.
        planes: output, flat ``[n * n, plane_length(inputs, vectors)]``.
        first: the place of the first square in a row.
        vectors: number of vectors of a row.
    """
    m, n = sides(k)
    row, plane = row_length(vectors), plane_length(inputs, vectors)
    square = scratch(n * n * WIDTH)
    for i in range(inputs):
        to = i * row + first * WIDTH
        for h in range(down):
            for w in range(right):
                at = ((i * height + h * m) * width + w * m) * WIDTH
                for r in range(n):
                    transform(INPUTS, k, images, at, WIDTH, square, r * n * WIDTH, WIDTH)
                    at += width * WIDTH
                for c in range(n):
                    place = to + c * plane
                    transform(INPUTS, k, square, c * WIDTH, n * WIDTH, planes, place, n * plane)
                to += WIDTH


@compiled
def images_back(planes, inputs, height, width, down, right, k, first, vectors, images):
    """Add the gradient for the images of a block to ``images``, from that for their transforms.

    The arguments are those of :func:`transform_images`.
    """
    m, n = sides(k)
    row, plane = row_length(vectors), plane_length(inputs, vectors)
    square = scratch(n * n * WIDTH)
    for i in range(inputs):
        at = i * row + first * WIDTH
        for h in range(down):
            for w in range(right):
                for c in range(n):
                    source, to = at + c * plane, c * WIDTH
                    transform(INPUTS_BACK, k, planes, source, n * plane, square, to, n * WIDTH)
                to = ((i * height + h * m) * width + w * m) * WIDTH
                for r in range(n):
                    add_transform(INPUTS_BACK, k, square, r * n * WIDTH, WIDTH, images, to, WIDTH)
                    to += width * WIDTH
                at += WIDTH


@compiled
def transform_back(planes, outputs, rows, columns, down, right, k, first, vectors, y):
    """Compute the output of a block from its transform.

    Args:
        planes: flat ``[n * n, plane_length(outputs, vectors)]``.
        outputs, rows, columns: sizes of the output.
        down, right, k, first, vectors: as of :func:`transform_images`.
        y: output, flat ``[outputs, rows, columns, WIDTH]``.
    """
    m, n = sides(k)
    row, plane = row_length(vectors), plane_length(outputs, vectors)
    square, edge = scratch(m * n * WIDTH), scratch(m * WIDTH)
    for o in range(outputs):
        at = o * row + first * WIDTH
        for h in range(down):
            for w in range(right):
                for c in range(n):
                    source, to = at + c * plane, c * WIDTH
                    transform(OUTPUTS, k, planes, source, n * plane, square, to, n * WIDTH)
                to = ((o * rows + h * m) * columns + w * m) * WIDTH
                whole = w * m + m <= columns
                for r in range(min(m, rows - h * m)):
                    if whole:
                        transform(OUTPUTS, k, square, r * n * WIDTH, WIDTH, y, to, WIDTH)
                    else:
                        transform(OUTPUTS, k, square, r * n * WIDTH, WIDTH, edge, 0, WIDTH)
                        for at_edge in range(0, (columns - w * m) * WIDTH, WIDTH):
                            store(y, to + at_edge, load(edge, at_edge))
                    to += columns * WIDTH
                at += WIDTH


@compiled
def outputs_back(dy, outputs, rows, columns, down, right, k, planes, first, vectors):
    """Compute the gradient for the transformed output of a block.

    The arguments are those of :func:`transform_back`; ``planes`` is the output.
    """
    m, n = sides(k)
    row, plane = row_length(vectors), plane_length(outputs, vectors)
    pixels, square = scratch(m * m * WIDTH), scratch(m * n * WIDTH)
    for o in range(outputs):
        to = o * row + first * WIDTH
        for h in range(down):
            for w in range(right):
                for r in range(m):
                    at = ((o * rows + h * m + r) * columns + w * m) * WIDTH
                    for c in range(m):
                        value = splat(np.float32(0))
                        if h * m + r < rows and w * m + c < columns:
                            value = load(dy, at + c * WIDTH)
                        store(pixels, (r * m + c) * WIDTH, value)
                for r in range(m):
                    at = r * m * WIDTH
                    transform(OUTPUTS_BACK, k, pixels, at, WIDTH, square, r * n * WIDTH, WIDTH)
                for c in range(n):
                    place = to + c * plane
                    transform(
                        OUTPUTS_BACK, k, square, c * WIDTH, n * WIDTH, planes, place, n * plane
                    )
                to += WIDTH


def _define_multiply(channels: int) -> Any:
    @compiled
    def multiply(weights, tap, images, at, row, step, terms, out, to, count):
        sums = zeros(channels, 2)
        for _ in range(terms):
            sums = add_scaled(sums, weights, tap, images, at, step)
            at += row
            tap += channels
        store_sums(sums, out, to, row, step, count)

    return multiply


_multiply_large, _multiply_small = _define_multiply(TILE), _define_multiply(SMALL)


@compiled
def multiply(weights, images, out, positions, inputs, outputs, vectors):
    """Multiply transformed weights and images, and sum over the inputs.

    Args:
        weights: flat ``[positions, weight_plane(outputs, inputs)]``.
        images: flat ``[positions, plane_length(inputs, vectors)]``.
        out: output, flat ``[positions, plane_length(outputs, vectors)]``.
        positions, inputs, outputs, vectors: sizes.
    """
    row, ranges = row_length(vectors), tile_ranges(outputs)
    for p in range(positions):
        for t in range(0, vectors, 2):  # the images of two vectors stay in the L1 cache
            step = WIDTH if t + 1 < vectors else 0  # an odd last vector is computed twice
            at = p * plane_length(inputs, vectors) + t * WIDTH
            tap = p * weight_plane(outputs, inputs)
            for o, end in ranges:
                to = p * plane_length(outputs, vectors) + o * row + t * WIDTH
                sizes = row, step, inputs, out, to, end - o
                if tile_size(o, outputs) == TILE:
                    _multiply_large(weights, tap, images, at, *sizes)
                    tap += TILE * inputs
                else:
                    _multiply_small(weights, tap, images, at, *sizes)
                    tap += SMALL * inputs


@compiled
def multiply_back(gradients, images, positions, inputs, outputs, vectors, wide, sums):
    """Add the gradient for the transformed weights to ``sums``.

    Args:
        gradients: flat ``[positions, plane_length(outputs, vectors)]``.
        images: flat ``[positions, plane_length(inputs, vectors)]``.
        positions, inputs, outputs, vectors: sizes.
        wide: ``inputs``, rounded up to whole vectors.
        sums: updated; flat ``[positions, outputs, wide]``.
    """
    row = row_length(vectors)
    products = scratch((wide + COLUMNS) * ROWS * WIDTH)
    products[:] = 0
    for p in range(positions):
        for o in range(0, outputs, ROWS):
            left = p * plane_length(outputs, vectors) + o * row
            for i in range(0, inputs, COLUMNS):
                right = p * plane_length(inputs, vectors) + i * row
                crossed = zeros(ROWS, COLUMNS)
                for t in range(0, vectors * WIDTH, WIDTH):
                    crossed = add_crossed(crossed, gradients, left + t, row, images, right + t, row)
                store_sums(crossed, products, i * ROWS * WIDTH, WIDTH, ROWS * WIDTH, ROWS)
            for r in range(min(ROWS, outputs - o)):
                to = (p * outputs + o + r) * wide
                for i in range(0, inputs, WIDTH):
                    more = totals(products, (i * ROWS + r) * WIDTH, ROWS * WIDTH)
                    store(sums, to + i, load(sums, to + i) + more)
