"""norm_relu_pool on a GPU, compiled by Triton: three launches forward, three backward.

Tensors are channels last in memory, so a kernel sees a matrix ``[rows, channels]``. A row is one
pixel of the batch; rows run over batch, height and width, in this order. Lanes are folded into the
channels. A program computes a tile of rows and channels.

How rows are partitioned and in which order they are summed depends on the number of rows only. The
bits of one lane therefore do not depend on the other lanes. For this reason

* each program sums rows in slots and adds the slots in a fixed binary tree (the order of a longer
  ``tl.sum`` depends on the layout of the tile)
* no operation is atomic
* fusion of multiply and add is off, because the compiler would decide it differently for different
  numbers of channels

No function synchronises with the device or reads a value from it, so a step can be captured in a
CUDA graph after a first run, which compiles. Sizes are compile-time constants, which makes index
arithmetic cheap and proves the alignment of loads of four channels. A new number of lanes or a new
size is therefore compiled again.
"""

# ruff: noqa: ANN001  the arguments of a kernel are pointers and numbers of Triton

from typing import Any

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor
from triton.language import constexpr  # type: ignore[import-untyped, import-not-found, unused-ignore]

# Simple rules, NOT tuned on any GPU yet. There is no autotuning, because it would time candidates
# while a CUDA graph is captured. LEVELS, STEPS and PARTS determine the order of sums and so the
# bits of the result; they may depend on the number of rows only. The others may depend on the
# number of channels.
LEVELS = 5  # log2 of the number of slots, which a program sums in parallel
STEPS = 4  # least number of rows in a slot
PARTS = 512  # most programs for the rows of a channel
BLOCK = 64  # most channels in a tile
TILE = 2048  # elements of a tile in kernels without sums

