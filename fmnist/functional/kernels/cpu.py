"""norm_relu_pool on a CPU, compiled by Numba: no compiler is needed where it runs.

The inner loops run over channels, which lie side by side in memory, so they vectorise whatever
the kernel sizes; they are split into loops that touch few arrays, because LLVM gives up on
vectorising where it would have to prove many arrays distinct. Work is cut into a fixed number
of chunks of images, so sums do not depend on the number of threads, and a channel's do not
depend on the other channels: lanes cannot disturb each other, not in the last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, prange
from numpy.typing import NDArray
from torch import Tensor

CHUNKS = 16
DEAD = 4  # in `which`: the ReLU let nothing through; 0-3 is the place in the square

_compiled: Any = njit(parallel=True, cache=True, nogil=True)


def _channels_last(x: Tensor) -> NDArray[np.float32]:
    """``[batch, channels, height, width]`` as a contiguous ``[batch, height, width, channels]``."""
    return x.detach().permute(0, 2, 3, 1).contiguous().numpy()


def _empty(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """``[batch, channels, height, width]``, channels last in memory."""
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Pooled output, mean, biased variance; and for :func:`backward`, of the pixel that was the
    largest of its square: its distance from the mean, and which of the four it was.
    """
    mean64, var64 = _statistics(_channels_last(x), CHUNKS)
    mean, var = torch.from_numpy(mean64).float(), torch.from_numpy(var64).float()
    pooled, centred, which = forward_given(x, weight, bias, mean, var, eps)
    return pooled, mean, var, centred, which


