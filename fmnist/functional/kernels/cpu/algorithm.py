"""Which algorithm computes a convolution on a CPU, and in which portions: functions of shapes.

The answers depend neither on the lanes nor on the threads, so these change no bit.
"""

from __future__ import annotations

import math
from typing import Literal

from numba import get_num_threads

from fmnist.functional.kernels.cpu.layout import TILE, whole_tiles
from fmnist.functional.kernels.cpu.simd import WIDTH
from fmnist.functional.kernels.cpu.tasks import SUMS
from fmnist.functional.kernels.cpu.transforms import KERNELS, tile_side
from fmnist.functional.kernels.cpu.winograd import plane_length, sides, weight_plane

OVERHEAD = 12
"""Multiply-adds that the transforms of a pixel of a channel take the time of, about."""

FORWARD, BACKWARD = 8, 16
"""Squares of pixels that are transformed at a time."""

CHUNKS = 16
"""Most partial sums of the weight gradient in a lane."""

Shape = tuple[int, ...]


def winograd(x: Shape, weight: Shape, frame: tuple[int, int]) -> bool:
    """Return whether Winograd's algorithm is the faster one.

    Args:
        x: the shape of the images in blocks.
        weight: the shape of the weights of the convolution.
        frame: rows of zeros above and below the images.
    """
    _, outputs, inputs, k, _ = weight
    if k not in KERNELS:
        return False
    rows, columns = (size + sum(frame) - k + 1 for size in x[3:5])
    n = tile_side(k) + k - 1
    squares = patches(x, weight, frame)
    direct = rows * columns * k * k * inputs * outputs
    return direct > squares * n * n * (inputs * outputs + OVERHEAD * (inputs + outputs)) * 1.2


def patches(x: Shape, weight: Shape, frame: tuple[int, int]) -> int:
    """Return the number of squares that the output of an image is cut into."""
    k = weight[-1]
    m = tile_side(k)
    rows, columns = (size + sum(frame) - k + 1 for size in x[3:5])
    return -(-rows // m) * -(-columns // m)


def group(x: Shape, weight: Shape, frame: tuple[int, int], *, backward: bool) -> int:
    """Return the number of blocks of images that are transformed at a time; 1 if none are."""
    if not winograd(x, weight, frame):
        return 1
    most = BACKWARD if backward else FORWARD
    return max(1, min(x[1], most // patches(x, weight, frame)))


def chunks(x: Shape, weight: Shape, frame: tuple[int, int]) -> int:
    """Return the number of partial sums of the weight gradient, so most parallel tasks.

    Each takes memory, so it is of a few blocks.
    """
    smallest = -(-BACKWARD // patches(x, weight, frame)) if winograd(x, weight, frame) else 2
    return min(CHUNKS, -(-x[1] // smallest))


def arranged(weight: Shape, fast: bool) -> int:
    """Return how many numbers the weights of a lane are in tiles, or their transforms if ``fast``.

    Args:
        weight: the shape of the weights of the convolution.
        fast: whether Winograd's algorithm is used.
    """
    _, outputs, inputs, k, _ = weight
    if fast:
        return int(sides(k)[1] ** 2 * weight_plane(outputs, inputs))
    return int(whole_tiles(outputs)) * inputs * k * k


def workspace(
    x: Shape,
    weight: Shape,
    frame: tuple[int, int],
    operator: Literal["forward", "given", "backward"],
) -> int:
    """Return how many bytes an operator of blocks.py takes beside inputs and results, about.

    Args:
        x: the shape of the images in blocks.
        weight: the shape of the weights of the convolution.
        frame: ``(before, after)``.
        operator: which.
    """
    lanes, outputs, inputs, k, _ = weight
    blocks, height, width = x[1], x[3] + sum(frame), x[4] + sum(frame)
    y, parts = outputs * (height - k + 1) * (width - k + 1) * WIDTH, chunks(x, weight, frame)
    fast, threads = winograd(x, weight, frame), get_num_threads()
    tiles = lanes * (arranged(weight, fast) + math.prod(weight[1:]))
    if fast:
        size = group(x, weight, frame, backward=operator == "backward")
        positions, vectors = sides(k)[1] ** 2, size * patches(x, weight, frame)
        task = size * inputs * (height + k) * (width + k) * WIDTH
        task += positions * (plane_length(inputs, vectors) + plane_length(outputs, vectors))
        if operator == "given":
            return 4 * (tiles + threads * task + lanes * blocks * y)
        if operator == "forward":
            return 4 * (tiles + threads * task)
        task += y + positions * outputs * (inputs + WIDTH)
    else:
        image = inputs * height * width * WIDTH if sum(frame) else 0
        if operator != "backward":
            return 4 * (tiles + threads * (image + y))
        task = -(-blocks // parts) * (image + y) + TILE * y // outputs + SUMS
    return 4 * (2 * tiles + parts * math.prod(weight) + min(threads, lanes * parts) * task)
