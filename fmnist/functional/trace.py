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


def _tidy(graph: torch.fx.Graph) -> None:
    """Drop what does nothing.

    vmap leaves many views behind that change neither shape nor strides. Each call costs a
    microsecond or two, and a step has hundreds.
    """
    aten = torch.ops.aten
    idle = {aten.view.default, aten.permute.default, aten.expand.default, aten.alias.default}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in idle:
            source = node.args[0]
            old, new = (n.meta.get("tensor_meta") for n in (source, node))
            if old and new and (old.shape, old.stride) == (new.shape, new.stride):
                node.replace_all_uses_with(source)
                graph.erase_node(node)
    graph.eliminate_dead_code()


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
    _tidy(program.graph)
    program.recompile()

    def run(leaves: list[Tensor]) -> Any:
        with torch.no_grad():
            return optree.tree_unflatten(out_spec, program(*leaves))

    return run
