"""Parallel loops over lanes and blocks of images, by Numba, called by blocks.py.

The shapes of the arrays are in the docstring of blocks.py. Work is divided by lane and block,
independently of the number of threads, and sums run over the blocks in order. The bits of a result
therefore depend neither on the number of threads nor on the other lanes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from fmnist.functional.kernels.cpu.pooling import (
    measure,
    merge,
    pool,
    spread_gradient,
    sums_of_passed,
    valid_examples,
)
from fmnist.functional.kernels.cpu.simd import WIDTH, load, total
from fmnist.functional.kernels.cpu.tiles import (
    TILE,
    convolve,
    input_gradient,
    tiled,
    turned,
    weight_gradient,
    whole_tiles,
)

NEAR = 6144  # floats of a strip of a tile's gradient: 24 KB, which fit in the L1 cache

_parallel: Any = njit(parallel=True, cache=True, nogil=True)


@_parallel
def forward(x, weight, gamma, beta, y, pooled, centred, which, mean, var, examples, eps):
    """Compute the operation with the statistics of the batch.

    It takes two passes over the blocks, because pooling needs the statistics of all blocks.

    Args:
        x, weight, gamma, beta: inputs.
        y, pooled, centred, which, mean, var: outputs, which are overwritten.
        examples: number of examples, without the padding.
        eps: added to the variance.
    """
    lanes, blocks, outputs, rows, columns, _ = y.shape
    inputs, height, width = x.shape[2:5]
    k = weight.shape[3]
    weights = tiled(weight)
    means, squares = np.empty((2, lanes, blocks, outputs))
    for task in prange(lanes * blocks):
        lane, block = divmod(np.int64(task), blocks)
        out = y[lane, block].reshape(-1)
        image = x[lane if x.shape[0] > 1 else 0, block].reshape(-1)
        convolve(image, weights[lane], out, inputs, outputs, height, width, k)
        measure(out, means[lane, block], squares[lane, block], valid_examples(block, examples))
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
        pool(
            y[lane, block].reshape(-1), mean[lane], scale[lane], beta[lane],
            valid_examples(block, examples), rows, columns, pooled[lane, block].reshape(-1),
            centred[lane, block].reshape(-1), which[lane, block].reshape(-1),
        )  # fmt: skip


@_parallel
def forward_given(x, weight, mean, scale, beta, pooled):
    """Compute the operation with a given mean and variance.

    Args:
        x, weight, mean, beta: inputs.
        scale: ``gamma / sqrt(var + eps)``, ``[lanes, outputs]``.
        pooled: output, which is overwritten.
    """
    lanes, blocks, outputs = pooled.shape[:3]
    inputs, height, width = x.shape[2:5]
    k = weight.shape[3]
    rows, columns = height - k + 1, width - k + 1
    weights, all_valid = tiled(weight), np.ones(WIDTH, np.float32)
    for task in prange(lanes * blocks):
        lane, block = divmod(np.int64(task), blocks)
        y = np.empty(outputs * rows * columns * WIDTH, np.float32)
        image = x[lane if x.shape[0] > 1 else 0, block].reshape(-1)
        convolve(image, weights[lane], y, inputs, outputs, height, width, k)
        out = pooled[lane, block].reshape(-1)
        centred, which = np.empty(out.size, np.float32), np.empty(out.size, np.uint8)
        pool(y, mean[lane], scale[lane], beta[lane], all_valid, rows, columns, out, centred, which)


@_parallel
def backward(
    grad, x, weight, gamma, mean, var, y, centred, which,
    dx, parts, dgamma, dbeta, examples, eps, for_x,
):  # fmt: skip
    """Compute the gradients.

    Args:
        grad, x, weight, gamma, mean, var, y, centred, which: inputs.
        dx: output with the shape of ``x``; not written unless ``for_x``.
        parts: output ``[lanes, chunks, outputs, inputs, k, k]``. Its sum over the chunks, each a
            range of blocks, is the gradient for ``weight``.
        dgamma, dbeta: outputs ``[lanes, outputs]``.
        examples: number of examples, without the padding.
        eps: added to the variance.
        for_x: whether to compute ``dx``.
    """
    lanes, blocks, outputs, rows, columns, _ = y.shape
    inputs, height, width = x.shape[2:5]
    k = weight.shape[3]
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
    weights = turned(weight) if for_x else np.empty((lanes, 0), np.float32)
    chunks, padded, taps = parts.shape[1], whole_tiles(outputs), inputs * k * k
    strip = max(2, NEAR // (TILE * columns * WIDTH) // 2 * 2)
    for task in prange(lanes * chunks):
        lane, chunk = divmod(np.int64(task), chunks)
        sums = np.zeros(padded * taps * WIDTH, np.float32)
        dy = np.empty(padded * rows * columns * WIDTH, np.float32)
        dy[outputs * rows * columns * WIDTH :] = 0
        for block in range(chunk * blocks // chunks, (chunk + 1) * blocks // chunks):
            image = x[lane if x.shape[0] > 1 else 0, block].reshape(-1)
            from_grad, from_y = grad[lane, block].reshape(-1), y[lane, block].reshape(-1)
            places, examples_here = which[lane, block].reshape(-1), valid_examples(block, examples)
            for o in range(0, outputs, TILE):
                channels = (o, min(o + TILE, outputs))
                for top in range(0, rows, strip):
                    bottom = min(top + strip, rows)
                    spread_gradient(
                        from_grad, from_y, places, channels, top, bottom, mean[lane], scale[lane],
                        slope[lane], constant[lane], examples_here, dy, rows, columns,
                    )  # fmt: skip
                    weight_gradient(dy, image, sums, o, top, bottom, inputs, height, width, k)
            if for_x:
                out = dx[lane, block].reshape(-1)
                input_gradient(dy, weights[lane], out, inputs, outputs, height, width, k)
        part = parts[lane, chunk].reshape(-1)
        for tap in range(outputs * taps):
            part[tap] = total(load(sums, tap * WIDTH))
