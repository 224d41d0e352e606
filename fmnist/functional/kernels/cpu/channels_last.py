"""Numba's kernels of norm_relu_pool for bfloat16 images with channels last in memory.

Arrays are ``[batch, rows, columns, channels]`` in C order. The inner loops run over the channels,
so LLVM vectorises them. NumPy has no bfloat16: arrays hold its bits as uint16, and arithmetic is in
float32. Work is divided by image, and the images are summed in order: the bits of a channel depend
neither on the number of threads nor on the other channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

from fmnist.functional.kernels.cpu.compiled import compiled
from fmnist.functional.kernels.cpu.pooling import DEAD

_parallel: Any = njit(parallel=True, cache=True, nogil=True, error_model="numpy")


@intrinsic
def _as_float(typing, bits):
    """Return the float32 of these bits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def _as_bits(typing, number):
    """Return the bits of a float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@compiled
def _read(bits):
    """Return a bfloat16 as float32."""
    return _as_float(np.uint32(bits) << np.uint32(16))


@compiled
def _rounded(number):
    """Return the bits of the nearest bfloat16; of two, that whose last bit is zero."""
    bits = _as_bits(np.float32(number))
    up = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    nan = np.uint32(0x7FC0)
    return np.uint16(((bits + up) >> np.uint32(16)) if number == number else nan)


@compiled
def _measure(x, mean, square):
    """Compute the mean and the sum of squared deviations of each channel of an image.

    The second pass uses deviations from the mean of the first and corrects both results.
    """
    rows, columns, channels = x.shape
    sums, rest = np.zeros(channels, np.float32), np.zeros(channels, np.float32)
    for r in range(rows):
        for s in range(columns):
            for c in range(channels):
                sums[c] += _read(x[r, s, c])
    count = np.float32(rows * columns)
    for c in range(channels):
        mean[c] = sums[c] / count
        sums[c] = 0
    for r in range(rows):
        for s in range(columns):
            for c in range(channels):
                d = _read(x[r, s, c]) - mean[c]
                rest[c] += d
                sums[c] += d * d
    for c in range(channels):
        off = rest[c] / count
        mean[c] += off
        # Not max(), which would make a zero of NaN.
        left = sums[c] - off * off * count
        square[c] = np.float32(0) if left < 0 else left


@compiled
def _merge(means, squares, pixels, mean, var):
    """Merge the statistics of the images, in float64. Source: Chan et al. (1979), equation 2.1."""
    batch, channels = means.shape
    m, q = np.zeros(channels), np.zeros(channels)
    for i in range(batch):
        share, weight = 1 / (i + 1), pixels * i / (i + 1)
        for c in range(channels):
            d = means[i, c] - m[c]
            m[c] += d * share
            q[c] += squares[i, c] + d * d * weight
    for c in range(channels):
        mean[c], var[c] = m[c], q[c] / (batch * pixels)


@compiled
def _pool(x, mean, scale, bias, pooled, centred, which):
    """Normalise an image, apply ReLU and pool. The first of equal pixels counts, or a NaN."""
    rows, columns, channels = pooled.shape
    for r in range(rows):
        for s in range(columns):
            first, second = x[2 * r, 2 * s], x[2 * r, 2 * s + 1]
            third, fourth = x[2 * r + 1, 2 * s], x[2 * r + 1, 2 * s + 1]
            to, to_centred, to_which = pooled[r, s], centred[r, s], which[r, s]
            for c in range(channels):
                best = _read(first[c]) - mean[c]
                top, place = best * scale[c] + bias[c], np.uint8(0)
                y = _read(second[c]) - mean[c]
                v = y * scale[c] + bias[c]
                if v > top or v != v:
                    best, top, place = y, v, np.uint8(1)
                y = _read(third[c]) - mean[c]
                v = y * scale[c] + bias[c]
                if v > top or v != v:
                    best, top, place = y, v, np.uint8(2)
                y = _read(fourth[c]) - mean[c]
                v = y * scale[c] + bias[c]
                if v > top or v != v:
                    best, top, place = y, v, np.uint8(3)
                dead = top <= 0
                to[c] = _rounded(np.float32(0) if dead else top)
                to_centred[c] = best
                to_which[c] = np.uint8(DEAD) if dead else place


@compiled
def _scale(weight, var, eps):
    scale = np.empty(len(weight), np.float32)
    for c in range(len(weight)):
        scale[c] = weight[c] / np.sqrt(np.float64(var[c]) + eps)
    return scale


@_parallel
def forward(x, weight, bias, pooled, centred, which, mean, var, eps):
    """Compute the five outputs of :func:`norm_relu_pool.forward`, ``pooled`` to ``var``."""
    batch, rows, columns, channels = x.shape
    means = np.empty((batch, channels), np.float32)
    squares = np.empty((batch, channels), np.float32)
    for i in prange(batch):
        _measure(x[i], means[i], squares[i])
    _merge(means, squares, rows * columns, mean, var)
    scale = _scale(weight, var, eps)
    for i in prange(batch):
        _pool(x[i], mean, scale, bias, pooled[i], centred[i], which[i])


@_parallel
def forward_given(x, weight, bias, mean, var, pooled, eps):
    """Compute the output ``pooled`` with a given mean and variance."""
    scale = _scale(weight, var, eps)
    for i in prange(len(x)):
        centred = np.empty(pooled.shape[1:], np.float32)
        which = np.empty(pooled.shape[1:], np.uint8)
        _pool(x[i], mean, scale, bias, pooled[i], centred, which)


@compiled
def _sum(grad, centred, which, sums):
    """Sum the gradients of an image that pass the ReLU, and their products with ``centred``."""
    rows, columns, channels = grad.shape
    sums[:] = 0
    for r in range(rows):
        for s in range(columns):
            for c in range(channels):
                g = _read(grad[r, s, c]) if which[r, s, c] != DEAD else np.float32(0)
                sums[0, c] += g
                sums[1, c] += g * centred[r, s, c]


@compiled
def _spread_pixel(grad, which, place, x, factors, dx):
    """Compute the gradient of a pixel. (LLVM does not vectorise this loop inside the others.)"""
    for c in range(len(x)):
        d = _read(grad[c]) * factors[1, c] if which[c] == place else np.float32(0)
        dx[c] = _rounded(d + (_read(x[c]) - factors[0, c]) * factors[2, c] + factors[3, c])


@compiled
def _spread(grad, which, x, factors, dx):
    rows, columns, _ = x.shape
    high, wide, _ = grad.shape
    for r in range(rows):
        for s in range(columns):
            # Pooling ignores an odd last row or column: no pixel has its place.
            inside = r // 2 < high and s // 2 < wide
            place = np.uint8(r % 2 * 2 + s % 2) if inside else np.uint8(DEAD + 1)
            i, j = min(r // 2, high - 1), min(s // 2, wide - 1)
            _spread_pixel(grad[i, j], which[i, j], place, x[r, s], factors, dx[r, s])


@_parallel
def backward(grad, x, weight, mean, var, centred, which, dx, dweight, dbias, eps):
    """Compute the outputs ``dx``, ``dweight`` and ``dbias``."""
    batch, rows, columns, channels = x.shape
    sums = np.empty((batch, 2, channels), np.float32)
    for i in prange(batch):
        _sum(grad[i], centred[i], which[i], sums[i])
    totals, products = np.zeros(channels), np.zeros(channels)
    for i in range(batch):
        for c in range(channels):
            totals[c] += sums[i, 0, c]
            products[c] += sums[i, 1, c]
    factors, count = np.empty((4, channels), np.float32), batch * rows * columns
    for c in range(channels):
        variance = np.float64(var[c]) + eps
        scale = weight[c] / np.sqrt(variance)
        factors[0, c], factors[1, c] = mean[c], scale
        factors[2, c] = -scale * products[c] / (count * variance)
        factors[3, c] = -scale * totals[c] / count
        dweight[c], dbias[c] = products[c] / np.sqrt(variance), totals[c]
    for i in prange(batch):
        _spread(grad[i], which[i], x[i], factors, dx[i])
