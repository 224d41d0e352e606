"""Convolution, batch norm, ReLU and 2x2 max pooling on a CPU, compiled by Numba.

No compiler is needed where it runs. Images come in blocks (see tiles.py): ``x`` is ``[lanes,
blocks, channels, height, width, WIDTH]``, with one lane where all lanes share it. Beyond the last
example a block holds finite numbers on the way in (``pack`` puts zeros) and gradients of zero on
the way back; between, what is there is kept out of every sum.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fmnist.functional.kernels.cpu import loops as cpu_loops
from fmnist.functional.kernels.cpu.simd import WIDTH

CHUNKS = 16  # parts that the gradient for the weights is summed in, at most: work for 16 cores


def forward(
    x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, examples: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Pooled output, mean, biased variance; and for :func:`backward` the convolution's output, and
    of the pixel that was the largest of its square its distance from the mean and its place.
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
    """Pooled output with a mean and a variance that are known."""
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
    """Gradients for ``x`` (nothing where it is not wanted), ``weight``, ``gamma`` and ``beta``.

    With n values a channel, d the gradient after the ReLU and the pooling and h the normalised
    output: ``scale * (d - mean(d) - h * mean(d * h))`` (Ioffe and Szegedy 2015, section 3) is
    the gradient for the convolution's output.
    """
    _check(x, weight, for_x)
    dx = torch.empty(x.shape) if for_x else torch.zeros((1,) * 6)
    chunks = min(CHUNKS, -(-x.shape[1] // 2))  # of two blocks or more: each part costs a sum
    parts = torch.empty(weight.shape[0], chunks, *weight.shape[1:])
    dgamma, dbeta = torch.empty_like(gamma), torch.empty_like(gamma)
    arrays = _arrays(grad, x, weight, gamma, mean, var, y, centred, which)
    cpu_loops.backward(*arrays, *_arrays(dx, parts, dgamma, dbeta), examples, eps, for_x)
    return dx, parts.sum(1), dgamma, dbeta


def _check(x: Tensor, weight: Tensor, own: bool = False) -> None:
    """What compiled code does not look at, and would read beyond the end for."""
    fits = len(x) == len(weight) or (len(x) == 1 and not own)
    if not fits or x.shape[2] != weight.shape[2]:
        raise ValueError(f"images {tuple(x.shape)} do not go with weights {tuple(weight.shape)}")
    if x.dtype != torch.float32 or weight.dtype != torch.float32:
        raise TypeError("the kernels of the CPU are for float32")


def _arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]
