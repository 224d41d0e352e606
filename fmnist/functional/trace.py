"""A pure function, written down once as a plain list of tensor operations.

``vmap`` and ``grad`` decide in Python, operation by operation, what to do next; for a step of a
small network that costs more than the arithmetic. But what they decide depends only on shapes.
So the first call with new shapes records the operations that come out below them, as JAX does
when it traces, and later calls run that record: no transform, no autograd, no compiler. On a
GPU the record is what a CUDA graph captures.

``torch.fx.experimental.proxy_tensor.make_fx`` records the same and takes ten times as long, for
what it keeps of every tensor: 0.4 s for a step against 0.04 s, and every group has its own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import optree
import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of trees of tensors, traced anew for each structure and set of shapes.

    Args:
        function: pure; trees of tensors in and out; no Python branch on a tensor's value. Tensors
            that are neither arguments nor made inside are refused.
    """
    programs: dict[object, Callable[..., Any]] = {}

    def call(*args: Any) -> Any:
        leaves, treespec = optree.tree_flatten(args)
        key = (treespec, *((leaf.shape, leaf.dtype, leaf.device) for leaf in leaves))
        if key not in programs:
            programs[key] = _trace(function, leaves, treespec)
        return programs[key](leaves)

    return call


class _Recorder(TorchDispatchMode):
    """Writes down every operation that reaches a device, below autograd and vmap."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self._nodes: dict[int, fx.Node] = {}
        self._alive: list[Tensor] = []  # or an id could be given to another tensor
        for i, tensor in enumerate(inputs):
            self._remember(tensor, self.graph.placeholder(f"input_{i}"), i)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            raise ValueError(f"{func} writes into its input; a traced function is pure")
        node = self.graph.call_function(func, self.nodes(args), self.nodes(kwargs))
        out = func(*args, **kwargs)
        memory = {_storage(tensor): self._nodes[id(tensor)].meta["memory"]
                  for tensor in optree.tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        if isinstance(out, Tensor):
            self._remember(out, node, memory.get(_storage(out), node))
        else:
            for i, part in enumerate(out):
                if isinstance(part, Tensor):
                    item = self.graph.call_function(operator.getitem, (node, i))
                    self._remember(part, item, memory.get(_storage(part), item))
        return out

    def nodes(self, tree: Any) -> Any:
        """The tree with the nodes in place of their tensors."""
        return optree.tree_map(self._node, tree, none_is_leaf=True)

    def _node(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in self._nodes:
            raise ValueError("a traced function uses a tensor that is not among its arguments")
        return self._nodes[id(leaf)]

    def _remember(self, tensor: Tensor, node: fx.Node, memory: object) -> None:
        """``memory`` is what the tensor is a view of: an argument, or the result of a node."""
        node.meta["memory"] = memory
        node.meta["layout"] = (tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        self._nodes[id(tensor)] = node
        self._alive.append(tensor)


def _trace(
    function: Callable[..., Any], leaves: list[Tensor], treespec: optree.PyTreeSpec
) -> Callable[[list[Tensor]], Any]:
    with torch.no_grad(), _Recorder(leaves) as recorder:
        out, out_spec = optree.tree_flatten(function(*optree.tree_unflatten(treespec, leaves)))
    recorder.graph.output(recorder.nodes(out))
    _tidy(recorder.graph)
    program = fx.GraphModule(torch.nn.Module(), recorder.graph)

    def run(leaves: list[Tensor]) -> Any:
        with torch.no_grad():
            return optree.tree_unflatten(out_spec, program(*leaves))

    return run


def _tidy(graph: fx.Graph) -> None:
    """Drop what does nothing.

    vmap leaves many operations behind that change neither numbers, shape nor strides: views of
    the same shape, transposes of transposes, products with one. Each call costs a few
    microseconds, and a step has hundreds.
    """
    seen: dict[object, fx.Node] = {}
    for node in list(graph.nodes):
        if "layout" not in node.meta:
            continue
        # As nothing is ever overwritten, the same view of the same memory is the same tensor.
        same = seen.setdefault((node.meta["memory"], *node.meta["layout"]), node)
        if node.target is torch.ops.aten.mul.Scalar and node.args[1] == 1:
            factor = node.args[0]
            same = factor if factor.meta["layout"][1:] == node.meta["layout"][1:] else node
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _storage(tensor: Tensor) -> int:
    """What two views of the same memory have in common."""
    return tensor.untyped_storage()._cdata
