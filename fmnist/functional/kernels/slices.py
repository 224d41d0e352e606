"""A slice of each row, which begins where an index says. Rows are copied whole, not by element."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fmnist.functional.kernels import lanes as axis


def slices(
    rows: Float[Tensor, "rows size"], starts: Int[Tensor, " rows"], length: int
) -> Float[Tensor, "rows {length}"]:
    """Return ``rows[i, starts[i] : starts[i] + length]`` of each row.

    It has all derivatives and a vmap rule. An index copies element by element: 0.9 ms in place of
    0.1 ms for a thousand images, on two cores of an AMD EPYC; a gather() takes twice that.

    Args:
        rows: the rows.
        starts: where each slice begins, at most ``size - length``.
        length: the length of a slice, at most ``size``.
    """
    out: Tensor = _Slices.apply(rows, starts, length)
    return out


class _Slices(torch.autograd.Function):
    @staticmethod
    def forward(rows: Tensor, starts: Tensor, length: int) -> Tensor:
        if not len(rows):
            return rows[:, :length].clone()
        first = rows.shape[1] * torch.arange(len(rows), device=rows.device)
        return rows.reshape(-1).unfold(0, length, 1).index_select(0, first + starts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        rows, starts, ctx.length = inputs
        ctx.size = rows.shape[1]
        axis.save(ctx, starts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (starts,) = ctx.saved_tensors
        places = starts[:, None] + torch.arange(ctx.length, device=grad.device)
        return grad.new_zeros(len(grad), ctx.size).scatter(1, places, grad), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *none: None) -> Tensor:
        (starts,) = ctx.saved_tensors
        return slices(tangent, starts, ctx.length)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], rows: Tensor, starts: Tensor, length: int
    ) -> tuple[Tensor, int]:
        rows, starts = (
            x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip((rows, starts), in_dims, strict=False)
        )
        out = slices(rows.flatten(0, 1), starts.flatten(), length)
        return out.unflatten(0, starts.shape), 0
