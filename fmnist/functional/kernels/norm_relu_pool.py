"""Batch norm, ReLU and 2x2 max pooling as one operation.

Separately, each of the three reads and writes the largest tensors of the network, forward and
backward. The fused operation reads its input twice forward and once backward.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fmnist.functional.kernels import direct
from fmnist.functional.kernels import lanes as axis
from fmnist.functional.kernels.fold import fold, unfold

EPS = 1e-5
"""Added to the variance in batch norm, as in torch.nn."""

# Kernels are not imported here: Triton takes a second and is needed on a GPU only. In float32 on a
# CPU, the blocks of conv_block.py are faster.
_KERNELS = {("cpu", torch.bfloat16): "cpu", ("meta", torch.bfloat16): ""}
"""The package of the kernels for a device and dtype. On ``meta`` the memory is estimated."""

if importlib.util.find_spec("triton"):
    _KERNELS["cuda", torch.float32] = "cuda"

Pooled = Float[Tensor, "batch channels height//2 width//2"]
PerChannel = Float[Tensor, " channels"]


def definition(
    x: Float[Tensor, "batch channels height width"], weight: PerChannel, bias: PerChannel
) -> tuple[Pooled, PerChannel, PerChannel]:
    """Compute the operation in plain torch, normalising by the statistics of the batch.

    Source: Ioffe and Szegedy, Batch Normalization (2015), algorithm 1.

    Args:
        x: the input.
        weight: scale of each channel.
        bias: shift of each channel.

    Returns:
        ``(pooled, mean, var)``: the 2x2 max pooling of ``max(0, (x - mean) / sqrt(var + EPS) *
        weight + bias)``, in the dtype of ``x``, and the mean and biased variance of each channel.
        Arithmetic is in the dtype of ``weight``.
    """
    var, mean = torch.var_mean(x.to(weight.dtype), dim=(0, 2, 3), correction=0)
    return definition_given(x, weight, bias, mean, var), mean, var


def definition_given(
    x: Float[Tensor, "batch channels height width"],
    weight: PerChannel,
    bias: PerChannel,
    mean: PerChannel,
    var: PerChannel,
) -> Pooled:
    """Compute :func:`definition` with a given mean and variance, as in evaluation."""
    scale = weight * torch.rsqrt(var + EPS)
    normal = (x - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]
    return F.max_pool2d(torch.relu(normal), 2).to(x.dtype)


def norm_relu_pool(
    x: Float[Tensor, "batch channels height width"], weight: PerChannel, bias: PerChannel
) -> tuple[Pooled, PerChannel, PerChannel]:
    """Compute :func:`definition`, by a fused kernel where there is one for the device and dtype.

    With the fused kernel, no gradient flows through the returned mean and variance. They are for
    the running statistics. Second derivatives and those of forward mode are of the definition.

    Returns:
        ``(pooled, mean, var)`` as in :func:`definition`.

    Raises:
        ValueError: With the fused kernel: the shapes do not go together.
    """
    if _has_kernel(x, weight):
        pooled, mean, var, *_ = _NormReluPool.apply(x, weight, bias)
        return pooled, mean, var
    return definition(x, weight, bias)


def norm_relu_pool_given(
    x: Float[Tensor, "batch channels height width"],
    weight: PerChannel,
    bias: PerChannel,
    mean: PerChannel,
    var: PerChannel,
) -> Pooled:
    """Compute :func:`definition_given`, by a fused kernel where there is one."""
    function = _Given.apply if _has_kernel(x, weight) else definition_given
    return function(x, weight, bias, mean, var)


def reads(compute: torch.dtype, like: Tensor) -> bool:
    """Return whether a kernel reads what convolutions in another precision write.

    Args:
        compute: the dtype that the convolutions compute in.
        like: a tensor with the device of the images and the dtype of the parameters.
    """
    return like.dtype == torch.float32 and (like.device.type, compute) in _KERNELS


def _has_kernel(x: Tensor, weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and (x.device.type, x.dtype) in _KERNELS


def _kernels(x: Tensor) -> Any:
    package = _KERNELS[x.device.type, x.dtype]
    return importlib.import_module(f"fmnist.functional.kernels.{package}.norm_relu_pool")


def _check(x: Tensor, *channels: Tensor, small: Sequence[Tensor] = ()) -> None:
    """Check shapes, as the kernels have no checks of array bounds."""
    if x.dim() != 4 or any(t.shape != x.shape[1:2] for t in channels):
        shapes = ", ".join(str(tuple(t.shape)) for t in channels)
        raise ValueError(f"images {tuple(x.shape)} do not go with numbers {shapes}")
    pooled = _pooled_shape(x)
    if any(t.shape != pooled for t in small):
        raise ValueError(f"the results of forward and the gradient must be {pooled}")


@direct.operator("fmnist::norm_relu_pool", "cpu", "cuda")
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check(x, weight, bias)
    results: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    results = _kernels(x).forward(x, weight, bias, EPS)
    return results


@direct.operator("fmnist::norm_relu_pool_grad", "cpu", "cuda")
def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    var: Tensor,
    centred: Tensor,
    which: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(x, weight, mean, var, small=(grad, centred, which))
    results: tuple[Tensor, Tensor, Tensor]
    results = _kernels(x).backward(grad, x, weight, mean, var, centred, which, EPS)
    return results


@direct.operator("fmnist::norm_relu_pool_given", "cpu", "cuda")
def _given(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    _check(x, weight, bias, mean, var)
    pooled: Tensor = _kernels(x).forward_given(x, weight, bias, mean, var, EPS)[0]
    return pooled


@_given.register_fake
def _(x: Tensor, *_: Tensor) -> Tensor:
    return _empty_like_pooled(x, x.dtype)


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    mean, var = (x.new_empty(x.shape[1], dtype=torch.float32) for _ in range(2))
    kinds = (x.dtype, torch.float32, torch.uint8)
    pooled, centred, which = (_empty_like_pooled(x, dtype) for dtype in kinds)
    return pooled, mean, var, centred, which


@_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
    dx = _empty_channels_last(x, x.shape, x.dtype)
    return dx, weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _empty_like_pooled(x: Tensor, dtype: torch.dtype) -> Tensor:
    return _empty_channels_last(x, _pooled_shape(x), dtype)


def _pooled_shape(x: Tensor) -> tuple[int, ...]:
    return *x.shape[:2], x.shape[2] // 2, x.shape[3] // 2


def _empty_channels_last(x: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    last = torch.channels_last
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=last)


class _NormReluPool(torch.autograd.Function):
    """The operators with a gradient. Channels are independent, so lanes are folded into them."""

    @staticmethod
    def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
        return _forward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        axis.save(ctx, *inputs, *output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        return _NormReluPoolGrad.apply(grad, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> tuple[Tensor | None, ...]:
        return axis.push(_pooled, ctx.saved_tensors[:3], tangents), *[None] * 4

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> Any:
        return _vmap_as_channels(_NormReluPool.apply, info.batch_size, in_dims, inputs)


class _NormReluPoolGrad(torch.autograd.Function):
    @staticmethod
    def forward(
        grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, *saved: Tensor
    ) -> tuple[Tensor, ...]:
        return _backward(grad, x, weight, *saved)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        axis.save(ctx, *inputs[:4])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        return *axis.pull(_gradients, ctx.saved_tensors, cotangents), *[None] * 4

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        return axis.push(_gradients, ctx.saved_tensors, tangents[:4])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> Any:
        return _vmap_as_channels(_NormReluPoolGrad.apply, info.batch_size, in_dims, inputs)


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Tensor) -> Tensor:
        return _given(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        axis.save(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return axis.pull(definition_given, ctx.saved_tensors, grad)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        return axis.push(definition_given, ctx.saved_tensors, tangents)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> Any:
        def function(*folded: Tensor) -> tuple[Tensor]:
            return (_Given.apply(*folded),)

        (pooled,), (dim,) = _vmap_as_channels(function, info.batch_size, in_dims, inputs)
        return pooled, dim


def _pooled(*inputs: Tensor) -> Pooled:
    """Return the activations of :func:`definition`."""
    return definition(*inputs)[0]


def _gradients(grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of the definition."""
    return axis.pull(_pooled, inputs, grad)


def _vmap_as_channels(
    function: Any, lanes: int, in_dims: tuple[int | None, ...], inputs: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Apply a function that treats channels independently to lanes folded into channels."""
    folded = []
    for x, lane_dim in zip(inputs, in_dims, strict=True):
        own_dims = x.dim() - (lane_dim is not None)
        folded.append(fold(x, lane_dim, lanes, 1 if own_dims == 4 else 0))
    outputs = function(*folded)
    dims = tuple(1 if x.dim() == 4 else 0 for x in outputs)
    return tuple(unfold(x, lanes, dim) for x, dim in zip(outputs, dims, strict=True)), dims
