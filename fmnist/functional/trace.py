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


_SHAPE_ONLY = {
    torch.ops.aten.ones_like.default,
    torch.ops.aten.zeros_like.default,
    torch.ops.aten.new_zeros.default,
}
"""Operations that look at nothing of a tensor but its shape."""


class _Recorder(TorchDispatchMode):
    """Writes down every operation that reaches a device, below autograd and vmap.

    What depends on no argument is not written down: it is what it was when it was recorded.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.graph, self.constants = fx.Graph(), torch.nn.Module()
        self._nodes: dict[int, fx.Node] = {}
        self._kept_alive: list[Tensor] = []  # or an id could be given to another tensor
        for i, tensor in enumerate(inputs):
            node = self.graph.placeholder(f"input_{i}")
            self._add_node(tensor, node, node)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            raise ValueError(f"{func} writes into its input; a traced function is pure")
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise ValueError(f"{func} draws from global state; a traced function is pure")
        out = func(*args, **kwargs)
        inputs = [self._node(x) for x in optree.tree_leaves((args, kwargs)) if _is_tensor(x)]
        if func in _SHAPE_ONLY or all(node.op == "get_attr" for node in inputs):
            for tensor in filter(_is_tensor, optree.tree_leaves(out)):
                self._add_constant(tensor)
            return out
        node = self.graph.call_function(func, self.nodes(args), self.nodes(kwargs))
        memory = {n.meta["storage"]: n.meta["memory"] for n in inputs}
        if isinstance(out, Tensor):
            self._add_node(out, node, memory.get(_storage_id(out), node))
        else:
            for i, part in enumerate(out):
                if isinstance(part, Tensor):
                    item = self.graph.call_function(operator.getitem, (node, i))
                    self._add_node(part, item, memory.get(_storage_id(part), item))
        return out

    def _add_constant(self, tensor: Tensor) -> None:
        name = f"constant_{len(self._kept_alive)}"
        self.constants.register_buffer(name, tensor)
        node = self.graph.create_node("get_attr", name)
        self._add_node(tensor, node, node)

    def nodes(self, tree: Any) -> Any:
        """The tree with the nodes in place of their tensors."""
        return optree.tree_map(self._node, tree, none_is_leaf=True)

    def _node(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in self._nodes:
            raise ValueError("a traced function uses a tensor that is not among its arguments")
        return self._nodes[id(leaf)]

    def _add_node(self, tensor: Tensor, node: fx.Node, memory: fx.Node) -> None:
        """``memory`` is the node whose result the tensor is a view of, perhaps its own."""
        node.meta["memory"], node.meta["storage"] = memory, _storage_id(tensor)
        node.meta["layout"] = (tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        self._nodes[id(tensor)] = node
        self._kept_alive.append(tensor)


def _is_tensor(x: object) -> bool:
    return isinstance(x, Tensor)


def _storage_id(tensor: Tensor) -> int:
    """What two views of the same memory have in common."""
    return tensor.untyped_storage()._cdata


def _trace(
    function: Callable[..., Any], leaves: list[Tensor], treespec: optree.PyTreeSpec
) -> Callable[[list[Tensor]], Any]:
    leaves = [leaf.detach() for leaf in leaves]  # one tensor may come as two arguments
    with torch.no_grad(), _Recorder(leaves) as recorder:
        out, out_spec = optree.tree_flatten(function(*optree.tree_unflatten(treespec, leaves)))
    recorder.graph.output(recorder.nodes(out))
    _remove_redundant(recorder.graph)
    program = fx.GraphModule(recorder.constants, recorder.graph)

    def run(leaves: list[Tensor]) -> Any:
        with torch.no_grad():
            return optree.tree_unflatten(out_spec, program(*leaves))

    return run


def _remove_redundant(graph: fx.Graph) -> None:
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
