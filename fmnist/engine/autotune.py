"""The choice of a model's fastest variant, by one measurement in a process."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable

import optree
import torch

from fmnist.engine.cuda_graph import capture_cuda
from fmnist.functional import losses, vmap
from fmnist.functional.types import Model, Params, State, hashable
from fmnist.utils import memory
from fmnist.utils.device import cuda_arithmetic

ROUNDS = 5
"""How often a variant is timed; the shortest time counts."""


def choose(
    model: Model,
    batch_size: int,
    lanes: int,
    device: torch.device,
    *,
    shared: bool,
    shape: tuple[int, ...],
) -> tuple[str, Model]:
    """Choose the variant of a model that trains lanes the fastest.

    If there are several variants, each is timed, forward and backward, on inputs of this shape,
    unless memory does not suffice. This takes a fraction of a second. The result is cached if
    the model is hashable.

    Args:
        model: the model.
        batch_size: number of examples in a step.
        lanes: number of lanes.
        device: the device to train on.
        shared: whether all lanes use the same examples.
        shape: shape of an example.

    Returns:
        The name of the variant, which is empty if the model has no variants, and the variant.
    """
    variants = model.variants(device) if model.variants else {"": model}
    if len(variants) == 1:
        return next(iter(variants.items()))
    ask = timed if hashable(model) else timed.__wrapped__
    name = ask(model, batch_size, lanes, device, shared, shape)
    return name, variants[name]


@functools.lru_cache(maxsize=256)
def timed(
    model: Model,
    batch_size: int,
    lanes: int,
    device: torch.device,
    shared: bool,
    shape: tuple[int, ...],
) -> str:
    """Return the name of the variant that takes the least time on zeros.

    Arguments are those of :func:`choose`. The model must have variants.
    """
    assert model.variants is not None
    own = () if shared else (lanes,)
    inputs = torch.zeros(*own, batch_size, *shape, device=device)
    params, state = optree.tree_map(
        lambda leaf: leaf.to(device), vmap.stack([model.init(0)] * lanes)
    )
    noise = tuple(
        torch.zeros(*own, batch_size, width, device=device) for width in model.noise_widths
    )
    dims = (0, 0, *[None if shared else 0] * 2)
    times = {}
    for name, variant in model.variants(device).items():
        gradient = vmap.over_lanes(_gradient_function(variant), dims)
        run = functools.partial(_discard_result, gradient, params, state, inputs, noise)
        with cuda_arithmetic(tf32=variant.tf32):
            times[name] = _measured_time(run, device)
    return min(times, key=lambda name: times[name])


def _gradient_function(model: Model) -> Callable[..., Params]:
    def gradient(params: Params, state: State, inputs: torch.Tensor, noise: object) -> Params:
        leaves, treespec = optree.tree_flatten(params)

        def loss(leaves: list[torch.Tensor]) -> torch.Tensor:
            own = optree.tree_unflatten(treespec, leaves)
            logits, _ = model.apply(own, state, inputs, train=True, noise=noise)
            labels = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
            return losses.cross_entropy(logits, labels).mean()

        return torch.func.grad(loss)(leaves)

    return gradient


def _discard_result(function: Callable[..., object], *args: object) -> None:
    function(*args)


def _measured_time(run: Callable[[], None], device: torch.device) -> float:
    """Return milliseconds, or infinity if memory does not suffice or an operation is missing."""
    try:
        run()  # a first run, in which libraries choose algorithms
        return _milliseconds(run, device)
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, NotImplementedError) or memory.ran_out(error)):
            raise
        memory.release()
        return math.inf


def _milliseconds(run: Callable[[], None], device: torch.device) -> float:
    """Return the shortest of several times. On a GPU, replays of a CUDA graph are timed."""
    if device.type != "cuda":
        times = []
        for _ in range(ROUNDS):
            before = time.perf_counter()
            run()
            times.append((time.perf_counter() - before) * 1e3)
        return min(times)
    replay = capture_cuda(run, device)
    times = []
    with torch.cuda.device(device):
        for _ in range(ROUNDS):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            replay()
            ended.record()
            ended.synchronize()
            times.append(began.elapsed_time(ended))
    return min(times)
