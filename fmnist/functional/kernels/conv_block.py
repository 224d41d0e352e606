"""Convolution, batch norm, ReLU and 2x2 max pooling as one operation on a CPU.

The kernels need images in *blocks* (see cpu/layout.py): ``[blocks, channels, height, width,
WIDTH]``. A block holds ``WIDTH`` examples, the fastest index in memory. The last block is padded
with zeros. :func:`pack` and :func:`unpack` convert images to blocks and back; a network of such
operations stays in this layout.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fmnist.functional.kernels import direct
from fmnist.functional.kernels import lanes as axis
from fmnist.functional.kernels import norm_relu_pool as plain
from fmnist.functional.kernels.norm_relu_pool import EPS, PerChannel
from fmnist.functional.types import Frame

Blocks = Float[Tensor, "blocks channels height width side_by_side"]
"""Images in blocks; ``side_by_side`` is ``WIDTH``, 16 with AVX-512 and else 8."""

Kernels = Float[Tensor, "outputs inputs k k"]
"""Weights of a convolution."""


def serves(images: Tensor, compute: torch.dtype | None) -> bool:
    """Return whether the kernels support the images and the precision.

    Args:
        images: the input of the network.
        compute: dtype of the convolutions; None for that of the images.
    """
    exact = images.dtype == torch.float32 and compute in (None, torch.float32)
    return exact and images.device.type in ("cpu", "meta")  # meta: the memory is estimated


def pack(images: Float[Tensor, "examples channels height width"]) -> Blocks:
    """Arrange images in blocks and pad the last block with zeros."""
    from fmnist.functional.kernels.cpu.simd import WIDTH

    missing = -len(images) % WIDTH
    if missing:
        images = F.pad(images, (0, 0) * 3 + (0, missing))
    return images.unflatten(0, (-1, WIDTH)).movedim(1, -1).contiguous()


def unpack(x: Blocks, examples: int) -> Float[Tensor, "examples channels height width"]:
    """Return the first ``examples`` images of blocks. This is the inverse of :func:`pack`."""
    return x.movedim(-1, 1).flatten(0, 1)[:examples]


def definition(
    x: Blocks,
    weight: Kernels,
    gamma: PerChannel,
    beta: PerChannel,
    examples: int,
    frame: Frame = (0, 0),
) -> tuple[Blocks, PerChannel, PerChannel]:
    """Compute :func:`conv_block` in plain torch."""
    y = F.conv2d(F.pad(unpack(x, examples), (*frame, *frame)), weight)
    pooled, mean, var = plain.definition(y, gamma, beta)
    return pack(pooled), mean, var


def definition_given(
    x: Blocks,
    weight: Kernels,
    gamma: PerChannel,
    beta: PerChannel,
    mean: PerChannel,
    var: PerChannel,
    frame: Frame = (0, 0),
) -> Blocks:
    """Compute :func:`conv_block_given` in plain torch."""
    images = unpack(x, x.shape[0] * x.shape[-1])
    y = F.conv2d(F.pad(images, (*frame, *frame)), weight)
    return pack(plain.definition_given(y, gamma, beta, mean, var))


def conv_block(
    x: Blocks,
    weight: Kernels,
    gamma: PerChannel,
    beta: PerChannel,
    examples: int,
    frame: Frame = (0, 0),
) -> tuple[Blocks, PerChannel, PerChannel]:
    """Apply convolution, batch norm by the statistics of the batch, ReLU and 2x2 max pooling.

    The convolution is a cross-correlation with stride 1. It has no bias, because batch norm would
    subtract it.

    Args:
        x: images in blocks. The padding after the last example must be finite; :func:`pack` sets
            it to zero.
        weight: weights of the convolution.
        gamma: scale of the batch norm.
        beta: shift of the batch norm.
        examples: number of examples, without the padding.
        frame: the zeros around each image of the convolution, fewer than ``k``.

    Returns:
        ``(pooled, mean, var)``: the activations ``[blocks, outputs, rows // 2, columns // 2,
        WIDTH]`` with ``rows = height + sum(frame) - k + 1`` and ``columns`` likewise, and the mean
        and biased variance of each output channel. The padding is zero. No gradient flows through
        the statistics; they are for the running statistics. Second derivatives and those of
        forward mode are of :func:`definition`.

    Raises:
        ValueError: The shapes do not go together, the blocks do not have this width, or
            ``examples`` do not end in the last block.
        TypeError: A tensor is not float32.
    """
    pooled, mean, var, *_ = _Block.apply(x, weight, gamma, beta, examples, *frame, 0)
    return pooled, mean, var


def conv_block_given(
    x: Blocks,
    weight: Kernels,
    gamma: PerChannel,
    beta: PerChannel,
    mean: PerChannel,
    var: PerChannel,
    frame: Frame = (0, 0),
) -> Blocks:
    """Compute :func:`conv_block` with a given mean and variance, as in evaluation.

    The mean and variance are those of the convolution without bias. All examples, including the
    padding, are computed.

    Returns:
        The activations, as of :func:`conv_block`.

    Raises:
        ValueError: The shapes do not go together, or the blocks do not have this width.
        TypeError: A tensor is not float32.
    """
    pooled: Tensor = _Given.apply(x, weight, gamma, beta, mean, var, *frame, 0)
    return pooled


# All tensors of the operators have a leading axis of lanes. That of x is 1 if all lanes share it.


@direct.operator("fmnist::conv_block")
def _forward(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    examples: int,
    before: int,
    after: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    from fmnist.functional.kernels.cpu import blocks as cpu

    keep = not _computed_again(weight)
    return cpu.forward(x, weight, gamma, beta, examples, EPS, (before, after), keep)


@direct.operator("fmnist::conv_block_grad")
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
    before: int,
    after: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from fmnist.functional.kernels.cpu import blocks as cpu

    saved = (x, weight, gamma, mean, var, y, centred, which)
    return cpu.backward(grad, *saved, examples, EPS, for_x, (before, after))


@direct.operator("fmnist::conv_block_given")
def _given(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    var: Tensor,
    before: int,
    after: int,
) -> Tensor:
    from fmnist.functional.kernels.cpu import blocks as cpu

    return cpu.forward_given(x, weight, gamma, beta, mean, var, EPS, (before, after))


def _computed_again(weight: Tensor) -> bool:
    """Whether ``y`` is computed again where it is needed, which is faster with few inputs.

    The first block of 12 channels then takes 0.75 of the time, of 64 channels 0.94.
    """
    return weight.shape[-3:].numel() <= 50


@_given.register_fake
def _(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return _pooled_like(x, weight, sum(rest[-2:]))


@_forward.register_fake
def _(
    x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, examples: int, before: int, after: int
) -> tuple[Tensor, ...]:
    pooled = _pooled_like(x, weight, before + after)
    height, width = (size + before + after - weight.shape[-1] + 1 for size in x.shape[3:5])
    blocks = 0 if _computed_again(weight) else x.shape[1]
    y = x.new_empty(len(weight), blocks, weight.shape[1], height, width, x.shape[-1])
    which = torch.empty_like(pooled, dtype=torch.uint8)
    channels = gamma.shape
    return pooled, x.new_empty(channels), x.new_empty(channels), y, pooled.clone(), which


@_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, gamma: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx = x.new_empty(x.shape if rest[-3] else (1,) * 6)
    dgamma = x.new_empty(gamma.shape)
    return dx, x.new_empty(weight.shape), dgamma, dgamma.clone()


def _pooled_like(x: Tensor, weight: Tensor, frame: int) -> Tensor:
    lanes, outputs, _, k, _ = weight.shape
    small = ((x.shape[3] + frame - k + 1) // 2, (x.shape[4] + frame - k + 1) // 2)
    return x.new_empty(lanes, x.shape[1], outputs, *small, x.shape[-1])


def workspace(operator: Any, args: tuple[Any, ...]) -> int:
    """Return how many bytes a call takes in addition to inputs and results; 0 for other operators.

    Args:
        operator: an operator of torch.
        args: its arguments, also without data.
    """
    name = _OPERATORS.get(operator)
    if name is None:
        return 0
    from fmnist.functional.kernels.cpu import algorithm

    copied = sum(x.nbytes for x in args if isinstance(x, Tensor) and not x.is_contiguous())
    x, weight = args[1:3] if name == "backward" else args[:2]
    return copied + algorithm.workspace(x.shape, weight.shape, args[-2:], name)


_OPERATORS: dict[object, Literal["forward", "given", "backward"]] = {
    torch.ops.fmnist.conv_block.default: "forward",
    torch.ops.fmnist.conv_block_given.default: "given",
    torch.ops.fmnist.conv_block_grad.default: "backward",
}


# Their rules for autograd and vmap. `lanes` is as in lanes.py.


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, *rest: int
    ) -> tuple[Tensor, ...]:
        *sizes, lanes = rest
        return axis.call(_forward, lanes, x, weight, gamma, beta, *sizes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.examples, before, after, ctx.lanes = inputs
        ctx.frame = before, after
        axis.save(ctx, *tensors, *output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        for_x = ctx.needs_input_grad[0]
        x, *saved = ctx.saved_tensors
        shared = ctx.lanes > 0 and x.shape[0] < ctx.lanes
        if for_x and shared:
            x = x.expand(ctx.lanes, *x.shape[1:])
        grads = _BlockGrad.apply(grad, x, *saved, ctx.examples, for_x, *ctx.frame, ctx.lanes)
        if for_x and shared:
            grads = (grads[0].sum(0, keepdim=True), *grads[1:])
        return (*([] if for_x else [None]), *grads, *[None] * 4)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        plain = axis.definition_of(partial(_pooled, ctx.examples, ctx.frame), ctx.lanes)
        return axis.push(plain, ctx.saved_tensors[:4], tangents[:4]), *[None] * 5

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        *tensors, examples, before, after, lanes = inputs
        tensors, all_ = axis.merge_vmap_axis(info.batch_size, lanes, in_dims, tensors, shared=0)
        out = _Block.apply(*tensors, examples, before, after, all_)
        return axis.split_vmap_axis(info.batch_size, lanes, out)


class _BlockGrad(torch.autograd.Function):
    """Gradients for the images (if ``for_x``), the weights, gamma and beta."""

    @staticmethod
    def forward(
        grad: Tensor, x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, *rest: Any
    ) -> tuple[Tensor, ...]:
        *saved, for_x, before, after, lanes = rest
        grads = axis.call(_backward, lanes, grad, x, weight, gamma, *saved, for_x, before, after)
        return grads if for_x else grads[1:]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
        *_, examples, for_x, before, after, lanes = inputs
        axis.save(ctx, *inputs[:5])
        plain = partial(_gradients, examples, (before, after), for_x)
        ctx.plain = axis.definition_of(plain, lanes)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        return *axis.pull(ctx.plain, ctx.saved_tensors, cotangents), *[None] * 10

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return axis.push(ctx.plain, ctx.saved_tensors, tangents[:5])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        *tensors, examples, for_x, before, after, lanes = inputs
        shared = None if for_x else 1  # each lane has its own gradient for the images
        tensors, all_ = axis.merge_vmap_axis(info.batch_size, lanes, in_dims, tensors, shared)
        grads = _BlockGrad.apply(*tensors, examples, for_x, before, after, all_)
        return axis.split_vmap_axis(info.batch_size, lanes, grads)


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        *tensors, before, after, lanes = inputs
        if lanes:
            return _given(*tensors, before, after)
        return _given(*(tensor[None] for tensor in tensors), before, after)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, before, after, lanes = inputs
        axis.save(ctx, *tensors)
        ctx.plain = axis.definition_of(partial(definition_given, frame=(before, after)), lanes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *axis.pull(ctx.plain, ctx.saved_tensors, grad), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return axis.push(ctx.plain, ctx.saved_tensors, tangents[:6])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        *tensors, before, after, lanes = inputs
        tensors, all_ = axis.merge_vmap_axis(info.batch_size, lanes, in_dims, tensors, shared=0)
        (pooled,), (dim,) = axis.split_vmap_axis(
            info.batch_size, lanes, (_Given.apply(*tensors, before, after, all_),)
        )
        return pooled, dim


def _pooled(
    examples: int, frame: Frame, x: Blocks, weight: Kernels, gamma: PerChannel, beta: PerChannel
) -> Blocks:
    """Return the activations of :func:`definition`."""
    return definition(x, weight, gamma, beta, examples, frame)[0]


def _gradients(
    examples: int, frame: Frame, for_x: bool, grad: Tensor, *inputs: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients of the definition, for the images only if ``for_x``."""
    return axis.pull(partial(_pooled, examples, frame), inputs, grad)[not for_x :]
