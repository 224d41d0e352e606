"""Convolution, batch norm, ReLU and 2x2 max pooling on a CPU: allocation and checks.

The loops are in tasks.py, compiled by Numba, so no C compiler is needed. All tensors are float32
unless stated otherwise and have these shapes:

* ``x [lanes or 1, blocks, inputs, height, width, WIDTH]``: images in blocks of ``WIDTH`` examples
  (see layout.py); the axis of lanes has length 1 if all lanes share the images
* ``weight [lanes, outputs, inputs, k, k]``
* ``gamma``, ``beta``, ``mean``, ``var`` ``[lanes, outputs]``
* ``y [lanes, blocks, outputs, rows, columns, WIDTH]``: the output of the convolution, with
  ``rows = before + height + after - k + 1`` and ``columns`` likewise, where the frame of zeros
  around an image has ``before`` rows above it and ``after`` below it, and columns likewise
* ``pooled``, ``centred``, ``which`` and ``grad`` ``[lanes, blocks, outputs, rows // 2,
  columns // 2, WIDTH]``

Inputs may have any strides; results are contiguous. The padding after the last example must be
finite in ``x`` (``pack`` sets it to zero). It is excluded from every sum, and zero in ``pooled``
and ``centred`` of :func:`forward`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fmnist.functional.kernels.cpu import algorithm, jobs, tasks, winograd_tasks
from fmnist.functional.kernels.cpu.algorithm import Shape
from fmnist.functional.kernels.cpu.simd import WIDTH


class _Plan(NamedTuple):
    """What the shapes of a call decide.

    Attributes:
        large, small: the shapes of ``y`` and of ``pooled``.
        fast: whether Winograd's algorithm is used.
        size: blocks whose images are transformed at a time.
        chunks: partial sums of the weight gradient.
        tiles, turned: numbers of a lane's arranged weights, and of those with inputs and outputs
            exchanged.
    """

    large: Shape
    small: Shape
    fast: bool
    size: int
    chunks: int
    tiles: int
    turned: int


@lru_cache(256)  # a small step has no time for this in each call
def plan(x: Shape, weight: Shape, frame: tuple[int, int], *, keep: bool, backward: bool) -> _Plan:
    """Check the shapes of a call, and say how it is computed.

    Args:
        x: the shape of the images in blocks.
        weight: the shape of the weights.
        frame: ``(before, after)``.
        keep: whether ``y`` is kept from the forward pass.
        backward: whether this is the backward pass.

    Raises:
        ValueError: The shapes do not go together.
    """
    if len(x) != 6 or x[5] != WIDTH:
        raise ValueError(f"images must be in blocks of {WIDTH}, not of shape {tuple(x)}")
    some = len(weight) == 5 and weight[3] == weight[4] and min(weight) > 0
    if not some or x[0] not in (1, weight[0]) or x[2] != weight[2]:
        raise ValueError(f"images {tuple(x)} do not go with weights {tuple(weight)}")
    lanes, outputs, inputs, k, _ = weight
    rows, columns = x[3] + sum(frame) - k + 1, x[4] + sum(frame) - k + 1
    if min(frame) < 0 or max(frame) >= k or min(rows, columns) < 1:
        raise ValueError(f"a frame of {frame} and kernels of {k} do not go with {tuple(x)}")
    fast = keep and algorithm.winograd(x, weight, frame)
    return _Plan(
        (lanes, x[1] if keep else 0, outputs, rows, columns, WIDTH),
        (lanes, x[1], outputs, rows // 2, columns // 2, WIDTH),
        fast,
        algorithm.group(x, weight, frame, backward=backward),
        algorithm.chunks(x, weight, frame),
        algorithm.arranged(weight, fast),
        algorithm.arranged((lanes, inputs, outputs, k, k), fast),
    )


def forward(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    examples: int,
    eps: float,
    frame: tuple[int, int] = (0, 0),
    keep: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the operation, normalising by the statistics of the batch.

    Source: Ioffe and Szegedy, Batch Normalization (2015), algorithm 1.

    Args:
        x: images in blocks.
        weight: weights of the convolution.
        gamma: scale of the batch norm.
        beta: shift of the batch norm.
        examples: number of examples, without the padding.
        eps: added to the variance.
        frame: ``(before, after)``.
        keep: whether to return ``y``. Without it, the convolution is computed in both passes, and
            again by :func:`backward`. This is faster where it has few inputs.

    Returns:
        ``(pooled, mean, var, y, centred, which)``. ``var`` is the biased variance. The last three
        are for :func:`backward`. ``y`` has no blocks unless ``keep``. ``centred`` is ``y - mean``
        at the pixel of each 2x2 square that is the largest after batch norm. ``which`` (uint8) is
        the position of this pixel in the square in row-major order, or 4 where the ReLU outputs
        zero.

    Raises:
        ValueError: The shapes do not go together, or ``examples`` do not end in the last block.
        TypeError: A tensor is not float32.
    """
    large, small, fast, size, _, tile, _ = plan(
        x.shape, weight.shape, frame, keep=keep, backward=False
    )
    _check(x, weight, gamma, beta)
    _check_examples(examples, x.shape[1])
    lanes, blocks = small[:2]
    y, pooled, centred = x.new_empty(large), x.new_empty(small), x.new_empty(small)
    which = x.new_empty(small, dtype=torch.uint8)
    mean, var, scale = (x.new_empty(gamma.shape) for _ in range(3))
    means, squares = (x.new_empty(small[:3], dtype=torch.float64) for _ in range(2))
    tiles = weight.new_empty(lanes, tile)
    x, weight, gamma, beta = _contiguous(x, weight, gamma, beta)
    table = jobs.table(
        (examples, *frame, size, eps),
        (x, weight, y, pooled, centred, which, gamma, beta, mean, var, scale, tiles, None, means,
         squares),
    )  # fmt: skip
    if fast:
        winograd_tasks.arrange_weights.run(table, lanes)
        winograd_tasks.convolve_group.run(table, lanes * -(-blocks // size))
    else:
        tasks.arrange_weights.run(table, lanes)
        tasks.convolve_block.run(table, lanes * blocks)
    tasks.merge_blocks.run(table, lanes)
    tasks.pool_block.run(table, lanes * blocks)
    return pooled, mean, var, y, centred, which


def forward_given(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    frame: tuple[int, int] = (0, 0),
) -> Tensor:
    """Compute ``pooled`` with a given mean and variance, as in evaluation.

    Arguments and errors are those of :func:`forward`.
    """
    large, small, fast, size, _, tile, _ = plan(
        x.shape, weight.shape, frame, keep=True, backward=False
    )
    _check(x, weight, gamma, beta, mean, var)
    lanes, blocks = small[:2]
    y = x.new_empty(large if fast else (lanes, 0, *large[2:]))
    pooled = x.new_empty(small)
    tiles = weight.new_empty(lanes, tile)
    scale = gamma / torch.sqrt(var + eps)
    x, weight, beta, mean, scale = _contiguous(x, weight, beta, mean, scale)
    table = jobs.table(
        (blocks * WIDTH, *frame, size, eps),
        (x, weight, y, pooled, None, None, None, beta, mean, None, scale, tiles, *[None] * 3),
    )
    if fast:
        winograd_tasks.arrange_weights.run(table, lanes)
        winograd_tasks.convolve_group.run(table, lanes * -(-blocks // size))
    else:
        tasks.arrange_weights.run(table, lanes)
    tasks.pool_block.run(table, lanes * blocks)
    return pooled


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    mean: Tensor,
    var: Tensor,
    y: Tensor,
    centred: Tensor,
    which: Tensor,
    examples: int,
    eps: float,
    for_x: bool,
    frame: tuple[int, int] = (0, 0),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients for ``x`` (if ``for_x``), ``weight``, ``gamma`` and ``beta``.

    The gradient for the output of the convolution is ``scale * (d - mean(d) - h * mean(d * h))``
    (Ioffe and Szegedy 2015, section 3). Here ``d`` is ``grad`` propagated back through pooling
    and ReLU, ``h`` the normalised output of the convolution, ``scale = gamma / sqrt(var + eps)``,
    and the means are over the values of a channel.

    Args:
        grad: gradient for ``pooled``.
        x, weight, gamma: inputs of :func:`forward`.
        mean, var, y, centred, which: results of :func:`forward`.
        examples: number of examples, without the padding.
        eps: added to the variance.
        for_x: whether the gradient for ``x`` is needed; ``x`` then has all lanes.
        frame: ``(before, after)``.

    Returns:
        ``(dx, dweight, dgamma, dbeta)`` with the shapes of ``x``, ``weight``, ``gamma`` and
        ``beta``. If not ``for_x``, ``dx`` is a placeholder ``[1, 1, 1, 1, 1, 1]``.

    Raises:
        ValueError: The shapes do not go together, or ``examples`` do not end in the last block.
        TypeError: A tensor is not float32, or ``which`` is not uint8.
    """
    large, small, fast, size, chunks, tile, turn = plan(
        x.shape, weight.shape, frame, keep=y.numel() > 0, backward=True
    )
    _check(x, weight, gamma, mean, var)
    _check_examples(examples, x.shape[1])
    if y.shape != large or any(t.shape != small for t in (grad, centred, which)):
        raise ValueError(f"the results of forward and the gradient must be {large} and {small}")
    if for_x and len(x) != len(weight):
        raise ValueError("the gradient for the images needs the images of all lanes")
    if which.dtype != torch.uint8 or {grad.dtype, y.dtype, centred.dtype} != {torch.float32}:
        raise TypeError("the kernels of the CPU are for float32, and places are uint8")
    lanes, blocks, outputs = small[:3]
    dx = x.new_empty(x.shape) if for_x else x.new_zeros((1,) * 6)
    parts = x.new_empty(lanes, chunks, *weight.shape[1:])
    dgamma, dbeta = x.new_empty(gamma.shape), x.new_empty(gamma.shape)
    passed, linear = x.new_empty(lanes, blocks, 2, outputs), x.new_empty(lanes, 3, outputs)
    tiles = turned = None
    if not y.numel():
        tiles = weight.new_empty(lanes, tile)
    if for_x:
        exchanged = weight.transpose(1, 2).contiguous()
        turned = weight.new_empty(lanes, turn)
    grad, x, weight, gamma, mean, var = _contiguous(grad, x, weight, gamma, mean, var)
    y, centred, which = _contiguous(y, centred, which)
    table = jobs.table(
        (examples, *frame, size, eps),
        (x, weight, y, None, centred, which, gamma, None, mean, var, None, tiles, turned, None,
         None, grad, passed, linear, dx, parts, dgamma, dbeta),
    )  # fmt: skip
    kind = winograd_tasks if fast else tasks
    if turned is not None:
        kind.arrange_weights.run(jobs.table((), (None, exchanged, *[None] * 9, turned)), lanes)
    if tiles is not None:
        tasks.arrange_weights.run(table, lanes)
    tasks.sum_passed.run(table, lanes * blocks)
    tasks.merge_passed.run(table, lanes)
    kind.gradients_of_chunk.run(table, lanes * parts.shape[1])
    return dx, parts.sum(1), dgamma, dbeta


def _check(x: Tensor, weight: Tensor, *channels: Tensor) -> None:
    """Check numbers of channels and dtypes, as compiled loops have no checks of array bounds."""
    for numbers in channels:
        if numbers.shape != weight.shape[:2]:
            expected, found = tuple(weight.shape[:2]), tuple(numbers.shape)
            raise ValueError(f"a number for each output channel is {expected}, not {found}")
    if any(t.dtype != torch.float32 for t in (x, weight, *channels)):
        raise TypeError("the kernels of the CPU are for float32")


def _check_examples(examples: int, blocks: int) -> None:
    if not (blocks - 1) * WIDTH < examples <= blocks * WIDTH or examples < 1:
        raise ValueError(f"{examples} examples do not fill {blocks} blocks of {WIDTH}")


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    # Most are so, and each further call adds to the time of a small step.
    return [x if x.is_contiguous() else x.contiguous() for x in tensors]
