"""The jobs of conv_block on a CPU: what is done for a lane, or for a block of images, by Numba.

A task is the number of a lane, of a lane and a block, or of a lane and a range of blocks, which are
counted first. The arrays are those of blocks.py, and those that pass results from job to job:

* ``tiles``, ``turned`` ``[lanes, ...]``: the weights, and those with inputs and outputs exchanged
* ``means``, ``squares`` ``[lanes, blocks, outputs]``, float64: the mean of a channel of a block,
  and the sum of squared deviations from it
* ``scale`` ``[lanes, outputs]``: ``gamma / sqrt(var + eps)``
* ``passed`` ``[lanes, blocks, 2, outputs]``: sums of the gradients that pass the ReLU
* ``linear`` ``[lanes, 3, outputs]``: the gradient for y as a function of ``d``, see blocks.py
* ``parts [lanes, chunks, outputs, inputs, k, k]``: the gradient for the weights, of each range of
  blocks

Sums run over the blocks in order. The bits of a result therefore depend neither on the threads nor
on the other lanes.
"""

from __future__ import annotations

import numpy as np

from fmnist.functional.kernels.cpu.compiled import compiled
from fmnist.functional.kernels.cpu.convolution import (
    OUTPUTS,
    TAPS,
    convolve_tile,
    input_gradient,
    tap_places,
    weight_gradient,
    write_gradient,
)
from fmnist.functional.kernels.cpu.jobs import (
    Job,
    doubles,
    floats,
    number,
    octets,
    of_block,
    of_lane,
    places,
    real,
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

(
    X, WEIGHT, Y, POOLED, CENTRED, WHICH, GAMMA, BETA, MEAN, VAR, SCALE, TILES, TURNED, MEANS,
    SQUARES, GRAD, PASSED, LINEAR, DX, PARTS, DGAMMA, DBETA,
) = places(22)  # fmt: skip
"""The places of the arrays in a table."""

EXAMPLES, BEFORE, AFTER, SIZE, EPS = places(5)
"""The places of the numbers: examples, the frame, blocks of a group (winograd.py), and epsilon."""

STRIP = 8192
"""Floats of a strip of a few channels of dy: 32 KB, which fit in the L1 cache."""

SUMS = 1 << 15
"""Floats of the sums of the weight gradient at a time: 128 KB, a part of the L2 cache."""


@compiled
def _sizes(x, weight, before, after):
    """Return the sizes of a convolution: inputs, framed height and width, k, rows, columns."""
    inputs, height, width = x.shape[2:5]
    k, frame = weight.shape[3], before + after
    rows, columns = height + frame - k + 1, width + frame - k + 1
    return inputs, height + frame, width + frame, k, rows, columns


@compiled
def framed(x, lane, first, end, before, after):
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
    fill_framed(images, (end - first) * inputs, height, width, before, after, framed)
    return framed


def _arrange_weights(table, lane):
    """Arrange the weights of a lane in tiles."""
    fill_tiles(floats(table, WEIGHT)[lane, :, :, :, :, 0], of_lane(table, TILES, lane))


def _convolve_block(table, task):
    """Compute the convolution of a block, and the mean and squared deviations of each channel.

    The convolution is written to ``y`` unless that is empty.
    """
    x, weight = floats(table, X), floats(table, WEIGHT)
    means, squares = doubles(table, MEANS), doubles(table, SQUARES)
    before, after = number(table, BEFORE), number(table, AFTER)
    lane, block = divmod(task, x.shape[1])
    y, tiles = of_block(table, Y, lane, block), of_lane(table, TILES, lane)
    outputs = weight.shape[1]
    inputs, height, width, k, rows, columns = _sizes(x, weight, before, after)
    plane = rows * columns * WIDTH
    image = framed(x, lane, block, block + 1, before, after)
    own = scratch(0 if y.size else TILE * plane)
    valid = valid_examples(block, number(table, EXAMPLES))
    for o, end in tile_ranges(outputs):
        out = y[o * plane : end * plane] if y.size else own
        convolve_tile(
            image, tiles, out, o, inputs, outputs, 0, rows, height, width, k,
            before, after,
        )  # fmt: skip
        measure(
            out, plane, means[lane, block].reshape(-1)[o:end],
            squares[lane, block].reshape(-1)[o:end], valid,
        )  # fmt: skip


def _merge_blocks(table, lane):
    """Compute the statistics of each channel of a lane from those of its blocks, and the scale."""
    x, weight = floats(table, X), floats(table, WEIGHT)
    _, _, _, _, rows, columns = _sizes(x, weight, number(table, BEFORE), number(table, AFTER))
    means, squares = doubles(table, MEANS)[lane], doubles(table, SQUARES)[lane]
    mean, var = of_lane(table, MEAN, lane), of_lane(table, VAR, lane)
    gamma, scale = of_lane(table, GAMMA, lane), of_lane(table, SCALE, lane)
    for c in range(len(mean)):
        mean[c], variance = merge(
            means[:, c, 0, 0, 0], squares[:, c, 0, 0, 0], number(table, EXAMPLES), rows * columns
        )
        var[c] = variance
        scale[c] = gamma[c] / np.sqrt(variance + real(table, EPS))


def _pool_block(table, task):
    """Apply batch norm, ReLU and pooling to a block. If ``y`` is empty, convolve it again.

    In evaluation nothing is kept for the gradient: ``centred`` is empty.
    """
    x, weight = floats(table, X), floats(table, WEIGHT)
    before, after = number(table, BEFORE), number(table, AFTER)
    lane, block = divmod(task, x.shape[1])
    y, tiles = of_block(table, Y, lane, block), of_lane(table, TILES, lane)
    mean, scale = of_lane(table, MEAN, lane), of_lane(table, SCALE, lane)
    beta, outputs = of_lane(table, BETA, lane), weight.shape[1]
    inputs, height, width, k, rows, columns = _sizes(x, weight, before, after)
    plane, small = rows * columns * WIDTH, (rows // 2) * (columns // 2) * WIDTH
    image = framed(x, lane, block, block if y.size else block + 1, before, after)
    own = scratch(0 if y.size else TILE * plane)
    valid = valid_examples(block, number(table, EXAMPLES))
    pooled = of_block(table, POOLED, lane, block)
    centred, which = of_block(table, CENTRED, lane, block), octets(table, WHICH)
    kept = which.size > 0
    own_centred = scratch(0 if kept else TILE * small)
    own_which = np.empty(0 if kept else TILE * small, np.uint8)
    for o, end in tile_ranges(outputs):
        out = y[o * plane : end * plane] if y.size else own
        if not y.size:
            convolve_tile(
                image, tiles, out, o, inputs, outputs, 0, rows, height, width, k,
                before, after,
            )  # fmt: skip
        pool(
            out, mean[o:end], scale[o:end], beta[o:end], valid, rows, columns,
            pooled[o * small :], centred[o * small :] if kept else own_centred,
            which[lane, block].reshape(-1)[o * small :] if kept else own_which,
        )  # fmt: skip


def _sum_passed(table, task):
    """Sum the gradients of a block that pass the ReLU."""
    passed = floats(table, PASSED)
    lane, block = divmod(task, passed.shape[1])
    sums_of_passed(
        of_block(table, GRAD, lane, block), of_block(table, CENTRED, lane, block),
        octets(table, WHICH)[lane, block].reshape(-1), passed[lane, block, :, :, 0, 0],
    )  # fmt: skip


def _merge_passed(table, lane):
    """Compute dgamma, dbeta and the gradient for y of a lane as a function of d.

    It is ``linear[0] * d + linear[1] * (y - mean) + linear[2]``.
    """
    x, weight, passed = floats(table, X), floats(table, WEIGHT), floats(table, PASSED)[lane]
    _, _, _, _, rows, columns = _sizes(x, weight, number(table, BEFORE), number(table, AFTER))
    count = number(table, EXAMPLES) * rows * columns
    gamma, var = of_lane(table, GAMMA, lane), of_lane(table, VAR, lane)
    linear = floats(table, LINEAR)[lane]
    dgamma, dbeta = of_lane(table, DGAMMA, lane), of_lane(table, DBETA, lane)
    for c in range(len(gamma)):
        sums, dot = 0.0, 0.0
        for block in range(passed.shape[0]):
            sums += passed[block, 0, c, 0, 0]
            dot += passed[block, 1, c, 0, 0]
        deviation = np.sqrt(np.float64(var[c]) + real(table, EPS))
        ratio = gamma[c] / deviation
        linear[0, c, 0, 0, 0] = ratio
        linear[1, c, 0, 0, 0] = -ratio * dot / (count * deviation**2)
        linear[2, c, 0, 0, 0] = -ratio * sums / count
        dgamma[c], dbeta[c] = dot / deviation, sums


@compiled
def _strip(rows, columns):
    """Return the rows of a strip of dy, even or all, and how many strips fit in the L1 cache."""
    row = OUTPUTS * columns * WIDTH
    count = -(-rows * row // STRIP)
    high = -(-rows // count)
    high = min(rows, high + high % 2)
    return high, max(1, STRIP // (high * row))


@compiled
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


def _gradients_of_chunk(table, task):
    """Compute dx of a range of blocks, and their part of the gradient for the weights.

    ``turned`` is empty if dx is not wanted, ``tiles`` if ``y`` is not.
    """
    x, weight = floats(table, X), floats(table, WEIGHT)
    y, which, parts = floats(table, Y), octets(table, WHICH), floats(table, PARTS)
    before, after, examples = number(table, BEFORE), number(table, AFTER), number(table, EXAMPLES)
    blocks, outputs, chunks = x.shape[1], weight.shape[1], parts.shape[1]
    inputs, height, width, k, rows, columns = _sizes(x, weight, before, after)
    taps, kernel, plane = inputs * k * k, k * k, rows * columns * WIDTH
    image = inputs * height * width * WIDTH
    lane, chunk = divmod(task, chunks)
    tiles, turned = of_lane(table, TILES, lane), of_lane(table, TURNED, lane)
    for_x = turned.size > 0
    near = min(inputs, max(1, SUMS // (TILE * kernel * WIDTH)))  # input channels at a time
    high, several = _strip(rows, columns)
    keep = for_x or near < inputs or several > 1  # dy of all blocks is needed at once, or again
    padded = -(-outputs // OUTPUTS) * OUTPUTS
    begin, end = chunk * blocks // chunks, (chunk + 1) * blocks // chunks
    images = framed(x, lane, begin, end, before, after)
    kept = padded * plane if keep else 0
    dy = scratch(kept * (end - begin) if keep else TILE * plane)
    # No sum of a channel that does not exist is used, but garbage may be slow to compute with.
    for block in range(end - begin if keep else 0):
        clear(dy, block * kept + outputs * plane, (block + 1) * kept)
    if not keep:
        clear(dy, 0, len(dy))
    again = scratch(0 if y.size else TILE * plane)
    positions = tap_places(inputs, height, width, k)
    strips = _strips(end - begin, rows, high)
    size = (near * kernel + TAPS) * OUTPUTS * WIDTH
    sums = scratch(TILE // OUTPUTS * size)
    mean, linear = of_lane(table, MEAN, lane), floats(table, LINEAR)[lane, :, :, 0, 0, 0]
    part = of_block(table, PARTS, lane, chunk)
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
                        from_y = of_block(table, Y, lane, block)[o * plane :]
                    else:
                        from_y = again
                        convolve_tile(
                            images[group[i, 0] * image :], tiles, again, o,
                            inputs, outputs, top, bottom, height, width, k, before, after,
                        )  # fmt: skip
                    spread_gradient(
                        of_block(table, GRAD, lane, block)[small:], from_y,
                        which[lane, block].reshape(-1)[small:], count, top, bottom,
                        mean[o:], linear[:, o:], valid_examples(block, examples),
                        here[group[i, 0] * kept :], rows, columns,
                    )  # fmt: skip
                for more in range(0, count, OUTPUTS):
                    weight_gradient(
                        here[more * plane :], kept, images, image,
                        sums[more // OUTPUTS * size :], j == 0, group, positions, first, stop,
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
                dy[(block - begin) * kept :], turned, of_block(table, DX, lane, block),
                inputs, outputs, height, width, k, before, after,
            )  # fmt: skip


arrange_weights, convolve_block = Job(_arrange_weights), Job(_convolve_block)
merge_blocks, pool_block = Job(_merge_blocks), Job(_pool_block)
sum_passed, merge_passed = Job(_sum_passed), Job(_merge_passed)
gradients_of_chunk = Job(_gradients_of_chunk)
