"""Convolution, batch norm, ReLU and 2x2 max pooling on a CPU: allocation and checks.

The loops are in loops.py, compiled by Numba, so no C compiler is needed. All tensors are float32
unless stated otherwise and have these shapes:

* ``x [lanes or 1, blocks, inputs, height, width, WIDTH]``: images in blocks of ``WIDTH`` examples
  (see tiles.py); the axis of lanes has length 1 if all lanes share the images
* ``weight [lanes, outputs, inputs, k, k]``
* ``gamma``, ``beta``, ``mean``, ``var`` ``[lanes, outputs]``
* ``y [lanes, blocks, outputs, rows, columns, WIDTH]``: the output of the convolution, with
  ``rows = height - k + 1`` and ``columns = width - k + 1``
* ``pooled``, ``centred``, ``which`` and ``grad`` ``[lanes, blocks, outputs, rows // 2,
  columns // 2, WIDTH]``

The padding after the last example must be finite in ``x`` (``pack`` sets it to zero) and zero in
``grad``. It is excluded from every sum.
"""

from __future__ import annotations

from typing import Any

import torch
from numba import get_num_threads
from torch import Tensor

from fmnist.functional.kernels.cpu import loops as cpu_loops
from fmnist.functional.kernels.cpu.simd import WIDTH
from fmnist.functional.kernels.cpu.tiles import whole_tiles

CHUNKS = 16  # most partial sums of the weight gradient in a lane, so most parallel tasks


def forward(
    x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, examples: int, eps: float
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

    Returns:
        ``(pooled, mean, var, y, centred, which)``. ``var`` is the biased variance. The last three
        are for :func:`backward`. ``centred`` is ``y - mean`` at the pixel of each 2x2 square that
        is the largest after batch norm. ``which`` (uint8) is the position of this pixel in the
        square in row-major order, or 4 where the ReLU outputs zero.

    Raises:
        ValueError: ``x`` and ``weight`` have different numbers of channels or lanes.
        TypeError: ``x`` or ``weight`` is not float32.
    """
    _check(x, weight)
    lanes, outputs, _, k, _ = weight.shape
    blocks, height, width = x.shape[1], x.shape[3] - k + 1, x.shape[4] - k + 1
    y = torch.empty(lanes, blocks, outputs, height, width, WIDTH)
    small = (lanes, blocks, outputs, height // 2, width // 2, WIDTH)
    pooled, centred = torch.empty(small), torch.empty(small)
    which = torch.empty(small, dtype=torch.uint8)
    mean, var = torch.empty(lanes, outputs), torch.empty(lanes, outputs)
    cpu_loops.forward(
        *_arrays(x, weight, gamma, beta, y, pooled, centred, which, mean, var), examples, eps
    )
    return pooled, mean, var, y, centred, which


def forward_given(
    x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, eps: float
) -> Tensor:
    """Compute ``pooled`` with a given mean and variance, as in evaluation.

    Arguments and errors are those of :func:`forward`.
    """
    _check(x, weight)
    lanes, outputs, _, k, _ = weight.shape
    small = ((x.shape[3] - k + 1) // 2, (x.shape[4] - k + 1) // 2)
    pooled = torch.empty(lanes, x.shape[1], outputs, *small, WIDTH)
    scale = gamma / torch.sqrt(var + eps)
    cpu_loops.forward_given(*_arrays(x, weight, mean, scale, beta, pooled))
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

    Returns:
        ``(dx, dweight, dgamma, dbeta)`` with the shapes of ``x``, ``weight``, ``gamma`` and
        ``beta``. If not ``for_x``, ``dx`` is a placeholder ``[1, 1, 1, 1, 1, 1]``.

    Raises:
        ValueError: ``x`` and ``weight`` have different numbers of channels or lanes.
        TypeError: ``x`` or ``weight`` is not float32.
    """
    _check(x, weight, for_x)
    dx = torch.empty(x.shape) if for_x else torch.zeros((1,) * 6)
    parts = torch.empty(weight.shape[0], _chunks(x), *weight.shape[1:])
    dgamma, dbeta = torch.empty_like(gamma), torch.empty_like(gamma)
    arrays = _arrays(grad, x, weight, gamma, mean, var, y, centred, which)
    cpu_loops.backward(*arrays, *_arrays(dx, parts, dgamma, dbeta), examples, eps, for_x)
    return dx, parts.sum(1), dgamma, dbeta


def _chunks(x: Tensor) -> int:
    """Return the number of partial sums: of two blocks or more, to limit their memory."""
    return min(CHUNKS, -(-x.shape[1] // 2))


def workspace(x: Tensor, weight: Tensor, *, backward: bool) -> int:
    """Return how many bytes an operator takes in addition to its inputs and results, about.

    Args:
        x: images in blocks, also without data.
        weight: weights of the convolution, also without data.
        backward: whether the operator is :func:`backward` or one of the others.
    """
    lanes, outputs, inputs, k, _ = weight.shape
    padded = whole_tiles(outputs)
    pixels = (x.shape[3] - k + 1) * (x.shape[4] - k + 1)
    if not backward:
        return 4 * (lanes * padded * inputs * k * k + get_num_threads() * padded * pixels * WIDTH)
    tiles = lanes * whole_tiles(inputs) * outputs * k * k
    tasks = min(get_num_threads(), lanes * _chunks(x))
    of_thread = padded * (inputs * k * k + pixels) * WIDTH
    return 4 * (tiles + _chunks(x) * weight.numel() + tasks * of_thread)


def _check(x: Tensor, weight: Tensor, all_lanes: bool = False) -> None:
    """Check shapes and dtypes, as the compiled loops have no checks of array bounds."""
    fits = len(x) == len(weight) or (len(x) == 1 and not all_lanes)
    if not fits or x.shape[2] != weight.shape[2]:
        raise ValueError(f"images {tuple(x.shape)} do not go with weights {tuple(weight.shape)}")
    if x.dtype != torch.float32 or weight.dtype != torch.float32:
        raise TypeError("the kernels of the CPU are for float32")


def _arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]
