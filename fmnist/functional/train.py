"""One step of one model. :mod:`fmnist.functional.vmap` makes it a step of many."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fmnist.functional import cnn, losses, optim
from fmnist.functional.optim import GradientTransformation
from fmnist.functional.types import (
    Batch,
    Hyperparams,
    Metrics,
    ModelConfig,
    Params,
    State,
    TrainState,
)

Optimizer = Callable[[Hyperparams], GradientTransformation]
"""Builds a lane's optimizer from its numbers, inside the step."""


def start(
    seed: int,
    config: ModelConfig,
    hyperparams: Hyperparams,
    optimizer: Optimizer,
    *,
    dtype: torch.dtype = torch.float32,
) -> TrainState:
    """A model before its first step."""
    params, state = cnn.init(seed, config, dtype=dtype)
    return TrainState(params, state, optimizer(hyperparams).init(params))


def train_step(
    train_state: TrainState,
    batch: Batch,
    hyperparams: Hyperparams,
    *,
    optimizer: Optimizer,
    dropout: float = 0.0,
    compute: torch.dtype | None = None,
) -> tuple[TrainState, Metrics]:
    """One optimizer step on the mean cross entropy of ``batch``.

    Returns:
        The state after the step, and the metrics of the batch *before* it.
    """

    def loss(params: Params) -> tuple[Tensor, tuple[State, Metrics]]:
        logits, state = cnn.apply(
            params,
            train_state.state,
            batch.images,
            train=True,
            dropout=dropout,
            noise=batch.noise,
            compute=compute,
        )
        each = losses.cross_entropy(logits, batch.labels)
        return each.mean(), (state, losses.measure(each, logits, batch.labels))

    grads, (state, metrics) = torch.func.grad(loss, has_aux=True)(train_state.params)
    updates, opt_state = optimizer(hyperparams).update(
        grads, train_state.opt_state, train_state.params
    )
    params = optim.apply_updates(train_state.params, updates)
    return TrainState(params, state, opt_state), metrics


def eval_step(
    params: Params, state: State, batch: Batch, *, compute: torch.dtype | None = None
) -> Metrics:
    """The metrics of ``batch`` in evaluation mode."""
    logits, _ = cnn.apply(params, state, batch.images, train=False, compute=compute)
    return losses.measure(losses.cross_entropy(logits, batch.labels), logits, batch.labels)
