"""Adam's update of all leaves as one operation, for a CPU; a lane's numbers are its own.

Written in torch, an update is a dozen operations on vectors as long as the network has
parameters. Each reads and writes memory that the convolutions then no longer find in the
caches. Here every number is read once. The arithmetic is that of :func:`fmnist.functional.optim.
adam` operation by operation, so the result is the same in the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


def serves(leaf: Tensor) -> bool:
    """Whether there is such an operation for parameters like this one."""
    return leaf.dtype == torch.float32 and leaf.device.type == "cpu"


def adam_update(
    grads: Sequence[Tensor],
    params: Sequence[Tensor],
    mean: Float[Tensor, " all"],
    square: Float[Tensor, " all"],
    steps: Int[Tensor, ""],
    numbers: Sequence[Float[Tensor, ""]],
    *,
    decoupled: bool,
) -> tuple[Float[Tensor, " all"], Float[Tensor, " all"], Float[Tensor, " all"]]:
    """The updates, and the moments after them, of all leaves one after another.

    Args:
        grads, params: the leaves.
        mean, square: the moments before, as one vector each.
        steps: updates done, this one included.
        numbers: learning rate, beta1, beta2, eps and weight decay.
        decoupled: the weight decay is AdamW's and does not pass through the moments.
    """
    lanes = (_laned(grads), _laned(params), mean[None], square[None], steps[None], _laned(numbers))
    updates, mean, square = _update(*lanes, decoupled)
    return updates[0], mean[0], square[0]


def _laned(leaves: Sequence[Tensor]) -> list[Tensor]:
    return [leaf[None] for leaf in leaves]


# The operator has an axis of lanes in front everywhere.


@torch.library.custom_op("fmnist::adam_update", mutates_args=(), device_types="cpu")
def _update(
    grads: Sequence[Tensor],
    params: Sequence[Tensor],
    mean: Tensor,
    square: Tensor,
    steps: Tensor,
    numbers: Sequence[Tensor],
    decoupled: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from fmnist.functional.kernels import cpu_adam

    return cpu_adam.update(grads, params, mean, square, steps, numbers, decoupled)


@_update.register_fake
def _(grads: Any, params: Any, mean: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(mean), torch.empty_like(mean), torch.empty_like(mean)


@_update.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
    """More lanes: the axis of vmap is merged into the one that is there."""
    more = info.batch_size

    def merged(x: Any, dim: Any) -> Any:
        if isinstance(x, Sequence):
            return [merged(leaf, own) for leaf, own in zip(x, dim, strict=True)]
        if not isinstance(x, Tensor):
            return x
        x = x.expand(more, *x.shape) if dim is None else x.movedim(dim, 0)
        return x.flatten(0, 1)

    outputs = _update(*map(merged, inputs, in_dims))
    return tuple(out.unflatten(0, (more, -1)) for out in outputs), (0, 0, 0)
