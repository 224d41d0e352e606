"""Matrix products whose bits in one lane do not depend on the other lanes.

For two or more lanes, torch calls a batched routine that treats all matrices alike (with the
setting of MKL in fmnist/utils/runtime.py). For one lane, it calls another routine, which may sum
in another order. One lane is therefore computed as two equal ones, which takes a few percent more
time. In bfloat16 on a CPU, oneDNN chooses its routine by the number of matrices; each is computed
alone.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fmnist.functional.kernels import lanes as axis


def linear(
    x: Float[Tensor, "batch inputs"], weight: Float[Tensor, "outputs inputs"]
) -> Float[Tensor, "batch outputs"]:
    """Return ``x @ weight.T``. It has all derivatives and a vmap rule."""
    out: Tensor = _Linear.apply(x, weight)
    return out


class _Linear(torch.autograd.Function):
    """Defines a gradient so that the one for ``weight`` is contiguous.

    Matrices are made contiguous, as MKL sums in an order that depends on their strides on some
    processors.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        out: Tensor = _Product.apply(x.contiguous(), weight.contiguous().mT)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        axis.save(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, grad = (t.contiguous() for t in (*ctx.saved_tensors, grad))
        return _Product.apply(grad, weight), _Product.apply(grad.mT, x)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        return axis.push(lambda x, weight: x @ weight.mT, ctx.saved_tensors, tangents)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, Any], x: Tensor, weight: Tensor) -> tuple[Tensor, int]:
        return _vmap_as_batch(_Linear.apply, info.batch_size, in_dims, x, weight)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        a, b = _with_usual_strides(a), _with_usual_strides(b)
        if a.dim() == 3 and a.dtype == torch.bfloat16 and a.device.type != "cuda":
            return torch.stack([own @ other for own, other in zip(a, b, strict=True)])
        if a.dim() == 3 and len(a) == 1:
            return torch.bmm(a.expand(2, -1, -1), b.expand(2, -1, -1))[:1]
        return a @ b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        axis.save(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return _Product.apply(grad, b.mT), _Product.apply(a.mT, grad)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        return axis.push(torch.matmul, ctx.saved_tensors, tangents)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, Any], a: Tensor, b: Tensor) -> tuple[Tensor, int]:
        return _vmap_as_batch(_Product.apply, info.batch_size, in_dims, a, b)


def _vmap_as_batch(
    function: Any, lanes: int, in_dims: tuple[Any, Any], *matrices: Tensor
) -> tuple[Tensor, int]:
    """Apply a function of batches of matrices to lanes merged with the batch."""
    a, b = (
        x.expand(lanes, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(matrices, in_dims, strict=True)
    )
    out: Tensor = function(a.flatten(0, -3), b.flatten(0, -3))
    return out.unflatten(0, a.shape[:-2]), 0


def _with_usual_strides(x: Tensor) -> Tensor:
    """Return the tensor with the strides of a contiguous one if a matrix is a row or a column.

    A transposed column has other strides than a row, for which MKL sums in another order.
    """
    return x.reshape(-1).view(x.shape) if 1 in x.shape[-2:] else x
