"""Evaluation of lanes on a whole split."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator

import optree
import torch

from fmnist.functional import batching, vmap
from fmnist.functional.trace import traced
from fmnist.functional.types import Metrics, Model, Params, Split, State, hashable
from fmnist.utils.device import cuda_arithmetic
from fmnist.utils.isolation import isolated
from fmnist.utils.runtime import refuse_forked

EVAL_BATCH = 500
"""Images in a batch of evaluation on a CPU. Their activations fit in the caches."""

EVAL_BATCH_GPU = 20_000
"""Images in a batch on a GPU, times the number of lanes. They take about a gigabyte."""


def evaluate(
    model: Model,
    params: Params,
    state: State,
    split: Split,
    *,
    dtype: torch.dtype = torch.float32,
) -> Metrics:
    """Compute the metrics of every lane on a whole split, in evaluation mode.

    Args:
        model: the model.
        params: stacked parameters.
        state: stacked state.
        split: the examples, at least one, on the device of the parameters.
        dtype: dtype of the images that the model receives.

    Returns:
        The metrics ``[lanes]``.

    Raises:
        UserError: This process was forked from one that has computed.
    """
    steps = isolated(evaluate_steps(model, params, state, split, dtype=dtype))
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
    """Run :func:`evaluate` and yield after each batch, so that the caller can stop there.

    Returns:
        The metrics ``[lanes]``, as the value of the generator.
    """
    refuse_forked()
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
    """Return the traced evaluation step of a model."""
    return traced(functools.partial(vmap.eval_step, model=model))
