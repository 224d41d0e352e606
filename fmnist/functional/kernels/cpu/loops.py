"""Parallel loops over lanes and blocks of images, by Numba, called by blocks.py.

The shapes of the arrays are in the docstring of blocks.py. Work is divided by lane and block,
independently of the number of threads, and sums run over the blocks in order. The bits of a result
therefore depend neither on the number of threads nor on the other lanes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from fmnist.functional.kernels.cpu.convolution import (
    OUTPUTS,
    TAPS,
    convolve_tile,
    input_gradient,
    tap_places,
    weight_gradient,
    write_gradient,
)
from fmnist.functional.kernels.cpu.layout import (
    TILE,
    fill_framed,
    fill_tiles,
    scratch,
    tile_ranges,
    whole_tiles,
)
from fmnist.functional.kernels.cpu.pooling import (
    measure,
    merge,
    pool,
    spread_gradient,
    sums_of_passed,
    valid_examples,
)
from fmnist.functional.kernels.cpu.simd import WIDTH

STRIP = 8192
"""Floats of a strip of a few channels of dy: 32 KB, which fit in the L1 cache."""

SUMS = 1 << 15
"""Floats of the sums of the weight gradient at a time: 128 KB, a part of the L2 cache."""

_parallel: Any = njit(parallel=True, cache=True, nogil=True)


@_parallel
def forward(
    x, weight, gamma, beta, y, pooled, centred, which, mean, var, examples, eps, before, after
):  # fmt: skip
    """Compute the operation with the statistics of the batch.

    It takes two passes over the blocks, because pooling needs the statistics of all blocks.

    Args:
        x, weight, gamma, beta: inputs.
        y, pooled, centred, which, mean, var: outputs, which are overwritten; ``y`` only if it is
            not empty, otherwise it is computed in both passes.
        examples: number of examples, without the padding.
        eps: added to the variance.
        before, after: the frame of the images.
    """
    lanes, blocks, outputs = pooled.shape[:3]
    inputs, height, width, k, rows, columns = _sizes(x, weight, before, after)
    tiles = np.empty((lanes, whole_tiles(outputs) * inputs * k * k), np.float32)
    for lane in prange(lanes):
        fill_tiles(weight[lane], tiles[lane])
    plane, small = rows * columns * WIDTH, (rows // 2) * (columns // 2) * WIDTH
    means, squares = np.empty((2, lanes, blocks, outputs))
    for task in prange(lanes * blocks):
        lane, block = divmod(np.int64(task), blocks)
        image = _framed(x, lane, block, block + 1, before, after)
        valid, own = valid_examples(block, examples), scratch(0 if y.size else TILE * plane)
        for o, end in tile_ranges(outputs):
            out = y[lane, block].reshape(-1)[o * plane : end * plane] if y.size else own
            convolve_tile(image, tiles[lane], out, o, inputs, outputs, 0, rows, height, width, k)
            measure(out, plane, means[lane, block, o:end], squares[lane, block, o:end], valid)
    scale = np.empty((lanes, outputs), np.float32)
    for lane in range(lanes):
        for c in range(outputs):
            mean[lane, c], variance = merge(
                means[lane, :, c], squares[lane, :, c], examples, rows * columns
            )
            var[lane, c] = variance
            scale[lane, c] = gamma[lane, c] / np.sqrt(variance + eps)
    for task in prange(lanes * blocks):
        lane, block = divmod(np.int64(task), blocks)
        image = _framed(x, lane, block, block + 1 if not y.size else block, before, after)
        valid, own = valid_examples(block, examples), scratch(0 if y.size else TILE * plane)
        for o, end in tile_ranges(outputs):
            out = y[lane, block].reshape(-1)[o * plane : end * plane] if y.size else own
            if not y.size:
                convolve_tile(
                    image, tiles[lane], out, o, inputs, outputs, 0, rows, height, width, k
                )
            pool(
                out, mean[lane, o:end], scale[lane, o:end], beta[lane, o:end], valid, rows,
                columns, pooled[lane, block].reshape(-1)[o * small :],
                centred[lane, block].reshape(-1)[o * small :],
                which[lane, block].reshape(-1)[o * small :],
            )  # fmt: skip


@_parallel
def forward_given(x, weight, mean, scale, beta, pooled, before, after):
    """Compute the operation with a given mean and variance.

    Args:
        x, weight, mean, beta: inputs.
        scale: ``gamma / sqrt(var + eps)``, ``[lanes, outputs]``.
        pooled: output, which is overwritten.
        before, after: the frame of the images.
    """
    lanes, blocks, outputs = pooled.shape[:3]
    inputs, height, width, k, rows, columns = _sizes(x, weight, before, after)
    tiles = np.empty((lanes, whole_tiles(outputs) * inputs * k * k), np.float32)
    for lane in prange(lanes):
        fill_tiles(weight[lane], tiles[lane])
    plane, small = rows * columns * WIDTH, (rows // 2) * (columns // 2) * WIDTH
    valid = np.ones(WIDTH, np.float32)
    for task in prange(lanes * blocks):
        lane, block = divmod(np.int64(task), blocks)
        image = _framed(x, lane, block, block + 1, before, after)
        y, centred, which = (
            scratch(TILE * plane),
            scratch(TILE * small),
            np.empty(TILE * small, np.uint8),
        )
        for o, end in tile_ranges(outputs):
            convolve_tile(image, tiles[lane], y, o, inputs, outputs, 0, rows, height, width, k)
            pool(
                y, mean[lane, o:end], scale[lane, o:end], beta[lane, o:end], valid, rows, columns,
                pooled[lane, block].reshape(-1)[o * small :], centred, which,
            )  # fmt: skip


@njit(cache=True, nogil=True)
def _sizes(x, weight, before, after):
    """Return the sizes of a convolution: inputs, framed height and width, k, rows, columns."""
    inputs, height, width = x.shape[2:5]
    k, frame = weight.shape[3], before + after
    rows, columns = height + frame - k + 1, width + frame - k + 1
    return inputs, height + frame, width + frame, k, rows, columns


@njit(cache=True, nogil=True)
def _framed(x, lane, first, end, before, after):
    """Return the images of some blocks with their frame, flat ``[end - first, ...]``."""
    _, blocks, inputs, height, width, _ = x.shape
    size = inputs * height * width * WIDTH
    at = ((lane if x.shape[0] > 1 else 0) * blocks + first) * size
    images = x.reshape(-1)[at : at + (end - first) * size]
    frame = before + after
    if frame == 0:
        return images
    large = inputs * (height + frame) * (width + frame) * WIDTH
    framed = scratch((end - first) * large)
    for i in range(end - first):
        fill_framed(
            images[i * size : (i + 1) * size], inputs, height, width, before, after,
            framed[i * large : (i + 1) * large],
        )  # fmt: skip
    return framed


@njit(cache=True, nogil=True)
def _strip(rows, columns):
    """Return the rows of a strip of dy, even or all, and how many strips fit in the L1 cache."""
    row = OUTPUTS * columns * WIDTH
    count = -(-rows * row // STRIP)
    high = -(-rows // count)
    high = min(rows, high + high % 2)
    return high, max(1, STRIP // (high * row))


@njit(cache=True, nogil=True)
def _strips(blocks, rows, high):
    """Return the block, the first row and the end of each strip, int64 ``[strips, 3]``."""
    strips = np.empty((blocks * -(-rows // high), 3), np.int64)
    at = 0
    for block in range(blocks):
        for top in range(0, rows, high):
            strips[at] = block, top, min(top + high, rows)
            at += 1
    return strips


@_parallel
def backward(
    grad, x, weight, gamma, mean, var, y, centred, which,
    dx, parts, dgamma, dbeta, examples, eps, for_x, before, after,
):  # fmt: skip
    """Compute the gradients.

    Args:
        grad, x, weight, gamma, mean, var, y, centred, which: inputs; if ``y`` is empty, it is
            computed again.
        dx: output with the shape of ``x``; not written unless ``for_x``.
        parts: output ``[lanes, chunks, outputs, inputs, k, k]``. Its sum over the chunks, each a
            range of blocks, is the gradient for ``weight``.
        dgamma, dbeta: outputs ``[lanes, outputs]``.
        examples: number of examples, without the padding.
        eps: added to the variance.
        for_x: whether to compute ``dx``.
        before, after: the frame of the images.
    """
    lanes, blocks, outputs = grad.shape[:3]
    inputs, height, width, k, rows, columns = _sizes(x, weight, before, after)
    passed = np.empty((lanes, blocks, 2, outputs), np.float32)
    for task in prange(lanes * blocks):
        lane, block = divmod(np.int64(task), blocks)
        sums_of_passed(
            grad[lane, block].reshape(-1), centred[lane, block].reshape(-1),
            which[lane, block].reshape(-1), passed[lane, block],
        )  # fmt: skip
    # The gradient for y is scale * d + slope * (y - mean) + constant, with d as in blocks.py.
    scale, slope, constant = np.empty((3, lanes, outputs), np.float32)
    count = examples * rows * columns
    for lane in range(lanes):
        for c in range(outputs):
            sums, dot = 0.0, 0.0
            for block in range(blocks):
                sums += passed[lane, block, 0, c]
                dot += passed[lane, block, 1, c]
            deviation = np.sqrt(np.float64(var[lane, c]) + eps)
            ratio = gamma[lane, c] / deviation
            scale[lane, c], constant[lane, c] = ratio, -ratio * sums / count
            slope[lane, c] = -ratio * dot / (count * deviation**2)
            dgamma[lane, c], dbeta[lane, c] = dot / deviation, sums
    taps, kernel = inputs * k * k, k * k
    turned = np.empty((lanes, whole_tiles(inputs) * outputs * kernel if for_x else 0), np.float32)
    tiles = np.empty((lanes, 0 if y.size else whole_tiles(outputs) * taps), np.float32)
    for lane in prange(lanes):
        if for_x:
            fill_tiles(weight[lane].transpose(1, 0, 2, 3), turned[lane])
        if not y.size:
            fill_tiles(weight[lane], tiles[lane])
    chunks, plane = parts.shape[1], rows * columns * WIDTH
    image = inputs * height * width * WIDTH
    near = min(inputs, max(1, SUMS // (TILE * kernel * WIDTH)))  # input channels at a time
    high, several = _strip(rows, columns)
    keep = for_x or near < inputs or several > 1  # dy of all blocks is needed at once, or again
    padded = -(-outputs // OUTPUTS) * OUTPUTS
    for task in prange(lanes * chunks):
        lane, chunk = divmod(np.int64(task), chunks)
        begin, end = chunk * blocks // chunks, (chunk + 1) * blocks // chunks
        images = _framed(x, lane, begin, end, before, after)
        kept = padded * plane if keep else 0
        dy = scratch(kept * (end - begin) if keep else TILE * plane)
        # No sum of a channel that does not exist is used, but garbage may be slow to compute with.
        for block in range(end - begin if keep else 0):
            dy[block * kept + outputs * plane : (block + 1) * kept] = 0
        if not keep:
            dy[:] = 0
        again = scratch(0 if y.size else TILE * plane)
        places = tap_places(inputs, height, width, k)
        strips = _strips(end - begin, rows, high)
        size = (near * kernel + TAPS) * OUTPUTS * WIDTH
        sums = scratch(TILE // OUTPUTS * size)
        part = parts[lane, chunk].reshape(-1)
        for o, end_o in tile_ranges(outputs):
            count, here = end_o - o, dy[o * plane :] if keep else dy
            small = o * (rows // 2) * (columns // 2) * WIDTH
            for first in range(0, taps, near * kernel):
                stop = min(first + near * kernel, taps)
                for j in range(0, len(strips), several):
                    group = strips[j : j + several]
                    for i in range(len(group) if first == 0 else 0):
                        block, top, bottom = begin + group[i, 0], group[i, 1], group[i, 2]
                        if y.size:
                            from_y = y[lane, block].reshape(-1)[o * plane :]
                        else:
                            from_y = again
                            convolve_tile(
                                images[group[i, 0] * image :], tiles[lane], again, o, inputs,
                                outputs, top, bottom, height, width, k,
                            )  # fmt: skip
                        spread_gradient(
                            grad[lane, block].reshape(-1)[small:], from_y,
                            which[lane, block].reshape(-1)[small:], count, top, bottom,
                            mean[lane, o:], scale[lane, o:], slope[lane, o:], constant[lane, o:],
                            valid_examples(block, examples), here[group[i, 0] * kept :],
                            rows, columns,
                        )  # fmt: skip
                    for more in range(0, count, OUTPUTS):
                        weight_gradient(
                            here[more * plane :], kept, images, image,
                            sums[more // OUTPUTS * size :], j == 0, group, places, first, stop,
                            width, plane, k,
                        )  # fmt: skip
                for c in range(count):
                    write_gradient(
                        sums[c // OUTPUTS * size + c % OUTPUTS * WIDTH :],
                        part[(o + c) * taps + first :], stop - first,
                    )  # fmt: skip
        if for_x:
            for block in range(begin, end):
                input_gradient(
                    dy[(block - begin) * kept :], turned[lane], dx[lane, block].reshape(-1),
                    inputs, outputs, height, width, k, before, after,
                )  # fmt: skip
