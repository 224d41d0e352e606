"""A pure function, written down once as a plain list of tensor operations.

``vmap`` and ``grad`` decide in Python, operation by operation, what to do next; for a step of a
small network that costs more than the arithmetic. But what they decide depends only on shapes.
So the first call with new shapes records the operations that come out below them, as JAX does
when it traces, and later calls run that record: no transform, no autograd, no compiler. On a
GPU the record is what a CUDA graph captures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of trees of tensors, traced anew for each structure and set of shapes.

    Args:
        function: pure; trees of tensors in and out; no Python branch on a tensor's value.
    """
    programs: dict[object, Callable[..., Any]] = {}

    def call(*args: Any) -> Any:
        leaves, treespec = optree.tree_flatten(args)
        key = (treespec, *((leaf.shape, leaf.dtype, leaf.device) for leaf in leaves))
        if key not in programs:
            programs[key] = _trace(function, leaves, treespec)
        return programs[key](leaves)

    return call


def _trace(
    function: Callable[..., Any], leaves: list[Tensor], treespec: optree.PyTreeSpec
) -> Callable[[list[Tensor]], Any]:
    from torch.fx.experimental.proxy_tensor import make_fx  # a second of imports

    out_spec = None

    def flat(*leaves: Tensor) -> list[Tensor]:
        nonlocal out_spec
        out, out_spec = optree.tree_flatten(function(*optree.tree_unflatten(treespec, leaves)))
        return out

    with torch.no_grad():
        program = make_fx(flat)(*leaves)
    program.graph.eliminate_dead_code()
    program.recompile()

    def run(leaves: list[Tensor]) -> Any:
        with torch.no_grad():
            return optree.tree_unflatten(out_spec, program(*leaves))

    return run
