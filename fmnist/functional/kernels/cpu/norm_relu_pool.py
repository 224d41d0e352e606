"""norm_relu_pool on a CPU, in bfloat16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fmnist.functional.kernels.cpu import channels_last as kernels


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Apply batch norm by the statistics of the batch, ReLU and 2x2 max pooling.

    Source: Ioffe and Szegedy, Batch Normalization (2015), algorithm 1.

    Args:
        x: bfloat16 ``[batch, channels, height, width]``.
        weight: scale, float32 ``[channels]``.
        bias: shift, float32 ``[channels]``.
        eps: added to the variance.

    Returns:
        ``(pooled, mean, var, centred, which)`` as the function of this name for CUDA: ``pooled``
        is bfloat16, ``which`` uint8, and the others are float32.
    """
    types_of_images = (torch.bfloat16, torch.float32, torch.uint8)
    pooled, centred, which = (_empty_pooled(x, dtype) for dtype in types_of_images)
    mean, var = torch.empty_like(weight), torch.empty_like(weight)
    outputs = _arrays(pooled, centred, which, mean, var)
    kernels.forward(*_images(x), *_arrays(weight, bias), *outputs, eps)
    pooled, centred, which = (t.permute(0, 3, 1, 2) for t in (pooled, centred, which))
    return pooled, mean, var, centred, which


def forward_given(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor]:
    """Compute ``pooled`` of :func:`forward` with a given mean and variance."""
    pooled = _empty_pooled(x, torch.bfloat16)
    kernels.forward_given(*_images(x), *_arrays(weight, bias, mean, var, pooled), eps)
    return (pooled.permute(0, 3, 1, 2),)


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
    """Compute the gradients for ``x``, ``weight`` and ``bias``.

    Source: Ioffe and Szegedy (2015), section 3.

    Args:
        grad: gradient for ``pooled``, bfloat16.
        x, weight: inputs of :func:`forward`.
        mean, var, centred, which: results of :func:`forward`.
        eps: added to the variance.

    Returns:
        ``(dx, dweight, dbias)`` with the shapes and dtypes of ``x``, ``weight`` and ``weight``.
    """
    batch, channels, height, width = x.shape
    dweight, dbias = torch.zeros_like(weight), torch.zeros_like(weight)
    if not grad.numel():
        return torch.zeros_like(x, memory_format=torch.channels_last), dweight, dbias
    dx = x.new_empty(batch, height, width, channels)
    saved = (*_images(grad, x), *_arrays(weight, mean, var), *_images(centred, which))
    kernels.backward(*saved, *_arrays(dx, dweight, dbias), eps)
    return dx.permute(0, 3, 1, 2), dweight, dbias


def _empty_pooled(x: Tensor, dtype: torch.dtype) -> Tensor:
    batch, channels, height, width = x.shape
    return x.new_empty(batch, height // 2, width // 2, channels, dtype=dtype)


def _images(*tensors: Tensor) -> list[Any]:
    return _arrays(*(x.permute(0, 2, 3, 1) for x in tensors))


def _arrays(*tensors: Tensor) -> list[Any]:
    arrays = (x.detach().contiguous() for x in tensors)
    return [(x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy() for x in arrays]
