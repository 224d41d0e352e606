"""Steps of one model. :mod:`fmnist.functional.vmap` maps them over lanes."""

from __future__ import annotations

from collections.abc import Callable

import optree
import torch
from torch import Tensor

from fmnist.functional import losses, optim
from fmnist.functional.optim import GradientTransformation
from fmnist.functional.types import Batch, Metrics, Model, Numbers, Params, State, TrainState

Optimizer = Callable[..., GradientTransformation]
"""A function from numbers, given by name, to a gradient transformation, called inside the step."""


def start(
    seed: int,
    numbers: Numbers,
    *,
    model: Model,
    optimizer: Optimizer,
    dtype: torch.dtype = torch.float32,
) -> TrainState:
    """Initialise a model and its optimizer, on the CPU.

    Args:
        seed: seed of the initial parameters.
        numbers: the optimizer's numbers.
        model: the model.
        optimizer: the optimizer.
        dtype: dtype of every floating-point leaf.

    Returns:
        The state before the first step.
    """

    def cast(leaf: Tensor) -> Tensor:
        return leaf.to(dtype) if leaf.is_floating_point() else leaf

    params, state = optree.tree_map(cast, model.init(seed))
    return TrainState(params, state, optimizer(**numbers).init(params))


def train_step(
    train_state: TrainState,
    batch: Batch,
    numbers: Numbers,
    *,
    model: Model,
    optimizer: Optimizer,
) -> tuple[TrainState, Metrics]:
    """Take one optimizer step on the mean cross entropy of ``batch``.

    Args:
        train_state: the state before the step.
        batch: the examples.
        numbers: the optimizer's numbers.
        model: the model.
        optimizer: the optimizer.

    Returns:
        The state after the step, and the metrics of the batch *before* it.
    """

    leaves, treespec = optree.tree_flatten(train_state.params)
    specs: list[optree.PyTreeSpec] = []  # of the state; torch would treat a None in it as a leaf

    def loss(leaves: list[Tensor]) -> tuple[Tensor, tuple[list[Tensor], Metrics]]:
        logits, state = model.apply(
            optree.tree_unflatten(treespec, leaves),
            train_state.state,
            batch.images,
            train=True,
            noise=batch.noise,
        )
        each = losses.cross_entropy(logits, batch.labels)
        new, spec = optree.tree_flatten(state)
        specs.append(spec)
        return each.mean(), (new, losses.measure(each, logits, batch.labels))

    gradients, (new, metrics) = torch.func.grad(loss, has_aux=True)(leaves)
    grads = optree.tree_unflatten(treespec, gradients)
    state = optree.tree_unflatten(specs[0], new)
    updates, opt_state = optimizer(**numbers).update(
        grads, train_state.opt_state, train_state.params
    )
    params = optim.apply_updates(train_state.params, updates)
    return TrainState(params, state, opt_state), metrics


def eval_step(params: Params, state: State, batch: Batch, *, model: Model) -> Metrics:
    """Return the metrics of ``batch`` in evaluation mode."""
    logits, _ = model.apply(params, state, batch.images, train=False, noise=())
    return losses.measure(losses.cross_entropy(logits, batch.labels), logits, batch.labels)
