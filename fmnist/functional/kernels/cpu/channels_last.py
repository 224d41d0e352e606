"""Batch norm, ReLU and 2x2 max pooling on a CPU for images with channels last in memory, by Numba.

Tensors are ``[batch, rows, columns, channels]`` in C order; lanes are folded into the channels. The
inner loops run over the channels, so LLVM vectorises them. Work is divided by image, and sums run
over the images in order: the bits of a channel depend neither on the number of threads nor on the
other channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic, overload
from torch import Tensor

DEAD = 4  # in `which`: the ReLU outputs zero; 0-3 are the pixels of a square, row-major

_parallel: Any = njit(parallel=True, cache=True, nogil=True)
_compiled: Any = njit(cache=True, nogil=True)


@intrinsic
def _from_bits(typing, bits):
    """Return the float32 of these bits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def _bits(typing, number):
    """Return the bits of a float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), generate


def _read(number):
    """Return a float32, or the float32 of a bfloat16, whose bits are a uint16."""


def _rounded(number, like):
    """Return a float32, or the bits of the nearest bfloat16, as ``like`` is."""


@overload(_read)
def _(number):
    if number == types.uint16:
        return lambda number: _from_bits(np.uint32(number) << np.uint32(16))
    return lambda number: number


@overload(_rounded)
def _(number, like):
    if like.dtype == types.uint16:

        def rounded(number, like):
            bits = _bits(np.float32(number))
            up = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
            quiet = np.uint32(0x7FC0)
            return np.uint16(((bits + up) >> np.uint32(16)) if number == number else quiet)

        return rounded
    return lambda number, like: np.float32(number)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the operation; see :mod:`fmnist.functional.kernels.norm_relu_pool`.

    Args:
        x: float32 ``[batch, channels, height, width]``, channels last in memory.
        weight: scale ``[channels]``.
        bias: shift ``[channels]``.
        eps: added to the variance.

    Returns:
        ``(pooled, mean, var, centred, which)``.
    """
    batch, channels, height, width = x.shape
    small = (batch, height // 2, width // 2, channels)
    pooled, centred = (x.new_empty(small, dtype=torch.float32) for _ in range(2))
    which = x.new_empty(small, dtype=torch.uint8)
    mean, var = (x.new_empty(channels, dtype=torch.float32) for _ in range(2))
    _forward(*_arrays(x), *_plain(weight, bias, pooled, centred, which, mean, var), eps)
    pooled, centred, which = (t.permute(0, 3, 1, 2) for t in (pooled, centred, which))
    return pooled, mean, var, centred, which


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    var: Tensor,
    centred: Tensor,
    which: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients for ``x``, the scale and the shift."""
    batch, channels, height, width = x.shape
    dx = x.new_empty(batch, height, width, channels)
    dweight, dbias = torch.empty_like(weight), torch.empty_like(weight)
    tensors = _plain(weight, mean, var)
    _backward(*_arrays(grad, x), *tensors, *_arrays(centred, which), *_plain(dx, dweight, dbias), eps)
    return dx.permute(0, 3, 1, 2), dweight, dbias


def _arrays(*tensors: Tensor) -> list[Any]:
    return _plain(*(t.detach().permute(0, 2, 3, 1) for t in tensors))


def _plain(*tensors: Tensor) -> list[Any]:
    arrays = (t.detach().contiguous() for t in tensors)
    return [
        (t.view(torch.uint16) if t.dtype == torch.bfloat16 else t).numpy() for t in arrays
    ]


@_compiled
def _moments(x, mean, square):
    """Compute the mean and the sum of squared deviations of each channel of an image."""
    rows, columns, channels = x.shape
    sums, rest = np.zeros(channels, np.float32), np.zeros(channels, np.float32)
    for r in range(rows):
        for s in range(columns):
            for c in range(channels):
                sums[c] += _read(x[r, s, c])
    count = rows * columns
    for c in range(channels):
        mean[c] = sums[c] / np.float32(count)
        sums[c] = 0
    for r in range(rows):
        for s in range(columns):
            for c in range(channels):
                d = _read(x[r, s, c]) - mean[c]
                rest[c] += d
                sums[c] += d * d
    for c in range(channels):
        off = rest[c] / np.float32(count)
        mean[c] += off
        square[c] = max(np.float32(0), sums[c] - off * off * np.float32(count))


@_compiled
def _merge(means, squares, pixels, mean, var):
    batch, channels = means.shape
    m, q = np.zeros(channels), np.zeros(channels)
    for i in range(batch):  # image by image, as memory is read in this order
        share, weight = 1 / (i + 1), pixels * i / (i + 1)
        for c in range(channels):
            d = means[i, c] - m[c]
            m[c] += d * share
            q[c] += squares[i, c] + d * d * weight
    for c in range(channels):
        mean[c], var[c] = m[c], q[c] / (batch * pixels)


@_compiled
def _pool(x, mean, scale, bias, pooled, centred, which):
    rows, columns, channels = pooled.shape
    for r in range(rows):
        for s in range(columns):
            a, b = x[2 * r, 2 * s], x[2 * r, 2 * s + 1]
            d, e = x[2 * r + 1, 2 * s], x[2 * r + 1, 2 * s + 1]
            to_p, to_c, to_w = pooled[r, s], centred[r, s], which[r, s]
            for c in range(channels):
                best = _read(a[c]) - mean[c]
                top, place = best * scale[c] + bias[c], np.uint8(0)
                y = _read(b[c]) - mean[c]
                v = y * scale[c] + bias[c]
                if v > top or v != v:
                    best, top, place = y, v, np.uint8(1)
                y = _read(d[c]) - mean[c]
                v = y * scale[c] + bias[c]
                if v > top or v != v:
                    best, top, place = y, v, np.uint8(2)
                y = _read(e[c]) - mean[c]
                v = y * scale[c] + bias[c]
                if v > top or v != v:
                    best, top, place = y, v, np.uint8(3)
                dead = top <= 0
                to_p[c] = np.float32(0) if dead else top
                to_c[c] = best
                to_w[c] = np.uint8(DEAD) if dead else place


@_parallel
def _forward(x, weight, bias, pooled, centred, which, mean, var, eps):
    batch, rows, columns, channels = x.shape
    means, squares = np.empty((2, batch, channels), np.float32)
    for i in prange(batch):
        _moments(x[i], means[i], squares[i])
    _merge(means, squares, rows * columns, mean, var)
    scale = np.empty(channels, np.float32)
    for c in range(channels):
        scale[c] = weight[c] / np.sqrt(np.float64(var[c]) + eps)
    for i in prange(batch):
        _pool(x[i], mean, scale, bias, pooled[i], centred[i], which[i])


@_compiled
def _passed(grad, centred, which, sums):
    rows, columns, channels = grad.shape
    sums[:] = 0
    for r in range(rows):
        for s in range(columns):
            for c in range(channels):
                g = grad[r, s, c] if which[r, s, c] != DEAD else np.float32(0)
                sums[0, c] += g
                sums[1, c] += g * centred[r, s, c]


@_compiled
def _spread_pixel(g, w, own, x, factors, to):
    """Compute the gradient of a pixel from that of its square."""
    for c in range(len(x)):
        d = g[c] * factors[1, c] if w[c] == own else np.float32(0)
        to[c] = _rounded(d + (_read(x[c]) - factors[0, c]) * factors[2, c] + factors[3, c], to)


@_compiled
def _spread(grad, x, which, factors, dx):
    rows, columns, _ = x.shape
    high, wide, _ = grad.shape
    for r in range(rows):
        for s in range(columns):
            inside = r // 2 < high and s // 2 < wide
            own = np.uint8(r % 2 * 2 + s % 2) if inside else np.uint8(DEAD + 1)
            i, j = min(r // 2, high - 1), min(s // 2, wide - 1)
            _spread_pixel(grad[i, j], which[i, j], own, x[r, s], factors, dx[r, s])


@_parallel
def _backward(grad, x, weight, mean, var, centred, which, dx, dweight, dbias, eps):
    batch, rows, columns, channels = x.shape
    parts = np.empty((batch, 2, channels), np.float32)
    for i in prange(batch):
        _passed(grad[i], centred[i], which[i], parts[i])
    factors = np.empty((4, channels), np.float32)
    count = batch * rows * columns
    totals, dots = np.zeros(channels), np.zeros(channels)
    for i in range(batch):
        for c in range(channels):
            totals[c] += parts[i, 0, c]
            dots[c] += parts[i, 1, c]
    for c in range(channels):
        total, dot = totals[c], dots[c]
        deviation = np.sqrt(np.float64(var[c]) + eps)
        ratio = weight[c] / deviation
        factors[0, c], factors[1, c] = mean[c], ratio
        factors[2, c], factors[3, c] = -ratio * dot / (count * deviation**2), -ratio * total / count
        dweight[c], dbias[c] = dot / deviation, total
    for i in prange(batch):
        _spread(grad[i], x[i], which[i], factors, dx[i])
