"""Convolution, batch norm, ReLU and 2x2 max pooling as one operation, for a CPU.

There the convolutions are as fast as the processor multiplies only if the images lie as the
kernels want them (see tiles.py): ``[blocks, channels, height, width, WIDTH]``, ``WIDTH`` examples
side by side, the last block filled up with zeros. :func:`pack` and :func:`unpack` go there and
back; between them a network of such operations stays in this layout.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from fmnist.functional.kernels import norm_relu_pool as plain
from fmnist.functional.kernels.norm_relu_pool import EPS, PerChannel

Blocks = Float[Tensor, "blocks channels height width side_by_side"]
Kernels = Float[Tensor, "outputs inputs k k"]


def serves(images: Tensor, compute: torch.dtype | None) -> bool:
    """Whether there are such operations for these images, in this precision."""
    exact = images.dtype == torch.float32 and compute in (None, torch.float32)
    return exact and images.device.type == "cpu"


def pack(images: Float[Tensor, "examples channels height width"]) -> Blocks:
    """The images in blocks."""
    from fmnist.functional.kernels.cpu.simd import WIDTH

    missing = -len(images) % WIDTH
    if missing:
        images = F.pad(images, (0, 0) * 3 + (0, missing))
    return images.unflatten(0, (-1, WIDTH)).movedim(1, -1).contiguous()


def unpack(x: Blocks, examples: int) -> Float[Tensor, "examples channels height width"]:
    """So many images out of blocks."""
    return x.movedim(-1, 1).flatten(0, 1)[:examples]


def definition(
    x: Blocks, weight: Kernels, gamma: PerChannel, beta: PerChannel, examples: int
) -> tuple[Blocks, PerChannel, PerChannel]:
    """What the operation means, in plain torch: see :func:`conv_block`."""
    y = F.conv2d(unpack(x, examples), weight)
    pooled, mean, var = plain.definition(y, gamma, beta)
    return pack(pooled), mean, var


def definition_given(
    x: Blocks,
    weight: Kernels,
    gamma: PerChannel,
    beta: PerChannel,
    mean: PerChannel,
    var: PerChannel,
) -> Blocks:
    """The same with a given mean and variance, as evaluation has them."""
    y = F.conv2d(unpack(x, x.shape[0] * x.shape[-1]), weight)
    return pack(plain.definition_given(y, gamma, beta, mean, var))


def conv_block(
    x: Blocks, weight: Kernels, gamma: PerChannel, beta: PerChannel, examples: int
) -> tuple[Blocks, PerChannel, PerChannel]:
    """Cross-correlation (stride 1, no padding), batch norm by the batch, ReLU, 2x2 max pooling.

    There is no bias before the batch norm, which would take it away again.

    Args:
        x: images; beyond the last example there must be finite numbers, as :func:`pack` has it.
        weight: of the convolution.
        gamma, beta: scale and shift of the batch norm.
        examples: how many there are.

    Returns:
        The pooled activations, and the mean and the biased variance of each channel. The gradient
        does not pass through these two; they are there for the running statistics.
    """
    pooled, mean, var, *_ = _Block.apply(x, weight, gamma, beta, examples, 0)
    return pooled, mean, var


def conv_block_given(
    x: Blocks,
    weight: Kernels,
    gamma: PerChannel,
    beta: PerChannel,
    mean: PerChannel,
    var: PerChannel,
) -> Blocks:
    """:func:`conv_block` with a given mean and variance."""
    pooled: Tensor = _Given.apply(x, weight, gamma, beta, mean, var, 0)
    return pooled


# The operators have a leading axis of lanes everywhere; x may have 1 where all lanes share it.


@torch.library.custom_op("fmnist::conv_block", mutates_args=(), device_types="cpu")
def _forward(
    x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, examples: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    from fmnist.functional.kernels.cpu import blocks as cpu

    return cpu.forward(x, weight, gamma, beta, examples, EPS)


@torch.library.custom_op("fmnist::conv_block_grad", mutates_args=(), device_types="cpu")
def _backward(
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
    for_x: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from fmnist.functional.kernels.cpu import blocks as cpu

    saved = (x, weight, gamma, mean, var, y, centred, which)
    return cpu.backward(grad, *saved, examples, EPS, for_x)


@torch.library.custom_op("fmnist::conv_block_given", mutates_args=(), device_types="cpu")
def _given(
    x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor
) -> Tensor:
    from fmnist.functional.kernels.cpu import blocks as cpu

    return cpu.forward_given(x, weight, gamma, beta, mean, var, EPS)


@_given.register_fake
def _(x: Tensor, weight: Tensor, *_: Tensor) -> Tensor:
    return _pooled_like(x, weight)


@_forward.register_fake
def _(x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, examples: int) -> tuple[Tensor, ...]:
    pooled = _pooled_like(x, weight)
    height, width = (size - weight.shape[-1] + 1 for size in x.shape[3:5])
    y = x.new_empty(*pooled.shape[:3], height, width, x.shape[-1])
    which = torch.empty_like(pooled, dtype=torch.uint8)
    channels = gamma.shape
    return pooled, x.new_empty(channels), x.new_empty(channels), y, pooled.clone(), which


@_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, gamma: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx = x.new_empty(x.shape if rest[-1] else (1,) * 6)
    return dx, torch.empty_like(weight), torch.empty_like(gamma), torch.empty_like(gamma)


def _pooled_like(x: Tensor, weight: Tensor) -> Tensor:
    lanes, outputs, _, k, _ = weight.shape
    small = ((x.shape[3] - k + 1) // 2, (x.shape[4] - k + 1) // 2)
    return x.new_empty(lanes, x.shape[1], outputs, *small, x.shape[-1])


# How autograd and vmap see them. `lanes` counts the axis that the tensors have already; 0 is none.


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, examples: int, lanes: int
    ) -> tuple[Tensor, ...]:
        return _call_with_lanes(_forward, lanes, x, weight, gamma, beta, examples)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, gamma, _, ctx.examples, ctx.lanes = inputs
        ctx.save_for_backward(x, weight, gamma, *output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        for_x = ctx.needs_input_grad[0]
        x, *saved = ctx.saved_tensors
        shared = ctx.lanes > 0 and x.shape[0] < ctx.lanes
        if for_x and shared:
            x = x.expand(ctx.lanes, *x.shape[1:])
        grads = _BlockGrad.apply(grad, x, *saved, ctx.examples, for_x, ctx.lanes)
        if for_x and shared:
            grads = (grads[0].sum(0, keepdim=True), *grads[1:])
        return (*([] if for_x else [None]), *grads, None, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        *tensors, examples, lanes = inputs
        tensors, all_ = _merge_vmap_axis(info.batch_size, lanes, in_dims, tensors, shared=0)
        return _split_vmap_axis(info.batch_size, lanes, _Block.apply(*tensors, examples, all_))


class _BlockGrad(torch.autograd.Function):
    """Gradients for the images, if they are wanted, the weights, gamma and beta."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        *operands, for_x, lanes = inputs
        grads = _call_with_lanes(_backward, lanes, *operands, for_x)
        return grads if for_x else grads[1:]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
        pass

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError("conv_block has no second derivative")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        *tensors, examples, for_x, lanes = inputs
        shared = None if for_x else 1  # a gradient for the images is each lane's own
        tensors, all_ = _merge_vmap_axis(info.batch_size, lanes, in_dims, tensors, shared)
        grads = _BlockGrad.apply(*tensors, examples, for_x, all_)
        return _split_vmap_axis(info.batch_size, lanes, grads)


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        *tensors, lanes = inputs
        if lanes:
            return _given(*tensors)
        return _given(*(tensor[None] for tensor in tensors))[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.lanes = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Nobody trains in evaluation mode; a gradient is had all the same, from the definition.
        def of_lanes(x: Tensor, *rest: Tensor) -> Tensor:
            x = x.expand(ctx.lanes, *x.shape[1:])
            pooled: Tensor = torch.func.vmap(definition_given)(x, *rest)
            return pooled

        function = of_lanes if ctx.lanes else definition_given
        gradients = torch.func.vjp(function, *ctx.saved_tensors)[1](grad)
        return (*gradients, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        *tensors, lanes = inputs
        tensors, all_ = _merge_vmap_axis(info.batch_size, lanes, in_dims, tensors, shared=0)
        (pooled,), (dim,) = _split_vmap_axis(
            info.batch_size, lanes, (_Given.apply(*tensors, all_),)
        )
        return pooled, dim


def _call_with_lanes(operator: Any, lanes: int, *inputs: Any) -> tuple[Tensor, ...]:
    """Call an operator, which wants lanes, on tensors that may have none."""
    if lanes:
        outputs: tuple[Tensor, ...] = operator(*inputs)
        return outputs
    return tuple(out[0] for out in operator(*(t[None] if _is_tensor(t) else t for t in inputs)))


def _is_tensor(x: object) -> bool:
    return isinstance(x, Tensor)


def _merge_vmap_axis(
    more: int, lanes: int, in_dims: tuple[Any, ...], tensors: list[Tensor], shared: int | None
) -> tuple[list[Tensor], int]:
    """Merge an axis of vmap into the lanes; what is at ``shared`` may stay one for all lanes."""
    merged = []
    for i, (x, dim) in enumerate(zip(tensors, in_dims[: len(tensors)], strict=True)):
        if dim is not None:
            x = x.movedim(dim, 0)
            if lanes:  # images that were one for all lanes are no longer
                x = x.expand(more, lanes, *x.shape[2:])
        elif i == shared and (not lanes or x.shape[0] == 1):
            merged.append(x if lanes else x[None])
            continue
        else:
            x = x.expand(more, *x.shape)
        merged.append(x.flatten(0, 1) if lanes else x)
    return merged, more * max(lanes, 1)


def _split_vmap_axis(
    fewer: int, lanes: int, outputs: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Give vmap its axis back, leaving the ``lanes`` that were there before."""
    if lanes:
        outputs = tuple(out.unflatten(0, (fewer, lanes)) for out in outputs)
    return tuple(outputs), (0,) * len(outputs)