def forward_given(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`forward` with a mean and a variance that are known."""
    batch, channels, height, width = x.shape
    scale = weight / torch.sqrt(var + eps)
    small = (batch, channels, height // 2, width // 2)
    pooled, centred, which = _empty(small), _empty(small), _empty(small, torch.uint8)
    _forward(
        _channels_last(x), mean.numpy(), scale.numpy(), bias.numpy(),
        *(_channels_last(t) for t in (pooled, centred, which)), CHUNKS,
    )  # fmt: skip
    return pooled, centred, which


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
    """Gradients for ``x``, ``weight`` and ``bias``.

    With n values a channel, d the gradient after the ReLU and the pooling and h the normalised
    input: ``scale * (d - mean(d) - h * mean(d * h))`` (Ioffe and Szegedy 2015, section 3).
    """
    grads, places = _channels_last(grad), _channels_last(which)
    total, dot = _sums(grads, _channels_last(centred), places, CHUNKS)
    deviation = np.sqrt(var.numpy().astype(np.float64) + eps)
    n = x.numel() // x.shape[1]
    scale = weight.numpy() / deviation
    constant = (-scale * total / n).astype(np.float32)
    slope = (-scale * dot / (n * deviation**2)).astype(np.float32)
    dx = _empty(tuple(x.shape))
    _backward(
        _channels_last(x), grads, places, mean.numpy(), scale.astype(np.float32),
        constant, slope, _channels_last(dx), CHUNKS,
    )  # fmt: skip
    dweight = torch.from_numpy((dot / deviation).astype(np.float32))
    return dx, dweight, torch.from_numpy(total.astype(np.float32))


@_compiled
def _statistics(x, chunks):  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Mean and biased variance of each channel, in float64.

    Row by row in two passes, rows merged by Chan, Golub and LeVeque (1979): nothing cancels,
    however far the mean is from zero.
    """
    batch, height, width, channels = x.shape
    means, squares = np.zeros((chunks, channels)), np.zeros((chunks, channels))
    for k in prange(chunks):
        row_mean = np.empty(channels, np.float32)
        row_square = np.empty(channels, np.float32)
        mean, square, n = means[k], squares[k], 0.0
        for b in range(k * batch // chunks, (k + 1) * batch // chunks):
            for h in range(height):
                row = x[b, h]
                row_mean[:] = 0
                row_square[:] = 0
                for w in range(width):
                    for c in range(channels):
                        row_mean[c] += row[w, c]
                for c in range(channels):
                    row_mean[c] /= np.float32(width)
                for w in range(width):
                    for c in range(channels):
                        distance = row[w, c] - row_mean[c]
                        row_square[c] += distance * distance
                share = width / (n + width)
                for c in range(channels):
                    distance64 = row_mean[c] - mean[c]
                    mean[c] += distance64 * share
                    square[c] += row_square[c] + distance64 * distance64 * (n * share)
                n += width
    mean, square, n = np.zeros(channels), np.zeros(channels), 0.0
    for k in range(chunks):
        more = ((k + 1) * batch // chunks - k * batch // chunks) * height * width
        if more > 0:
            share = more / (n + more)
            for c in range(channels):
                distance = means[k, c] - mean[c]
                mean[c] += distance * share
                square[c] += squares[k, c] + distance * distance * (n * share)
            n += more
    return mean, square / n


@_compiled
def _forward(x, mean, scale, bias, pooled, centred, which, chunks):  # type: ignore[no-untyped-def]  # noqa: ANN001
    batch, height, width, channels = x.shape
    size = width * channels
    # The channels' numbers repeated along a row make its loops long.
    means, scales, biases = _along(mean, width), _along(scale, width), _along(bias, width)
    for k in prange(chunks):
        distance = np.empty((2, size), np.float32)
        normal = np.empty((2, size), np.float32)
        place = np.empty(channels, np.int32)
        for b in range(k * batch // chunks, (k + 1) * batch // chunks):
            for i in range(height // 2):
                for r in range(2):
                    row = x[b, 2 * i + r].reshape(size)
                    row_distance, row_normal = distance[r], normal[r]
                    for e in range(size):
                        row_distance[e] = row[e] - means[e]
                    for e in range(size):
                        row_normal[e] = row_distance[e] * scales[e] + biases[e]
                for j in range(width // 2):
                    left, right = 2 * j * channels, (2 * j + 1) * channels
                    end = right + channels
                    n0, n1 = normal[0, left:right], normal[0, right:end]
                    n2, n3 = normal[1, left:right], normal[1, right:end]
                    d0, d1 = distance[0, left:right], distance[0, right:end]
                    d2, d3 = distance[1, left:right], distance[1, right:end]
                    out, out_centred, out_which = pooled[b, i, j], centred[b, i, j], which[b, i, j]
                    for c in range(channels):  # the first largest, or the last NaN, as torch has it
                        best, at = n0[c], np.int32(0)
                        take = (n1[c] > best) | (n1[c] != n1[c])
                        best, at = (n1[c], np.int32(1)) if take else (best, at)
                        take = (n2[c] > best) | (n2[c] != n2[c])
                        best, at = (n2[c], np.int32(2)) if take else (best, at)
                        take = (n3[c] > best) | (n3[c] != n3[c])
                        place[c] = np.int32(3) if take else at
                    for c in range(channels):
                        top = d0[c] if place[c] == 0 else d1[c]
                        bottom = d2[c] if place[c] == 2 else d3[c]
                        out_centred[c] = top if place[c] < 2 else bottom
                    for c in range(channels):
                        top = n0[c] if place[c] == 0 else n1[c]
                        bottom = n2[c] if place[c] == 2 else n3[c]
                        largest = top if place[c] < 2 else bottom
                        out[c] = np.float32(0) if largest <= 0 else largest
                    for c in range(channels):
                        out_which[c] = np.uint8(DEAD) if out[c] == 0 else np.uint8(place[c])


@_compiled
def _sums(grad, centred, which, chunks):  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Of each channel: the sum of the gradients that passed, and of them times ``centred``."""
    batch, height, width, channels = grad.shape
    totals, dots = np.zeros((chunks, channels)), np.zeros((chunks, channels))
    for k in prange(chunks):
        total, dot = np.empty(channels, np.float32), np.empty(channels, np.float32)
        chunk_total, chunk_dot = totals[k], dots[k]
        for b in range(k * batch // chunks, (k + 1) * batch // chunks):
            total[:] = 0
            dot[:] = 0
            for i in range(height):
                for j in range(width):
                    g, d, place = grad[b, i, j], centred[b, i, j], which[b, i, j]
                    for c in range(channels):
                        passed = g[c] if place[c] < DEAD else np.float32(0)
                        total[c] += passed
                        dot[c] += passed * d[c]
            for c in range(channels):
                chunk_total[c] += total[c]
                chunk_dot[c] += dot[c]
    return totals.sum(0), dots.sum(0)


@_compiled
def _backward(x, grad, which, mean, scale, constant, slope, dx, chunks):  # type: ignore[no-untyped-def]  # noqa: ANN001
    batch, height, width, channels = x.shape
    size = width * channels
    means, slopes, constants = _along(mean, width), _along(slope, width), _along(constant, width)
    for k in prange(chunks):
        for b in range(k * batch // chunks, (k + 1) * batch // chunks):
            for h in range(height):
                row, out = x[b, h].reshape(size), dx[b, h].reshape(size)
                for e in range(size):
                    out[e] = (row[e] - means[e]) * slopes[e] + constants[e]
            for i in range(height // 2):
                for j in range(width // 2):
                    g, place = grad[b, i, j], which[b, i, j]
                    for corner in range(4):
                        pixel = dx[b, 2 * i + corner // 2, 2 * j + corner % 2]
                        here = np.uint8(corner)
                        for c in range(channels):
                            pixel[c] += g[c] * scale[c] if place[c] == here else np.float32(0)


@njit(cache=True)
def _along(channel, width):  # type: ignore[no-untyped-def]  # noqa: ANN001
    """The numbers of the channels, once for each pixel of a row."""
    row = np.empty((width, channel.shape[0]), np.float32)
    for w in range(width):
        row[w] = channel
    return row.reshape(-1)
