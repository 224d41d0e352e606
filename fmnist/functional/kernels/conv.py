"""conv2d with a vmap rule: lanes that share their images are computed by one wide convolution.

torch's rule does the same but moves the axis of lanes to the front between operations. On a CPU
these copies take longer than the arithmetic. The layout of fold.py avoids them.

For lanes with different images there are several back ends (``BACKENDS``), each the fastest for
some shapes and devices. pytorch/functorch#365 (2021) requests such a choice in functorch.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fmnist.functional.kernels import lanes as axis
from fmnist.functional.kernels.fold import fold, unfold
from fmnist.functional.types import Frame

BACKENDS = ("grouped", "lanes", "unfold")
"""How lanes with different images are computed under ``vmap``.

``"grouped"`` is one grouped convolution, ``"lanes"`` one convolution for each lane, and
``"unfold"`` a batched matrix product with unfolded images (im2col).
"""


def conv2d(
    x: Float[Tensor, "batch inputs height width"],
    weight: Float[Tensor, "outputs inputs k k"],
    bias: Float[Tensor, " outputs"],
    backend: str = "grouped",
    frame: Frame = (0, 0),
) -> Float[Tensor, "batch outputs height2 width2"]:
    """Compute the cross-correlation with stride 1, channels last in memory.

    Before batch norm, pass ``bias.detach()``: the exact gradient for the bias is zero there, and a
    computed one would be rounding errors. Second derivatives and those of forward mode are torch's.

    Args:
        x: images.
        weight: kernels.
        bias: added to each output channel.
        backend: one of :data:`BACKENDS`.
        frame: the zeros around each image.

    Returns:
        ``[batch, outputs, height + sum(frame) - k + 1, width + sum(frame) - k + 1]``.

    Raises:
        ValueError: ``backend`` is unknown.
    """
    if backend not in BACKENDS:
        raise ValueError(f"no convolution back end is called {backend!r}; there are {BACKENDS}")
    if any(frame):
        x = F.pad(x, (*frame, *frame))
    return _Conv2d.apply(x, weight, bias, 1, backend)


class _Conv2d(torch.autograd.Function):
    """``groups`` is the number of lanes that are folded into the channels."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, groups: int, backend: str) -> Tensor:
        return _convolve(_channels_last(x), _channels_last(weight), bias, groups, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.groups, ctx.backend = inputs
        axis.save(ctx, *tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, _ = ctx.saved_tensors
        wanted = tuple(ctx.needs_input_grad[:3])
        grads = iter(_Conv2dGrad.apply(grad, x, weight, ctx.groups, wanted, ctx.backend))
        return (*(next(grads) if want else None for want in wanted), None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return axis.push(partial(F.conv2d, groups=ctx.groups), ctx.saved_tensors, tangents[:3])

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        backend: str,
    ) -> tuple[Tensor, int]:
        lanes = info.batch_size
        if in_dims[0] is not None or groups > 1:
            x = fold(x, in_dims[0], lanes, 1)
            groups *= lanes
        weight, bias = fold(weight, in_dims[1], lanes, 0), fold(bias, in_dims[2], lanes, 0)
        return unfold(_Conv2d.apply(x, weight, bias, groups, backend), lanes, 1), 1


class _Conv2dGrad(torch.autograd.Function):
    """The gradients of ``_Conv2d`` for those of input, weight and bias that are ``wanted``."""

    @staticmethod
    def forward(
        grad: Tensor, x: Tensor, weight: Tensor, groups: int, wanted: Wanted, backend: str
    ) -> tuple[Tensor, ...]:
        tensors = (_channels_last(grad), _channels_last(x), _channels_last(weight))
        grads = _gradients(*tensors, groups, wanted, backend)
        return tuple(g for g, want in zip(grads, wanted, strict=True) if want and g is not None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
        *tensors, groups, wanted, _ = inputs
        axis.save(ctx, *tensors)
        ctx.plain = partial(_gradients_definition, groups, wanted)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        return *axis.pull(ctx.plain, ctx.saved_tensors, cotangents), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return axis.push(ctx.plain, ctx.saved_tensors, tangents[:3])

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        groups: int,
        wanted: Wanted,
        backend: str,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        lanes = info.batch_size
        if in_dims[1] is not None or groups > 1 or wanted[0]:
            x = fold(x, in_dims[1], lanes, 1)
            groups *= lanes
        grad, weight = fold(grad, in_dims[0], lanes, 1), fold(weight, in_dims[2], lanes, 0)
        grads = _Conv2dGrad.apply(grad, x, weight, groups, wanted, backend)
        dims = tuple(dim for dim, want in zip((1, 0, 0), wanted, strict=True) if want)
        return tuple(unfold(g, lanes, dim) for g, dim in zip(grads, dims, strict=True)), dims


Wanted = tuple[bool, ...]  # whether gradients for input, weight and bias are needed

_STRIDE_1_NO_PADDING: tuple[Any, ...] = ([1, 1], [0, 0], [1, 1], False, [0, 0])


def _gradients_definition(
    groups: int, wanted: Wanted, grad: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor, ...]:
    """Compute ``_Conv2dGrad`` in plain torch."""
    bias = weight.new_zeros(weight.shape[0])
    grads = axis.pull(partial(F.conv2d, groups=groups), (x, weight, bias), grad)
    return tuple(g for g, want in zip(grads, wanted, strict=True) if want)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor, groups: int, backend: str) -> Tensor:
    if groups == 1 or backend == "grouped":
        return torch.ops.aten.convolution(x, weight, bias, *_STRIDE_1_NO_PADDING, groups)
    if backend == "lanes":
        own = zip(x.chunk(groups, 1), weight.chunk(groups), bias.chunk(groups), strict=True)
        return torch.cat([_convolve(*lane, 1, backend) for lane in own], 1)
    columns, kernels = _im2col(x, weight, groups)
    out = torch.einsum("gok,bgkp->bgop", kernels, columns).flatten(1, 2)
    size = tuple(whole - k + 1 for whole, k in zip(x.shape[2:], weight.shape[2:], strict=True))
    return out.unflatten(2, size) + bias[:, None, None]


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, groups: int, wanted: Wanted, backend: str
) -> tuple[Tensor | None, ...]:
    """Return gradients for input, weight and bias. Those not wanted are None or undefined."""
    if groups == 1 or backend == "grouped":
        grads: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
            grad, x, weight, [weight.shape[0]], *_STRIDE_1_NO_PADDING, groups, list(wanted)
        )
        return grads
    if backend == "lanes":
        own = zip(grad.chunk(groups, 1), x.chunk(groups, 1), weight.chunk(groups), strict=True)
        solo = zip(*(_gradients(*lane, 1, wanted, backend) for lane in own), strict=True)
        return tuple(
            torch.cat(parts, dim) if want else None
            for parts, dim, want in zip(solo, (1, 0, 0), wanted, strict=True)
        )
    columns, kernels = _im2col(x, weight, groups)
    outer = grad.flatten(2).unflatten(1, (groups, -1))
    to_weight = torch.einsum("bgop,bgkp->gok", outer, columns).reshape(weight.shape)
    first = None
    if wanted[0]:
        to_columns = torch.einsum("gok,bgop->bgkp", kernels, outer).flatten(1, 2)
        first = F.fold(to_columns, x.shape[2:], weight.shape[-2:])
    return first, to_weight, grad.sum((0, 2, 3))


def _im2col(
    x: Tensor, weight: Tensor, groups: int
) -> tuple[Float[Tensor, "batch groups k pixels"], Float[Tensor, "groups outputs k"]]:
    """Return each patch under the kernel as a column, and each kernel as a row."""
    columns = F.unfold(x, weight.shape[-2:]).unflatten(1, (groups, -1))
    return columns, weight.flatten(1).unflatten(0, (groups, -1))


def _channels_last(x: Tensor) -> Tensor:
    """Return ``x`` with channels last in memory and in its strides.

    With one channel, both layouts are the same in memory, and torch infers the layout from the
    strides. Other strides would give an output with channels first.
    """
    if x.shape[1] == 1:
        return x.contiguous().squeeze(1).unsqueeze(3).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)
