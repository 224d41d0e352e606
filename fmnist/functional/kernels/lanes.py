"""Operators with an axis of lanes: their rules for vmap, and derivatives that they do not have.

All tensors of such an operator have a leading axis of lanes. The rules work with or without it:
``lanes`` is the length of the axis that the tensors already have, or 0 if they have none.

A derivative without a kernel is that of the operator's definition in plain torch. This module also
has the functions for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def call(operator: Any, lanes: int, *inputs: Any) -> tuple[Tensor, ...]:
    """Call an operator on tensors that have an axis of lanes, or none if ``lanes`` is 0."""
    if lanes:
        outputs: tuple[Tensor, ...] = operator(*inputs)
        return outputs
    return tuple(out[0] for out in operator(*(t[None] if _is_tensor(t) else t for t in inputs)))


def merge_vmap_axis(
    more: int, lanes: int, in_dims: Sequence[Any], tensors: Sequence[Tensor], shared: int | None
) -> tuple[list[Tensor], int]:
    """Merge the axis of vmap, of length ``more``, into the axis of lanes.

    The tensor at the position ``shared`` keeps length 1 if all lanes share it.
    """
    merged = []
    for i, (x, dim) in enumerate(zip(tensors, in_dims[: len(tensors)], strict=True)):
        if dim is not None:
            x = x.movedim(dim, 0)
            if lanes:  # a shared tensor now differs between lanes
                x = x.expand(more, lanes, *x.shape[2:])
        elif i == shared and (not lanes or x.shape[0] == 1):
            merged.append(x if lanes else x[None])
            continue
        else:
            x = x.expand(more, *x.shape)
        merged.append(x.flatten(0, 1) if lanes else x)
    return merged, more * max(lanes, 1)


def split_vmap_axis(
    fewer: int, lanes: int, outputs: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Split the axis of vmap, of length ``fewer``, from the ``lanes`` that were there before."""
    if lanes:
        outputs = tuple(out.unflatten(0, (fewer, lanes)) for out in outputs)
    return tuple(outputs), (0,) * len(outputs)


def definition_of(function: Callable[..., Any], lanes: int) -> Callable[..., Any]:
    """Return the definition for tensors with ``lanes``; those of length 1 are shared by all."""
    if not lanes:
        return function
    mapped = torch.func.vmap(function)
    return lambda *tensors: mapped(*(x.expand(lanes, *x.shape[1:]) for x in tensors))


def save(ctx: Any, *tensors: Tensor) -> None:
    """Save tensors for both modes of differentiation."""
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def push(definition: Callable[..., Any], at: Sequence[Tensor], tangents: Sequence[Any]) -> Any:
    """Return the derivative of the definition in the direction of the tangents (forward mode)."""
    moving = [tangent is not None for tangent in tangents]
    # torch turns forward mode off here, also that of outer jvps, which would lose their tangents.
    with forward_ad._set_fwd_grad_enabled(True):
        at = [forward_ad.unpack_dual(x).primal for x in at]  # without the tangents of this jvp
        function, inputs = _with_fixed(definition, at, moving)
        dense = tuple(x.contiguous() for x in inputs)  # a tangent gets the layout of its primal
        return torch.func.jvp(function, dense, tuple(t for t in tangents if t is not None))[1]


def pull(definition: Callable[..., Any], at: Sequence[Tensor], cotangents: Any) -> tuple[Any, ...]:
    """Return the gradients of the definition for the cotangents of its results (reverse mode)."""
    moving = [x.is_floating_point() for x in at]
    function, inputs = _with_fixed(definition, at, moving)
    gradients = iter(torch.func.vjp(function, *inputs)[1](cotangents))
    return tuple(next(gradients) if moves else None for moves in moving)


def _with_fixed(
    function: Callable[..., Any], at: Sequence[Tensor], moving: Sequence[bool]
) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    """Return ``function`` of the moving arguments only, and these arguments."""

    def of_moving(*inputs: Tensor) -> Any:
        own = iter(inputs)
        return function(*(next(own) if m else x for x, m in zip(at, moving, strict=True)))

    return of_moving, tuple(x for x, moves in zip(at, moving, strict=True) if moves)


def _is_tensor(x: object) -> bool:
    return isinstance(x, Tensor)
