"""Evaluates the lanes of a group on a whole split: no autograd, the largest batches that fit."""

from __future__ import annotations

import functools
from collections.abc import Callable

import optree
import torch

from fmnist.functional import batching, vmap
from fmnist.functional.kernels import conv
from fmnist.functional.trace import traced
from fmnist.functional.types import Metrics, Params, Split, State
from fmnist.utils.device import cuda_arithmetic

EVAL_BATCH = 500
"""Images that are evaluated at once: as many as a CPU's caches hold the activations of."""

EVAL_BATCH_GPU = 20_000
"""The same on a GPU, of all lanes together; about a gigabyte."""


def evaluate(
    params: Params,
    state: State,
    split: Split,
    *,
    compute: torch.dtype | None = None,
    dtype: torch.dtype = torch.float32,
) -> Metrics:
    """The metrics ``[lanes]`` of a whole split in evaluation mode; ``compute`` as in ``apply``."""
    total = evaluate_unless(lambda: False, params, state, split, compute=compute, dtype=dtype)
    assert total is not None
    return total


def evaluate_unless(
    stop: Callable[[], bool],
    params: Params,
    state: State,
    split: Split,
    *,
    compute: torch.dtype | None = None,
    dtype: torch.dtype = torch.float32,
) -> Metrics | None:
    """:func:`evaluate`; None as soon as ``stop``, asked at each batch, is true."""
    total: Metrics | None = None
    device = split.labels.device
    size = EVAL_BATCH
    if device.type != "cpu":
        size = max(size, EVAL_BATCH_GPU // vmap.size(params))
    step = _eval_step(compute, conv.backend(device))
    for indices in torch.arange(len(split.labels), device=device).split(size):
        if stop():
            return None
        batch = batching.gather(split, indices, dtype)
        with cuda_arithmetic(tf32=False):
            metrics = step(params, state, batch)
        total = metrics if total is None else optree.tree_map(torch.add, total, metrics)
    assert total is not None, "an empty split has no metrics"
    return total


@functools.cache
def _eval_step(compute: torch.dtype | None, convolution: str) -> Callable[..., Metrics]:
    """The traced step; ``convolution`` is what it is traced with, and so part of the key."""
    return traced(functools.partial(vmap.eval_step, compute=compute))
