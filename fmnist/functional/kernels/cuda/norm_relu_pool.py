"""norm_relu_pool on a GPU, compiled by Triton: three launches forward, three backward.

A program takes a tile of rows and channels; a row is one pixel of the batch, and its channels
lie side by side in memory. How rows are cut, and in which order they are summed, follows from
their number alone, so lanes cannot disturb each other, not in the last bit. That is why sums
run slot by slot and slots are added in a fixed tree of pairs (the order of a longer ``tl.sum``
depends on how the tile is laid out), why nothing is atomic, and why the compiler, which sees
other code for other numbers of channels, may not choose where to contract a product and a sum.

Nothing waits for the device or looks at a value, so a step can be captured in a CUDA graph, once
it has run and is compiled. Sizes are compiled in, so that index arithmetic is cheap and loads of
four channels are seen to be aligned; the price is that another number of lanes, or another size,
compiles anew.
"""

# ruff: noqa: ANN001  what a kernel takes are Triton's pointers and numbers

from typing import Any

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor
from triton.language import constexpr  # type: ignore[import-untyped, import-not-found, unused-ignore]

# Simple rules, NOT measured on any GPU yet. No autotuning: it would time candidates while a CUDA
# graph is captured. LEVELS, STEPS and PARTS order the sums, so they are part of the result and
# may depend on the number of rows alone; the others may follow the number of channels.
LEVELS = 5  # log2 of the slots, the rows that a program sums side by side
STEPS = 4  # rows that each slot sums, at least
PARTS = 512  # programs that share the rows of a channel, at most
BLOCK = 64  # channels of a tile, at most
TILE = 2048  # elements of a tile where nothing is summed

_compiled: Any = triton.jit


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Pooled output, mean, biased variance; and for :func:`backward`, of the pixel that was the
    largest of its square: its distance from the mean, and which of the four it was.

    ``x`` may also be bfloat16; its statistics and the distances are float32.
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
    """:func:`forward` with a mean and a variance that are known; without returning them."""
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
    """Gradients for ``x``, ``weight`` and ``bias``.

    With n values a channel, d the gradient after the ReLU and the pooling and h the normalised
    input: ``scale * (d - mean(d) - h * mean(d * h))`` (Ioffe and Szegedy 2015, section 3).
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
    """``[batch, channels, height, width]`` as a contiguous ``[batch, height, width, channels]``."""
    return x.permute(0, 2, 3, 1).contiguous()


def _empty_channels_last(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    last = torch.channels_last
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=last)


def _log2_ceil(count: int) -> int:
    """The log2 of the power of two that holds ``count``."""
    return (count - 1).bit_length()


def _partition_rows(x: Tensor, rows: int, channels: int) -> tuple[int, int, Tensor]:
    """How many rows a program sums, how many programs that takes, and where their sums go."""
    size = 2**LEVELS * max(STEPS, -(-rows // (2**LEVELS * PARTS)))
    parts = -(-rows // size)
    return size, parts, x.new_empty((2, parts, channels), dtype=torch.float64)


def _rows_per_tile(channels: int) -> int:
    return TILE // min(BLOCK, 2 ** _log2_ceil(channels))


def _launch(kernel: Any, parts: int, channels: int, block: int, *inputs: Any, **sizes: Any) -> None:
    """Launch a kernel on the parts of the rows times the blocks of channels."""
    block = min(block, 2 ** _log2_ceil(channels))
    sizes |= {"channels": channels, "block": block}
    with torch.cuda.device_of(inputs[0]):  # Triton launches on the current device
        grid = (parts * -(-channels // block),)
        warps = 8 if block == BLOCK else 4
        kernel[grid](*inputs, **sizes, num_warps=warps, enable_fp_fusion=False)


@_compiled
def _program_position(channels: constexpr, block: constexpr):  # type: ignore[no-untyped-def]
    """This program's part of the rows and its channels; all channels of a part run together."""
    blocks = tl.cdiv(channels, block)
    return tl.program_id(0) // blocks, tl.program_id(0) % blocks * block + tl.arange(0, block)


@_compiled
def _pixel_indices(part, height, width, tile: constexpr):  # type: ignore[no-untyped-def]
    """The pixels of a part: their numbers, the image of the first; counted from there (so that
    only one offset can be too large for 32 bits) their images; their lines and columns.
    """
    row = part * tile + tl.arange(0, tile)
    image = part * tile // (height * width)
    line = row // width - image * height
    return row, image.to(tl.int64), line // height, line % height, row % width


@_compiled
def _tree_sum(x, levels: constexpr, block: constexpr):  # type: ignore[no-untyped-def]
    """The sum of ``[2 ** levels, block]`` over its rows, always in the same order."""
    x = x.to(tl.float64)
    for k in tl.static_range(levels):
        x = tl.sum(tl.reshape(x, (2, 2 ** (levels - 1 - k), block)), 0)
    return tl.reshape(x, (block,))


@_compiled
def _combined_statistics(n, mean, square, levels: constexpr, block: constexpr):  # type: ignore[no-untyped-def]
    """Mean and sum of squared distances from it, of sets of rows of which these are known.

    In two passes and float64: nothing cancels, however far the mean is from zero.
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
    """Mean and sum of squared distances of a part; each slot by Welford (1962) in float32."""
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
        # Correctly rounded: a plain quotient is so only where the compiler unrolls the loop.
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
    """Mean and biased variance of all rows from those of the parts."""
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
    """The output, whose pixels are the rows here, from the input, mean and variance."""
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
    for corner in tl.static_range(4):  # the first largest, or the last NaN, as torch has it
        pixel = x + at + (corner // 2 * width + corner % 2) * channels
        here = tl.load(pixel, inside, 0.0).to(tl.float32) - middle
        normal = here * scale + shift
        take = (normal > best) | (normal != normal) | (corner == 0)
        best = tl.where(take, normal, best)
        distance = tl.where(take, here, distance)
        place = tl.where(take, corner, place)
    out = tl.where(best <= 0, 0.0, best)  # a NaN stays
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
    """Of a part of the output: the sums of gradients that passed, and of them times centred."""
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
    """Gradients of weight and bias; and scale, constant and slope of each channel's ``dx``."""
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
    """``dx``. Four pixels read the same of grad, which then comes from a cache."""
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
    # An odd last line or column is in no square.
    inner = inside & ((i < height // 2 * 2) & (j < width // 2 * 2))[:, None]
    small = ((image * (height // 2) + i // 2) * (width // 2) + j // 2)[:, None] * channels
    small += first * (height // 2 * (width // 2) * channels) + channel[None, :]
    passed = tl.load(grad + small, inner, 0.0) * tl.load(line + channel, there, 0.0)[None, :]
    mine = tl.load(which + small, inner, 4) == (i % 2 * 2 + j % 2)[:, None]
    tl.store(dx + base + at, out + tl.where(mine, passed, 0.0), inside)
