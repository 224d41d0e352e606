"""Evaluates lanes on a whole split: no autograd, the largest batches that fit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator

import optree
import torch

from fmnist.functional import batching, vmap
from fmnist.functional.trace import traced
from fmnist.functional.types import Metrics, Model, Params, Split, State, hashable
from fmnist.utils.device import cuda_arithmetic

EVAL_BATCH = 500
"""Images that are evaluated at once: as many as a CPU's caches hold the activations of."""

EVAL_BATCH_GPU = 20_000
"""The same on a GPU, of all lanes together; about a gigabyte."""


def evaluate(
    model: Model,
    params: Params,
    state: State,
    split: Split,
    *,
    dtype: torch.dtype = torch.float32,
) -> Metrics:
    """The metrics ``[lanes]`` of a whole split in evaluation mode; the trees are stacked."""
    steps = evaluate_steps(model, params, state, split, dtype=dtype)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            metrics: Metrics = end.value
            return metrics


def evaluate_steps(
    model: Model,
    params: Params,
    state: State,
    split: Split,
    *,
    dtype: torch.dtype = torch.float32,
) -> Generator[None, None, Metrics]:
    """:func:`evaluate`, which yields after each batch, so that its caller can stop there."""
    total: Metrics | None = None
    device = split.labels.device
    size = EVAL_BATCH
    if device.type != "cpu":
        size = max(size, EVAL_BATCH_GPU // vmap.size(params))
    step = _eval_step(model) if hashable(model) else _eval_step.__wrapped__(model)
    for indices in torch.arange(len(split.labels), device=device).split(size):
        batch = batching.gather(split, indices, dtype)
        with cuda_arithmetic(tf32=False):
            metrics = step(params, state, batch)
        total = metrics if total is None else optree.tree_map(torch.add, total, metrics)
        yield
    assert total is not None, "an empty split has no metrics"
    return total


@functools.lru_cache(maxsize=32)
def _eval_step(model: Model) -> Callable[..., Metrics]:
    """The traced step of a model."""
    return traced(functools.partial(vmap.eval_step, model=model))
