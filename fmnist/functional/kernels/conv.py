"""conv2d with a vmap rule: lanes that share their images cost one wide convolution.

torch's own rule would do as much, but moves lanes to the front between operations; on a CPU
that copying costs more than the arithmetic. See fold.py for the layout that avoids it.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from fmnist.functional.kernels.fold import fold, unfold

_PLAIN: tuple[Any, ...] = ([1, 1], [0, 0], [1, 1], False, [0, 0])


def conv2d(
    x: Float[Tensor, "batch inputs height width"],
    weight: Float[Tensor, "outputs inputs k k"],
    bias: Float[Tensor, " outputs"],
) -> Float[Tensor, "batch outputs height2 width2"]:
    """Cross-correlation, stride 1, no padding; channels last in memory. Differentiable once."""
    return _Conv2d.apply(x, weight, bias, 1)


def _channels_last(x: Tensor) -> Tensor:
    """``x`` with channels last in memory, and with strides that say so.

    With one channel both layouts are the same in memory and torch reads the strides to guess
    which is meant; guessing wrong, it would make the output channels first.
    """
    if x.shape[1] == 1:
        return x.contiguous().squeeze(1).unsqueeze(3).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


class _Conv2d(torch.autograd.Function):
    """``groups`` counts the lanes folded into the channels so far."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
        x, weight = _channels_last(x), _channels_last(weight)
        return torch.ops.aten.convolution(x, weight, bias, *_PLAIN, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.groups = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grads = _Conv2dGrad.apply(grad, x, weight, ctx.groups, ctx.needs_input_grad[0])
        return (*(grads if len(grads) == 3 else (None, *grads)), None)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], x: Tensor, weight: Tensor, bias: Tensor, groups: int
    ) -> tuple[Tensor, int]:
        lanes = info.batch_size
        if in_dims[0] is not None or groups > 1:
            x = fold(x, in_dims[0], lanes, 1)
            groups *= lanes
        weight, bias = fold(weight, in_dims[1], lanes, 0), fold(bias, in_dims[2], lanes, 0)
        return unfold(_Conv2d.apply(x, weight, bias, groups), lanes, 1), 1


class _Conv2dGrad(torch.autograd.Function):
    """Gradients of ``_Conv2d`` for input (where needed), weight and bias."""

    @staticmethod
    def forward(
        grad: Tensor, x: Tensor, weight: Tensor, groups: int, input_too: bool
    ) -> tuple[Tensor, ...]:
        grads = torch.ops.aten.convolution_backward(
            _channels_last(grad),
            _channels_last(x),
            _channels_last(weight),
            [weight.shape[0]],
            *_PLAIN,
            groups,
            [input_too, True, True],
        )
        return grads if input_too else grads[1:]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
        pass

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError("conv2d has no second derivative")

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        groups: int,
        input_too: bool,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        lanes = info.batch_size
        if in_dims[1] is not None or groups > 1 or input_too:
            x = fold(x, in_dims[1], lanes, 1)
            groups *= lanes
        grad, weight = fold(grad, in_dims[0], lanes, 1), fold(weight, in_dims[2], lanes, 0)
        grads = _Conv2dGrad.apply(grad, x, weight, groups, input_too)
        dims = (1, 0, 0) if input_too else (0, 0)
        return tuple(unfold(g, lanes, dim) for g, dim in zip(grads, dims, strict=True)), dims
