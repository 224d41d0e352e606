"""The memory that lanes need in training and evaluation, estimated on tensors without data.

A step is run once on torch's device ``meta``, whose tensors have shapes but no memory, and the
storages that are alive at the same time are added up. This takes a tenth of a second, whatever the
size of the network. Operators that are opaque to torch say themselves what they need in addition.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from fmnist.engine.evaluation import EVAL_BATCH
from fmnist.engine.lanes import Lanes
from fmnist.engine.step import Carry, Program, StepInputs, step_function, zero_metrics
from fmnist.functional import train, vmap
from fmnist.functional.kernels import conv_block
from fmnist.functional.types import Batch, Split, hashable
from fmnist.utils.isolation import torch_defaults

META = torch.device("meta")

GAPS = 1.3
"""Memory that a process takes over that of its tensors, as measured: gaps between them."""

EMULATED = 1.6
"""The same for bfloat16 on a processor for which oneDNN has none, so that torch unfolds images."""


@torch_defaults()
def lanes_bytes(program: Program, lanes: Lanes, examples: int, shape: tuple[int, ...]) -> int:
    """Estimate the memory in bytes that training these lanes takes, without the examples.

    Args:
        program: the settings that all lanes share.
        lanes: the lanes.
        examples: number of training examples.
        shape: shape of an example.
    """
    ask = _estimate if hashable(program.model) else _estimate.__wrapped__
    return ask(program, len(lanes.seeds), lanes.shared, tuple(lanes.numbers), examples, shape)


@functools.lru_cache(maxsize=256)
def _estimate(
    program: Program,
    count: int,
    shared: bool,
    names: tuple[str, ...],
    examples: int,
    shape: tuple[int, ...],
) -> int:
    model, images = program.model, max(program.batch_size, EVAL_BATCH)
    if model.lane_bytes is not None:
        return count * model.lane_bytes(images)
    solo = model.init(0)
    try:
        return _peak_of_lanes(program, solo, count, shared, names, examples, shape)
    except (OSError, ImportError, MemoryError):  # torch loads parts of itself, which may fail
        raise
    except Exception:  # the model does not run without data; an error of its own comes again
        numbers = sum(leaf.numel() for leaf in optree.tree_leaves(solo))
        # Ten copies cover gradients and moments. The activations of an image are a guess.
        return 4 * count * (10 * numbers + images * max(numbers // 25, 4096))


def _peak_of_lanes(
    program: Program,
    solo: Any,
    count: int,
    shared: bool,
    names: tuple[str, ...],
    examples: int,
    shape: tuple[int, ...],
) -> int:
    size, own = min(program.batch_size, examples), () if shared else (count,)

    def cast(leaf: Tensor) -> Tensor:
        dtype = program.dtype if leaf.is_floating_point() else leaf.dtype
        return torch.empty(leaf.shape, dtype=dtype)

    def stacked(leaf: Tensor) -> Tensor:
        return torch.empty(count, *leaf.shape, dtype=leaf.dtype)

    with META:
        numbers = {name: torch.empty(count, dtype=torch.float64) for name in names}
        params, state = optree.tree_map(cast, solo)
        first = {name: torch.empty((), dtype=torch.float64) for name in names}
        alone = train.start_from(params, state, first, program.optimizer, program.recipe)
        train_state = optree.tree_map(stacked, alone)
        images = torch.empty(examples, *shape, dtype=torch.uint8)
        split = Split(images, torch.empty(examples, dtype=torch.int64))
        carry = Carry(train_state, zero_metrics(count, META), torch.empty((), dtype=torch.int64))
        inputs = StepInputs(
            split,
            torch.empty(*own, examples, dtype=torch.int64),
            numbers,
            tuple(torch.empty(*own, size, width) for width in program.noise_widths),
            carry.position,
        )
        step = step_function(program, program.model, shared, size, program.recipe)
        kept = (carry, inputs[1:])
        training = peak(functools.partial(step, carry, inputs), kept)
        batch = Batch(
            torch.empty(EVAL_BATCH, *shape, dtype=program.dtype),
            torch.empty(EVAL_BATCH, dtype=torch.int64),
        )
        evaluate = functools.partial(vmap.eval_step, model=program.model)
        evaluation = peak(
            functools.partial(evaluate, *train_state.evaluated, batch),
            (carry, batch, inputs.order),
        )
    # The state of the last snapshot is kept, too.
    snapshot = sum(leaf.nbytes for leaf in optree.tree_leaves(train_state))
    return int(GAPS * (max(training, evaluation) + snapshot))


def peak(run: Callable[[], object], kept: Any) -> int:
    """Return how many bytes of tensors are alive at most while ``run`` computes.

    Args:
        run: computes without arguments, with tensors of any device.
        kept: a tree of tensors that exist before and count, too.
    """
    with _Alive() as alive:
        for leaf in optree.tree_leaves(kept):
            alive.add(leaf)
        result = run()
    del result
    most = alive.most * EMULATED if alive.emulates else alive.most
    return int(most) + alive.library


class _Alive(TorchDispatchMode):
    """Counts the storages that operations allocate and that are not freed yet."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = self.library = 0
        self.emulates = False
        self._seen: Any = WeakIdKeyDictionary()

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            self._seen[storage] = True
            weakref.finalize(storage, self._free, storage.nbytes())
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)

    def _free(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in optree.tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        self.most = max(self.most, self.now + conv_block.workspace(func, args))
        if func is torch.ops.aten.convolution.default:
            # oneDNN arranges images in its own order, in memory that it keeps.
            self.library = max(self.library, 2 * out.nbytes)
            native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
            self.emulates |= out.dtype == torch.bfloat16 and not native
        return out
