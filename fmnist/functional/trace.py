"""Tracing: a pure function is recorded once as a flat list of tensor operations.

``vmap`` and ``grad`` run in Python for every operation. For a step of a small network this costs
more than the arithmetic. Which operations they emit depends only on the layouts of the arguments
and on settings of torch such as autocast. The first call with new ones therefore records the
operations below these transforms, as JAX does when it traces. Later calls run the recorded
program without transforms, autograd or a compiler. On a GPU, a CUDA graph captures this program.

``torch.fx.experimental.proxy_tensor.make_fx`` records the same program. It takes 0.4 s for a step,
where this module takes 0.04 s, because it keeps more about every tensor; and each group of trials
needs a program.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any

import optree
import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from fmnist.functional.kernels import direct


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Trace ``function`` once for each structure and layout of its arguments and setting of torch.

    The layout is shape, strides, offset, dtype and device. The settings are those of
    :func:`_settings`.

    Args:
        function: a pure function of trees of tensors to a tree of tensors. It must not branch on
            the value of a tensor, and it must only use tensors that it receives or creates.

    Returns:
        A function with the same arguments and result, but without gradients. The result shares no
        memory with that of another call.

    Raises:
        ValueError: On the first call with a new layout, ``function`` writes into a tensor, reads
            the value of one, draws from global random state, or uses a tensor that is neither an
            argument nor created in it.
    """
    programs: dict[object, Callable[..., Any]] = {}

    def call(*args: Any) -> Any:
        leaves, treespec = optree.tree_flatten(args)
        key = (treespec, _settings(), *map(_layout, leaves))
        if key not in programs:
            programs[key] = _trace(function, leaves, treespec)
        return programs[key](leaves)

    return call


_KINDS = ("cpu", "cuda")


def _settings() -> tuple[object, ...]:
    """Return the settings of torch on which the operations of a function depend.

    Grad mode, inference mode and anomaly mode are missing, as tracing sets them itself.
    """
    backends: Any = torch.backends
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
        *((kind, torch.get_autocast_dtype(kind)) for kind in _autocast()),
        *(
            part.fp32_precision
            for part in (backends.mkldnn.matmul, backends.cuda.matmul, backends.cudnn.conv)
        ),
    )


def _autocast() -> tuple[str, ...]:
    """Return the kinds of devices for which autocast is enabled."""
    return tuple(filter(torch.is_autocast_enabled, _KINDS))


def _layout(x: Tensor) -> tuple[object, ...]:
    place = x.shape, x.stride(), x.storage_offset()
    return place, x.dtype, x.device, x.is_conj(), x.is_neg()


_SHAPE_ONLY = {
    torch.ops.aten.ones_like.default,
    torch.ops.aten.zeros_like.default,
    torch.ops.aten.new_zeros.default,
}
"""Operations whose result depends on the shape of their tensor argument, not on its values."""


