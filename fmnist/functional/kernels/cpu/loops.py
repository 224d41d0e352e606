"""Parallel loops over lanes and blocks of images, by Numba, called by blocks.py.

The shapes of the arrays are in the docstring of blocks.py. Work is divided by lane and block,
independently of the number of threads, and sums run over the blocks in order. The bits of a result
therefore depend neither on the number of threads nor on the other lanes.

What a thread does is in tasks.py: Numba compiles parallel functions much more slowly than others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from fmnist.functional.kernels.cpu import tasks
from fmnist.functional.kernels.cpu.layout import fill_tiles, whole_tiles

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
    tiles = np.empty((lanes, whole_tiles(outputs) * weight[0, 0].size), np.float32)
    for lane in prange(lanes):
        fill_tiles(weight[lane], tiles[lane])
    means, squares = np.empty((2, lanes, blocks, outputs))
    for i in prange(lanes * blocks):
        task = np.int64(i)
        tasks.convolve_block(x, weight, tiles, y, means, squares, task, examples, before, after)
    scale = np.empty((lanes, outputs), np.float32)
    pixels = tasks.pixels(x, weight, before + after)
    tasks.merge_blocks(means, squares, gamma, mean, var, scale, pixels, examples, eps)
    for i in prange(lanes * blocks):
        task = np.int64(i)
        tasks.pool_block(
            x, weight, tiles, y, mean, scale, beta, pooled, centred, which, task, examples,
            before, after,
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
    tiles = np.empty((lanes, whole_tiles(outputs) * weight[0, 0].size), np.float32)
    for lane in prange(lanes):
        fill_tiles(weight[lane], tiles[lane])
    for i in prange(lanes * blocks):
        task = np.int64(i)
        tasks.evaluate_block(x, weight, tiles, mean, scale, beta, pooled, task, before, after)


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
    inputs, kernel = weight.shape[2], weight[0, 0, 0].size
    passed = np.empty((lanes, blocks, 2, outputs), np.float32)
    turned = np.empty((lanes, whole_tiles(inputs) * outputs * kernel if for_x else 0), np.float32)
    tiles = np.empty((lanes, 0 if y.size else whole_tiles(outputs) * inputs * kernel), np.float32)
    for i in prange(lanes * blocks):
        tasks.prepare_gradients(grad, centred, which, weight, passed, tiles, turned, np.int64(i))
    linear = np.empty((lanes, 3, outputs), np.float32)
    count = examples * tasks.pixels(x, weight, before + after)
    tasks.merge_passed(passed, gamma, var, linear, dgamma, dbeta, count, eps)
    for i in prange(lanes * parts.shape[1]):
        task = np.int64(i)
        tasks.gradients_of_chunk(
            grad, x, weight, mean, linear, y, which, tiles, turned, dx, parts, task, examples,
            before, after,
        )  # fmt: skip
