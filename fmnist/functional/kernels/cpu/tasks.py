"""What a thread does for a lane and a block of images, or for a range of blocks, by Numba.

The arrays are those of loops.py, for all lanes and blocks. A task is the number of a lane and a
block, or of a lane and a range of blocks, which are counted first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

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
    clear,
    fill_framed,
    fill_tiles,
    scratch,
    tile_ranges,
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

_compiled: Any = njit(cache=True, nogil=True)


@_compiled
def _sizes(x, weight, before, after):
    """Return the sizes of a convolution: inputs, framed height and width, k, rows, columns."""
    inputs, height, width = x.shape[2:5]
    k, frame = weight.shape[3], before + after
    rows, columns = height + frame - k + 1, width + frame - k + 1
    return inputs, height + frame, width + frame, k, rows, columns


@_compiled
def pixels(x, weight, frame):
    """Return the number of pixels of an image after the convolution."""
    _, _, _, _, rows, columns = _sizes(x, weight, frame, 0)
    return rows * columns


@_compiled
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


@_compiled
def convolve_block(x, weight, tiles, y, means, squares, task, examples, before, after):
    """Compute the convolution of a block, and the mean and squared deviations of each channel.

    The convolution is written to ``y`` unless that is empty.
    """
    lane, block = divmod(task, x.shape[1])
    outputs = weight.shape[1]
    inputs, height, width, k, rows, columns = _sizes(x, weight, before, after)
    plane = rows * columns * WIDTH
    image = _framed(x, lane, block, block + 1, before, after)
    valid, own = valid_examples(block, examples), scratch(0 if y.size else TILE * plane)
    for o, end in tile_ranges(outputs):
        out = y[lane, block].reshape(-1)[o * plane : end * plane] if y.size else own
        convolve_tile(
            image, tiles[lane], out, o, inputs, outputs, 0, rows, height, width, k, before, after
        )
        measure(out, plane, means[lane, block, o:end], squares[lane, block, o:end], valid)


@_compiled
def merge_blocks(means, squares, gamma, mean, var, scale, pixels, examples, eps):
    """Compute the statistics of each channel from those of its blocks, and the scale."""
    for lane in range(mean.shape[0]):
        for c in range(mean.shape[1]):
            mean[lane, c], variance = merge(
                means[lane, :, c], squares[lane, :, c], examples, pixels
            )
            var[lane, c] = variance
            scale[lane, c] = gamma[lane, c] / np.sqrt(variance + eps)


@_compiled
def pool_block(
    x, weight, tiles, y, mean, scale, beta, pooled, centred, which, task, examples, before, after
):  # fmt: skip
    """Apply batch norm, ReLU and pooling to a block. If ``y`` is empty, convolve it again."""
    lane, block = divmod(task, x.shape[1])
    outputs = weight.shape[1]
    inputs, height, width, k, rows, columns = _sizes(x, weight, before, after)
    plane, small = rows * columns * WIDTH, (rows // 2) * (columns // 2) * WIDTH
    image = _framed(x, lane, block, block if y.size else block + 1, before, after)
    valid, own = valid_examples(block, examples), scratch(0 if y.size else TILE * plane)
    for o, end in tile_ranges(outputs):
        out = y[lane, block].reshape(-1)[o * plane : end * plane] if y.size else own
        if not y.size:
            convolve_tile(
                image,
                tiles[lane],
                out,
                o,
                inputs,
                outputs,
                0,
                rows,
                height,
                width,
                k,
                before,
                after,
            )
        pool(
            out, mean[lane, o:end], scale[lane, o:end], beta[lane, o:end], valid, rows, columns,
            pooled[lane, block].reshape(-1)[o * small :],
            centred[lane, block].reshape(-1)[o * small :],
            which[lane, block].reshape(-1)[o * small :],
        )  # fmt: skip


@_compiled
def evaluate_block(x, weight, tiles, mean, scale, beta, pooled, task, before, after):
    """Compute the operation of a block with a given mean and scale."""
    lane, block = divmod(task, x.shape[1])
    outputs = weight.shape[1]
    inputs, height, width, k, rows, columns = _sizes(x, weight, before, after)
    small = (rows // 2) * (columns // 2) * WIDTH
    image, y = (
        _framed(x, lane, block, block + 1, before, after),
        scratch(TILE * rows * columns * WIDTH),
    )
    centred, which = scratch(TILE * small), np.empty(TILE * small, np.uint8)
    valid = np.ones(WIDTH, np.float32)
    for o, end in tile_ranges(outputs):
        convolve_tile(
            image, tiles[lane], y, o, inputs, outputs, 0, rows, height, width, k, before, after
        )
        pool(
            y, mean[lane, o:end], scale[lane, o:end], beta[lane, o:end], valid, rows, columns,
            pooled[lane, block].reshape(-1)[o * small :], centred, which,
        )  # fmt: skip


@_compiled
def prepare_gradients(grad, centred, which, weight, passed, tiles, turned, task):
    """Sum the gradients of a block that pass the ReLU, and arrange the weights of its lane."""
    lane, block = divmod(task, grad.shape[1])
    if block == 0:
        if turned.size:
            fill_tiles(weight[lane].transpose(1, 0, 2, 3), turned[lane])
        if tiles.size:
            fill_tiles(weight[lane], tiles[lane])
    sums_of_passed(
        grad[lane, block].reshape(-1), centred[lane, block].reshape(-1),
        which[lane, block].reshape(-1), passed[lane, block],
    )  # fmt: skip


@_compiled
def merge_passed(passed, gamma, var, linear, dgamma, dbeta, count, eps):
    """Compute dgamma, dbeta and the gradient for y as a function of d, which is in blocks.py.

    It is ``linear[0] * d + linear[1] * (y - mean) + linear[2]``.
    """
    for lane in range(gamma.shape[0]):
        for c in range(gamma.shape[1]):
            sums, dot = 0.0, 0.0
            for block in range(passed.shape[1]):
                sums += passed[lane, block, 0, c]
                dot += passed[lane, block, 1, c]
            deviation = np.sqrt(np.float64(var[lane, c]) + eps)
            ratio = gamma[lane, c] / deviation
            linear[lane, 0, c] = ratio
            linear[lane, 1, c] = -ratio * dot / (count * deviation**2)
            linear[lane, 2, c] = -ratio * sums / count
            dgamma[lane, c], dbeta[lane, c] = dot / deviation, sums


@_compiled
def _strip(rows, columns):
    """Return the rows of a strip of dy, even or all, and how many strips fit in the L1 cache."""
    row = OUTPUTS * columns * WIDTH
    count = -(-rows * row // STRIP)
    high = -(-rows // count)
    high = min(rows, high + high % 2)
    return high, max(1, STRIP // (high * row))


@_compiled
def _strips(blocks, rows, high):
    """Return the block, the first row and the end of each strip, int64 ``[strips, 3]``."""
    strips = np.empty((blocks * -(-rows // high), 3), np.int64)
    at = 0
    for block in range(blocks):
        for top in range(0, rows, high):
            strips[at, 0], strips[at, 1] = block, top
            strips[at, 2] = min(top + high, rows)
            at += 1
    return strips


@_compiled
def gradients_of_chunk(
    grad, x, weight, mean, linear, y, which, tiles, turned, dx, parts, task, examples,
    before, after,
):  # fmt: skip
    """Compute dx of a range of blocks, and their part of the gradient for the weights.

    ``turned`` is empty if dx is not wanted, ``tiles`` if ``y`` is not.
    """
    blocks, outputs, chunks = x.shape[1], weight.shape[1], parts.shape[1]
    inputs, height, width, k, rows, columns = _sizes(x, weight, before, after)
    taps, kernel, plane = inputs * k * k, k * k, rows * columns * WIDTH
    image, for_x = inputs * height * width * WIDTH, turned.size > 0
    near = min(inputs, max(1, SUMS // (TILE * kernel * WIDTH)))  # input channels at a time
    high, several = _strip(rows, columns)
    keep = for_x or near < inputs or several > 1  # dy of all blocks is needed at once, or again
    padded = -(-outputs // OUTPUTS) * OUTPUTS
    lane, chunk = divmod(task, chunks)
    begin, end = chunk * blocks // chunks, (chunk + 1) * blocks // chunks
    images = _framed(x, lane, begin, end, before, after)
    kept = padded * plane if keep else 0
    dy = scratch(kept * (end - begin) if keep else TILE * plane)
    # No sum of a channel that does not exist is used, but garbage may be slow to compute with.
    for block in range(end - begin if keep else 0):
        clear(dy, block * kept + outputs * plane, (block + 1) * kept)
    if not keep:
        clear(dy, 0, len(dy))
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
                            outputs, top, bottom, height, width, k, before, after,
                        )  # fmt: skip
                    spread_gradient(
                        grad[lane, block].reshape(-1)[small:], from_y,
                        which[lane, block].reshape(-1)[small:], count, top, bottom,
                        mean[lane, o:], linear[lane, :, o:], valid_examples(block, examples),
                        here[group[i, 0] * kept :], rows, columns,
                    )  # fmt: skip
                for more in range(0, count, OUTPUTS):
                    weight_gradient(
                        here[more * plane :], kept, images, image,
                        sums[more // OUTPUTS * size :], j == 0, group, places, first, stop,
                        (before, height - after), width, plane, k,
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