_compiled: Any = triton.jit


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Apply batch norm by the statistics of the batch, ReLU and 2x2 max pooling.

    Source: Ioffe and Szegedy, Batch Normalization (2015), algorithm 1.

    Args:
        x: ``[batch, channels, height, width]``, float32 or bfloat16.
        weight: scale ``[channels]``.
        bias: shift ``[channels]``.
        eps: added to the variance.

    Returns:
        ``(pooled, mean, var, centred, which)``. ``pooled [batch, channels, height // 2,
        width // 2]`` has the dtype of ``x``. ``mean`` and the biased variance ``var`` are float32
        ``[channels]``. ``centred`` (float32) and ``which`` (uint8) have the shape of ``pooled``
        and are for :func:`backward`: ``x - mean`` at the pixel of each square that is the largest
        after batch norm, and the position of this pixel in the square in row-major order, or 4
        where the ReLU outputs zero.
    """
    x = _channels_last(x)
    rows, channels = x.numel() // x.shape[3], x.shape[3]
    size, parts, partial = _partition_rows(x, rows, channels)
    mean, var = (x.new_empty(channels, dtype=torch.float32) for _ in range(2))
    _launch(_statistics, parts, channels, BLOCK, x, partial, rows, parts, size=size)
    _launch(_merge, 1, channels, 8, partial, mean, var, rows, size, parts, levels=_log2_ceil(parts))
    pooled, centred, which = forward_given(x.permute(0, 3, 1, 2), weight, bias, mean, var, eps)
    return pooled, mean, var, centred, which


def forward_given(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute :func:`forward` with a given mean and variance.

    Returns:
        ``(pooled, centred, which)`` as in :func:`forward`.
    """
    batch, channels, height, width = x.shape
    shape = (batch, channels, height // 2, width // 2)
    pooled, centred, which = (
        _empty_channels_last(x, shape, t) for t in (x.dtype, torch.float32, torch.uint8)
    )
    rows, tile = batch * shape[2] * shape[3], _rows_per_tile(channels)
    numbers = (t.contiguous() for t in (weight, bias, mean, var))
    _launch(_apply, -(-rows // tile), channels, BLOCK, _channels_last(x), *numbers, pooled, centred,
         which, rows, eps=eps, height=height, width=width, tile=tile)  # fmt: skip
    return pooled, centred, which


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, var: Tensor, centred: Tensor,
    which: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute the gradients for ``x``, ``weight`` and ``bias``.

    The gradient for ``x`` is ``scale * (d - mean(d) - h * mean(d * h))`` (Ioffe and Szegedy 2015,
    section 3). Here ``d`` is ``grad`` propagated back through pooling and ReLU, ``h`` the
    normalised input, ``scale = weight / sqrt(var + eps)``, and the means are over the values of a
    channel.

    Args:
        grad: gradient for ``pooled``.
        x, weight: inputs of :func:`forward`.
        mean, var, centred, which: results of :func:`forward`.
        eps: added to the variance.

    Returns:
        ``(dx, dweight, dbias)`` with the shapes and dtypes of ``x``, ``weight`` and ``weight``.
    """
    batch, channels, height, width = x.shape
    grad, x, centred, which = (_channels_last(t) for t in (grad, x, centred, which))
    mean, var, weight = (t.contiguous() for t in (mean, var, weight))
    rows, n, tile = grad.numel() // channels, x.numel() // channels, _rows_per_tile(channels)
    size, parts, partial = _partition_rows(x, rows, channels)
    line = x.new_empty((3, channels), dtype=torch.float32)
    dx = _empty_channels_last(x, (batch, channels, height, width), x.dtype)
    dweight, dbias = (torch.empty_like(weight) for _ in range(2))
    _launch(_sums, parts, channels, BLOCK, grad, centred, which, partial, rows, parts, size=size)
    _launch(_coefficients, 1, channels, 8, partial, weight, var, line, dweight, dbias, n, parts,
         eps=eps, levels=_log2_ceil(parts))  # fmt: skip
    _launch(_gradient, -(-n // tile), channels, BLOCK, x, grad, which, mean, line, dx, n,
         height=height, width=width, tile=tile)  # fmt: skip
    return dx, dweight, dbias


def _channels_last(x: Tensor) -> Tensor:
    """Return a tensor ``[batch, channels, height, width]`` as contiguous, channels last."""
    return x.permute(0, 2, 3, 1).contiguous()


def _empty_channels_last(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    last = torch.channels_last
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=last)


def _log2_ceil(count: int) -> int:
    """Return the log2 of the smallest power of two that is at least ``count``."""
    return (count - 1).bit_length()


def _partition_rows(x: Tensor, rows: int, channels: int) -> tuple[int, int, Tensor]:
    """Partition rows among programs that sum them.

    Returns:
        The number of rows of a program, the number of programs, and an empty float64 tensor
        ``[2, programs, channels]`` for their sums.
    """
    size = 2**LEVELS * max(STEPS, -(-rows // (2**LEVELS * PARTS)))
    parts = -(-rows // size)
    return size, parts, x.new_empty((2, parts, channels), dtype=torch.float64)


def _rows_per_tile(channels: int) -> int:
    """Return the number of rows in a tile of a kernel without sums."""
    return TILE // min(BLOCK, 2 ** _log2_ceil(channels))


def _launch(kernel: Any, parts: int, channels: int, block: int, *inputs: Any, **sizes: Any) -> None:
    """Launch a kernel with one program for each part of the rows and block of channels."""
    block = min(block, 2 ** _log2_ceil(channels))
    sizes |= {"channels": channels, "block": block}
    with torch.cuda.device_of(inputs[0]):  # Triton launches on the current device
        grid = (parts * -(-channels // block),)
        warps = 8 if block == BLOCK else 4
        kernel[grid](*inputs, **sizes, num_warps=warps, enable_fp_fusion=False)


@_compiled
def _program_position(channels: constexpr, block: constexpr):  # type: ignore[no-untyped-def]
    """Return the part of the rows and the channels of this program. Channels vary fastest."""
    blocks = tl.cdiv(channels, block)
    return tl.program_id(0) // blocks, tl.program_id(0) % blocks * block + tl.arange(0, block)


@_compiled
def _pixel_indices(part, height, width, tile: constexpr):  # type: ignore[no-untyped-def]
    """Return the indices of the pixels of a part.

    Returns:
        ``(row, first, image, line, column)``: the row, the image of the first pixel (int64), and
        for each pixel the image relative to ``first``, its line and its column. Only offsets of
        ``first`` may need 64 bits.
    """
    row = part * tile + tl.arange(0, tile)
    image = part * tile // (height * width)
    line = row // width - image * height
    return row, image.to(tl.int64), line // height, line % height, row % width


@_compiled
def _tree_sum(x, levels: constexpr, block: constexpr):  # type: ignore[no-untyped-def]
    """Return the sum of ``[2 ** levels, block]`` over its rows in float64, as a binary tree."""
    x = x.to(tl.float64)
    for k in tl.static_range(levels):
        x = tl.sum(tl.reshape(x, (2, 2 ** (levels - 1 - k), block)), 0)
    return tl.reshape(x, (block,))


@_compiled
def _combined_statistics(n, mean, square, levels: constexpr, block: constexpr):  # type: ignore[no-untyped-def]
    """Combine the means and sums of squared deviations of ``2 ** levels`` sets of rows.

    It takes two passes in float64, so there is no cancellation when the mean is far from zero.
    """
    n, mean = n.to(tl.float64), mean.to(tl.float64)
    centre = _tree_sum(n[:, None] * mean, levels, block) / tl.sum(n)
    mean -= centre[None, :]
    return centre, _tree_sum(square + n[:, None] * mean * mean, levels, block)


@_compiled
def _statistics(  # type: ignore[no-untyped-def]
    x, partial, rows, parts, channels: constexpr, block: constexpr, size: constexpr,
    levels: constexpr = LEVELS,
):  # fmt: skip
    """Compute the mean and the sum of squared deviations of a part of the rows.

    Each slot uses the recurrence of Welford (1962) in float32. ``partial`` is float64
    ``[2, parts, channels]``.
    """
    part, channel = _program_position(channels, block)
    slot = tl.arange(0, 2**levels)
    n = tl.minimum(rows - part * size, size)
    x += (part * size).to(tl.int64) * channels
    mean = tl.zeros((2**levels, block), tl.float32)
    square = tl.zeros((2**levels, block), tl.float32)
    one, count = tl.full((1, 1), 1.0, tl.float32), tl.zeros((1, 1), tl.float32)
    for k in range(size // 2**levels):
        row = k * 2**levels + slot
        inside = (row < n)[:, None] & (channel < channels)[None, :]
        value = tl.load(x + row[:, None] * channels + channel[None, :], inside, 0.0).to(tl.float32)
        distance = tl.where(inside, value - mean, 0.0)
        count += 1.0
        # div_rn rounds correctly; `/` does only where the compiler unrolls the loop.
        mean += distance * tl.div_rn(one, count)
        square += distance * (value - mean)
    counts = (n - slot + 2**levels - 1) // 2**levels
    centre, spread = _combined_statistics(counts, mean, square, levels, block)
    partial += part * channels + channel
    tl.store(partial, centre, channel < channels)
    tl.store(partial + parts * channels, spread, channel < channels)


@_compiled
def _merge(  # type: ignore[no-untyped-def]
    partial, mean, var, rows, size, parts, channels: constexpr, block: constexpr, levels: constexpr,
):  # fmt: skip
    """Compute the mean and biased variance of all rows from the statistics of the parts."""
    _, channel = _program_position(channels, block)
    part = tl.arange(0, 2**levels)
    inside = (part < parts)[:, None] & (channel < channels)[None, :]
    partial += part[:, None] * channels + channel[None, :]
    means = tl.load(partial, inside, 0.0)
    squares = tl.load(partial + parts * channels, inside, 0.0)
    counts = tl.minimum(tl.maximum(rows - part * size, 0), size)
    centre, spread = _combined_statistics(counts, means, squares, levels, block)
    tl.store(mean + channel, centre, channel < channels)
    tl.store(var + channel, spread / rows, channel < channels)


@_compiled
def _apply(  # type: ignore[no-untyped-def]
    x, weight, bias, mean, var, pooled, centred, which, rows, channels: constexpr, block: constexpr,
    eps: constexpr, height: constexpr, width: constexpr, tile: constexpr,
):  # fmt: skip
    """Normalise, apply ReLU and pool. The rows of this kernel are the pixels of the output."""
    part, channel = _program_position(channels, block)
    there = channel < channels
    middle = tl.load(mean + channel, there, 0.0)[None, :]
    deviation = tl.sqrt_rn(tl.load(var + channel, there, 1.0) + eps)
    scale = tl.load(weight + channel, there, 0.0).to(tl.float32)
    scale = tl.div_rn(scale, deviation)[None, :]
    shift = tl.load(bias + channel, there, 0.0).to(tl.float32)[None, :]
    row, first, image, i, j = _pixel_indices(part, height // 2, width // 2, tile)
    inside = (row < rows)[:, None] & there[None, :]
    x += first * (height * width * channels)
    at = ((image * height + 2 * i) * width + 2 * j)[:, None] * channels + channel[None, :]
    best = tl.zeros((tile, block), tl.float32)
    distance = tl.zeros((tile, block), tl.float32)
    place = tl.zeros((tile, block), tl.int32)
    for corner in tl.static_range(4):  # the first largest, or the last NaN, as in torch
        pixel = x + at + (corner // 2 * width + corner % 2) * channels
        here = tl.load(pixel, inside, 0.0).to(tl.float32) - middle
        normal = here * scale + shift
        take = (normal > best) | (normal != normal) | (corner == 0)
        best = tl.where(take, normal, best)
        distance = tl.where(take, here, distance)
        place = tl.where(take, corner, place)
    out = tl.where(best <= 0, 0.0, best)  # keeps a NaN
    base = (part * tile).to(tl.int64) * channels
    at = tl.arange(0, tile)[:, None] * channels + channel[None, :]
    tl.store(pooled + base + at, out, inside)
    tl.store(centred + base + at, distance, inside)
    tl.store(which + base + at, tl.where(out == 0, 4, place), inside)


@_compiled
def _sums(  # type: ignore[no-untyped-def]
    grad, centred, which, partial, rows, parts, channels: constexpr, block: constexpr,
    size: constexpr, levels: constexpr = LEVELS,
):  # fmt: skip
    """Sum the gradients that pass the ReLU, and these times ``centred``, of a part of the rows.

    The rows are the pixels of the output. ``partial`` is float64 ``[2, parts, channels]``.
    """
    part, channel = _program_position(channels, block)
    base = (part * size).to(tl.int64) * channels
    total = tl.zeros((2**levels, block), tl.float32)
    dot = tl.zeros((2**levels, block), tl.float32)
    for k in range(size // 2**levels):
        row = k * 2**levels + tl.arange(0, 2**levels)
        inside = (row < rows - part * size)[:, None] & (channel < channels)[None, :]
        at = base + (row[:, None] * channels + channel[None, :])
        passed = tl.load(grad + at, inside, 0.0).to(tl.float32)
        passed = tl.where(tl.load(which + at, inside, 4) < 4, passed, 0.0)
        total += passed
        dot += passed * tl.load(centred + at, inside, 0.0)
    partial += part * channels + channel
    tl.store(partial, _tree_sum(total, levels, block), channel < channels)
    tl.store(partial + parts * channels, _tree_sum(dot, levels, block), channel < channels)


@_compiled
def _coefficients(  # type: ignore[no-untyped-def]
    partial, weight, var, line, dweight, dbias, n, parts, channels: constexpr, block: constexpr,
    levels: constexpr, eps: constexpr,
):  # fmt: skip
    """Compute the gradients for weight and bias, and the coefficients of :func:`_gradient`.

    ``line`` is float32 ``[3, channels]``: scale, constant and slope.
    """
    _, channel = _program_position(channels, block)
    there = channel < channels
    part = tl.arange(0, 2**levels)
    inside = (part < parts)[:, None] & there[None, :]
    partial += part[:, None] * channels + channel[None, :]
    total = _tree_sum(tl.load(partial, inside, 0.0), levels, block)
    dot = _tree_sum(tl.load(partial + parts * channels, inside, 0.0), levels, block)
    deviation = tl.sqrt(tl.load(var + channel, there, 1.0).to(tl.float64) + eps)
    scale = tl.load(weight + channel, there, 0.0) / deviation
    tl.store(line + channel, scale, there)
    tl.store(line + channels + channel, -scale * total / n, there)
    tl.store(line + 2 * channels + channel, -scale * dot / (deviation * deviation * n), there)
    tl.store(dweight + channel, dot / deviation, there)
    tl.store(dbias + channel, total, there)


@_compiled
def _gradient(  # type: ignore[no-untyped-def]
    x, grad, which, mean, line, dx, rows, channels: constexpr, block: constexpr, height: constexpr,
    width: constexpr, tile: constexpr,
):  # fmt: skip
    """Compute ``dx = scale * d + slope * (x - mean) + constant``; ``d`` is as in ``backward``.

    Four pixels read the same element of ``grad``, so three of these loads hit a cache.
    """
    part, channel = _program_position(channels, block)
    there = channel < channels
    row, first, image, i, j = _pixel_indices(part, height, width, tile)
    inside = (row < rows)[:, None] & there[None, :]
    base = (part * tile).to(tl.int64) * channels
    at = tl.arange(0, tile)[:, None] * channels + channel[None, :]
    distance = tl.load(x + base + at, inside, 0.0).to(tl.float32)
    distance -= tl.load(mean + channel, there, 0.0)[None, :]
    slope = tl.load(line + 2 * channels + channel, there, 0.0)[None, :]
    out = distance * slope + tl.load(line + channels + channel, there, 0.0)[None, :]
    # An odd last line or column belongs to no square.
    inner = inside & ((i < height // 2 * 2) & (j < width // 2 * 2))[:, None]
    small = ((image * (height // 2) + i // 2) * (width // 2) + j // 2)[:, None] * channels
    small += first * (height // 2 * (width // 2) * channels) + channel[None, :]
    passed = tl.load(grad + small, inner, 0.0) * tl.load(line + channel, there, 0.0)[None, :]
    mine = tl.load(which + small, inner, 4) == (i % 2 * 2 + j % 2)[:, None]
    tl.store(dx + base + at, out + tl.where(mine, passed, 0.0), inside)
