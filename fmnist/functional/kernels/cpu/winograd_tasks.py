"""The jobs of conv_block that use Winograd's algorithm, by Numba. See tasks.py and winograd.py.

``tiles`` and ``turned`` are transformed weights here. A group is of ``SIZE`` blocks.
"""

from __future__ import annotations

from fmnist.functional.kernels.cpu.compiled import compiled
from fmnist.functional.kernels.cpu.jobs import (
    Job,
    doubles,
    floats,
    number,
    octets,
    of_block,
    of_lane,
)
from fmnist.functional.kernels.cpu.layout import scratch, without_frame
from fmnist.functional.kernels.cpu.pooling import measure, spread_gradient, valid_examples
from fmnist.functional.kernels.cpu.simd import WIDTH
from fmnist.functional.kernels.cpu.tasks import (
    AFTER,
    BEFORE,
    DX,
    EXAMPLES,
    GRAD,
    LINEAR,
    MEAN,
    MEANS,
    PARTS,
    SIZE,
    SQUARES,
    TILES,
    TURNED,
    WEIGHT,
    WHICH,
    X,
    Y,
    framed,
)
from fmnist.functional.kernels.cpu.winograd import (
    images_back,
    multiply,
    multiply_back,
    outputs_back,
    plane_length,
    sides,
    transform_back,
    transform_images,
    transform_weights,
    weights_back,
)


@compiled
def _sizes(x, y, weight, before, after):
    """Return the squares down and right, and the frame of zeros after the images."""
    rows, columns, k = y.shape[3], y.shape[4], weight.shape[3]
    m, _ = sides(k)
    down, right = -(-rows // m), -(-columns // m)
    return down, right, after + max(down * m - rows, right * m - columns)


def _arrange_weights(table, lane):
    """Transform the weights of a lane."""
    weight = floats(table, WEIGHT)[lane, :, :, :, :, 0]
    transform_weights(weight, of_lane(table, TILES, lane))


def _convolve_group(table, task):
    """Compute the convolution of a group, and the mean and squared deviations of each channel.

    The latter only if ``means`` is not empty.
    """
    x, weight, y = floats(table, X), floats(table, WEIGHT), floats(table, Y)
    means, squares = doubles(table, MEANS), doubles(table, SQUARES)
    before, size, k = number(table, BEFORE), number(table, SIZE), weight.shape[3]
    _, n = sides(k)
    lane, group = divmod(task, -(-x.shape[1] // size))
    first, end = group * size, min((group + 1) * size, x.shape[1])
    inputs, outputs, rows, columns = x.shape[2], y.shape[2], y.shape[3], y.shape[4]
    down, right, after = _sizes(x, y, weight, before, number(table, AFTER))
    height, width = x.shape[3] + before + after, x.shape[4] + before + after
    images, image = framed(x, lane, first, end, before, after), inputs * height * width * WIDTH
    vectors = down * right * (end - first)
    planes = scratch(n * n * plane_length(inputs, vectors))
    products = scratch(n * n * plane_length(outputs, vectors))
    for i in range(end - first):
        at = i * down * right
        transform_images(
            images[i * image :], inputs, height, width, down, right, k, planes, at, vectors
        )
    tiles = of_lane(table, TILES, lane)
    multiply(tiles, planes, products, n * n, inputs, outputs, vectors)
    for i in range(end - first):
        out, at = of_block(table, Y, lane, first + i), i * down * right
        transform_back(products, outputs, rows, columns, down, right, k, at, vectors, out)
        if means.size:
            measure(
                out, rows * columns * WIDTH, means[lane, first + i].reshape(-1),
                squares[lane, first + i].reshape(-1),
                valid_examples(first + i, number(table, EXAMPLES)),
            )  # fmt: skip


def _gradients_of_chunk(table, task):
    """Compute dx of a range of blocks, and their part of the gradient for the weights.

    ``turned`` is empty if dx is not wanted.
    """
    x, weight = floats(table, X), floats(table, WEIGHT)
    y, which = floats(table, Y), octets(table, WHICH)
    dx, parts = floats(table, DX), floats(table, PARTS)
    before, size, examples = number(table, BEFORE), number(table, SIZE), number(table, EXAMPLES)
    blocks, chunks, k = x.shape[1], parts.shape[1], weight.shape[3]
    _, n = sides(k)
    inputs, outputs, rows, columns = x.shape[2], y.shape[2], y.shape[3], y.shape[4]
    down, right, after = _sizes(x, y, weight, before, number(table, AFTER))
    height, width = x.shape[3] + before + after, x.shape[4] + before + after
    image = inputs * height * width * WIDTH
    lane, chunk = divmod(task, chunks)
    turned = of_lane(table, TURNED, lane)
    begin, stop = chunk * blocks // chunks, (chunk + 1) * blocks // chunks
    wide, most = -(-inputs // WIDTH) * WIDTH, down * right * min(size, stop - begin)
    mean, linear = of_lane(table, MEAN, lane), floats(table, LINEAR)[lane, :, :, 0, 0, 0]
    planes = scratch(n * n * plane_length(inputs, most))
    gradients = scratch(n * n * plane_length(outputs, most))
    dy, large = scratch(outputs * rows * columns * WIDTH), scratch(image if turned.size else 0)
    sums = scratch(n * n * outputs * wide)
    # No sum of a channel that does not exist is used, but garbage may be slow to compute with.
    planes[:] = 0
    gradients[:] = 0
    sums[:] = 0
    for first in range(begin, stop, size):
        end = min(first + size, stop)
        vectors = down * right * (end - first)
        images = framed(x, lane, first, end, before, after)
        for i in range(end - first):
            at = i * down * right
            transform_images(
                images[i * image :], inputs, height, width, down, right, k, planes, at, vectors
            )
            spread_gradient(
                of_block(table, GRAD, lane, first + i), of_block(table, Y, lane, first + i),
                which[lane, first + i].reshape(-1), outputs, 0, rows, mean, linear,
                valid_examples(first + i, examples), dy, rows, columns,
            )  # fmt: skip
            outputs_back(dy, outputs, rows, columns, down, right, k, gradients, at, vectors)
        multiply_back(gradients, planes, n * n, inputs, outputs, vectors, wide, sums)
        if turned.size:
            multiply(turned, gradients, planes, n * n, outputs, inputs, vectors)
            for i in range(end - first):
                large[:] = 0
                at = i * down * right
                images_back(planes, inputs, height, width, down, right, k, at, vectors, large)
                without_frame(large, dx[lane, first + i], before, height, width)
    weights_back(sums, outputs, inputs, wide, k, of_block(table, PARTS, lane, chunk))


arrange_weights, convolve_group = Job(_arrange_weights), Job(_convolve_group)
gradients_of_chunk = Job(_gradients_of_chunk)
