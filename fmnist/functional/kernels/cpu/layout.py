"""How images and weights lie in memory for the convolutions on a CPU (convolution.py), by Numba.

A block holds ``WIDTH`` images. It is a flat float32 array with the axes ``[channels, height, width,
WIDTH]`` in C order, so the images are the fastest index. A vector then holds one pixel of ``WIDTH``
images, and a convolution consists of multiply-adds of a vector and a weight, without shuffles or
special cases at edges, for all kernel sizes.

The weights of a lane are in tiles of output channels, each flat ``[inputs, k, k, channels]``. Tiles
have ``TILE`` channels, and at most two at the end have ``SMALL``, so that the channels are a
multiple of ``UNIT``, padded with zeros.
"""

from __future__ import annotations

import numpy as np

from fmnist.functional.kernels.cpu.compiled import compiled
from fmnist.functional.kernels.cpu.simd import WIDTH, load, splat, store

TILE = 12 if WIDTH == 16 else 6
"""With two pixels 24 sums, in 32 registers with AVX-512, or 12, in 16."""

UNIT = TILE // 3
SMALL = 2 * UNIT


@compiled
def scratch(size):
    """Return an uninitialised flat float32 array that begins at a cache line."""
    line = 16
    array = np.empty(size + line, np.float32)
    first = -(array.ctypes.data // 4) % line
    return array[first : first + size]


@compiled
def clear(array, begin, end):
    """Set a range of whole vectors to zero."""
    for at in range(begin, end, WIDTH):
        store(array, at, splat(np.float32(0)))


@compiled
def fill_framed(x, channels, height, width, before, after, out):
    """Copy images into larger ones that have a frame of zeros.

    Args:
        x: flat ``[channels, height, width, WIDTH]``, of one or more blocks.
        channels, height, width: sizes.
        before, after: rows above and below, and columns to the left and to the right.
        out: output, flat ``[channels, before + height + after, before + width + after, WIDTH]``.
    """
    rows, columns = height + before + after, width + before + after
    clear(out, 0, len(out))
    at = 0
    for c in range(channels):
        for h in range(height):
            to = ((c * rows + before + h) * columns + before) * WIDTH
            for _ in range(width):
                store(out, to, load(x, at))
                at += WIDTH
                to += WIDTH


@compiled
def without_frame(large, out, before, height, width):
    """Copy a block of images out of a larger one with a frame; the inverse of :func:`fill_framed`.

    Args:
        large: flat ``[inputs, height, width, WIDTH]``.
        out: output ``[inputs, rows, columns, WIDTH]``.
        before: rows of the frame above, and columns to the left.
        height, width: sizes, with the frame.
    """
    inputs, rows, columns, _ = out.shape
    out = out.reshape(-1)
    to = 0
    for i in range(inputs):
        for h in range(rows):
            at = ((i * height + before + h) * width + before) * WIDTH
            for _ in range(columns):
                store(out, to, load(large, at))
                at += WIDTH
                to += WIDTH


@compiled
def large_tiles(channels):
    """Return how many channels are in tiles of ``TILE``."""
    units = -(-channels // UNIT)
    return max(0, units - units * 2 % 3 * 2) * UNIT


@compiled
def whole_tiles(channels):
    """Round a number of channels up to whole tiles."""
    large = large_tiles(channels)
    return large + -(-(channels - large) // SMALL) * SMALL


@compiled
def tile_size(first, channels):
    """Return the size of the tile that begins with a channel."""
    return TILE if first < large_tiles(channels) else SMALL


@compiled
def tile_ranges(channels):
    """Return the first channel and the end of each tile, int64 ``[tiles, 2]``."""
    large = large_tiles(channels)
    small = -(-(channels - large) // SMALL)
    ranges = np.empty((large // TILE + small, 2), np.int64)
    first = 0
    for i in range(len(ranges)):
        end = min(first + tile_size(first, channels), channels)
        ranges[i, 0], ranges[i, 1] = first, end
        first = end
    return ranges


@compiled
def fill_tiles(weight, tiles):
    """Arrange the weights of a lane in tiles.

    Args:
        weight: float32 ``[outputs, inputs, k, k]``.
        tiles: output, flat ``[whole_tiles(outputs) * inputs * k * k]``.
    """
    outputs, inputs, k, _ = weight.shape
    for at in range(len(tiles)):
        tiles[at] = 0
    large = large_tiles(outputs)
    for o in range(outputs):
        channels = TILE if o < large else SMALL
        place = o % TILE if o < large else (o - large) % SMALL
        at = (o - place) * inputs * k * k + place
        for i in range(inputs):
            for r in range(k):
                for s in range(k):
                    tiles[at] = weight[o, i, r, s]
                    at += channels