def _reads_values(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether a number or the shape that an operation returns depends on the values of tensors."""
    if func is torch.ops.aten.index.Tensor:
        return any(_is_tensor(x) and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    return not tags.isdisjoint(func.tags)


class _Recorder(TorchDispatchMode):
    """Records every operation below autograd and vmap as a node of an ``fx.Graph``.

    The result of an operation that depends on no argument is recorded as a constant.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.graph, self.constants = fx.Graph(), torch.nn.Module()
        # Weak, so that tracing takes no more memory than the function.
        self._nodes: MutableMapping[Tensor, fx.Node] = WeakTensorKeyDictionary()
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
        inputs = [self._node(x) for x in optree.tree_leaves((args, kwargs)) if _is_tensor(x)]
        constant = func in _SHAPE_ONLY or all(node.op == "get_attr" for node in inputs)
        if not constant and _reads_values(func, args):
            raise ValueError(f"{func} reads the value of a tensor; a traced function must not")
        out = func(*args, **kwargs)
        if constant:
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
        name = f"constant_{len(self.graph.nodes)}"
        self.constants.register_buffer(name, tensor)
        node = self.graph.create_node("get_attr", name)
        self._add_node(tensor, node, node)

    def own(self, node: Any) -> Any:
        """Return the node, or a copy of it if its memory is a constant of the record."""
        if not isinstance(node, fx.Node) or node.meta["memory"].op != "get_attr":
            return node
        return self.graph.call_function(torch.ops.aten.clone.default, (node,))

    def nodes(self, tree: Any) -> Any:
        """Return the tree with each tensor replaced by its node."""
        return optree.tree_map(self._node, tree, none_is_leaf=True)

    def _node(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf not in self._nodes:
            raise ValueError("a traced function uses a tensor that is not among its arguments")
        return self._nodes[leaf]

    def _add_node(self, tensor: Tensor, node: fx.Node, memory: fx.Node) -> None:
        """Map ``tensor`` to ``node``. ``memory`` is the node that allocated its storage."""
        node.meta["memory"], node.meta["storage"] = memory, _storage_id(tensor)
        node.meta["layout"] = (tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        self._nodes[tensor] = node


def _is_tensor(x: object) -> bool:
    return isinstance(x, Tensor)


def _storage_id(tensor: Tensor) -> int:
    """Return a key of the tensor's storage, which is equal for two views of the same memory."""
    return tensor.untyped_storage()._cdata


def _trace(
    function: Callable[..., Any], leaves: list[Tensor], treespec: optree.PyTreeSpec
) -> Callable[[list[Tensor]], Any]:
    # Distinct objects, as a tensor may be two arguments; autograd takes none of inference mode.
    leaves = [leaf.clone() if leaf.is_inference() else leaf.detach() for leaf in leaves]
    with _traceable(), _Recorder(leaves) as recorder:
        out, out_spec = optree.tree_flatten(function(*optree.tree_unflatten(treespec, leaves)))
        returned = recorder.nodes(out)
    recorder.graph.output(list(map(recorder.own, returned)))
    if all(leaf.device.type == "cpu" for leaf in leaves):
        for node in recorder.graph.nodes:
            node.target = direct.FUNCTIONS.get(node.target, node.target)
    allocated = {node.meta["memory"] for node in returned if isinstance(node, fx.Node)}
    _remove_redundant(recorder.graph, allocated)
    program = fx.GraphModule(recorder.constants, recorder.graph)

    def run(leaves: list[Tensor]) -> Any:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for kind in _autocast():  # what it does is recorded
                stack.enter_context(torch.autocast(kind, enabled=False))
            return optree.tree_unflatten(out_spec, program(*leaves))

    return run


@contextlib.contextmanager
def _traceable() -> Iterator[None]:
    """Set the modes of autograd that ``torch.func`` needs, whatever the caller has set."""
    with torch.inference_mode(False), torch.no_grad(), torch.autograd.set_detect_anomaly(False):
        yield


def _remove_redundant(graph: fx.Graph, returned: set[fx.Node]) -> None:
    """Remove operations that change neither values, shape nor strides.

    vmap leaves hundreds of them in a step: views of the same shape, transposes of transposes,
    products with one. Each costs a few microseconds per call.

    Args:
        graph: the graph, which is changed.
        returned: the nodes that allocated memory of the result. They remain, so that the result
            shares no memory with an argument.
    """
    seen: dict[object, fx.Node] = {}
    for node in list(graph.nodes):
        if "layout" not in node.meta:
            continue
        # Nothing is overwritten, so two equal views of the same memory are the same tensor.
        same = seen.setdefault((node.meta["memory"], *node.meta["layout"]), node)
        product = node.target is torch.ops.aten.mul.Scalar and node not in returned
        if product and node.args[1] == 1:
            factor = node.args[0]
            same = factor if factor.meta["layout"][1:] == node.meta["layout"][1:] else node
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
    graph.eliminate_dead_code()
