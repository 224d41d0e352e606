"""Steps of one model. :mod:`fmnist.functional.vmap` maps them over lanes."""

from __future__ import annotations

from collections.abc import Callable

import optree
import torch
from torch import Tensor

from fmnist.functional import losses, optim
from fmnist.functional import recipe as recipes
from fmnist.functional.optim import GradientTransformation
from fmnist.functional.recipe import PLAIN, Recipe
from fmnist.functional.types import Batch, Metrics, Model, Numbers, Params, State, TrainState

Optimizer = Callable[..., GradientTransformation]
"""A function from numbers, given by name, to a gradient transformation, called inside the step."""


def start(
    seed: int,
    numbers: Numbers,
    *,
    model: Model,
    optimizer: Optimizer,
    recipe: Recipe = PLAIN,
    dtype: torch.dtype = torch.float32,
) -> TrainState:
    """Initialise a model and its optimizer, on the CPU.

    Args:
        seed: seed of the initial parameters.
        numbers: the numbers of the optimizer and the recipe.
        model: the model.
        optimizer: the optimizer.
        recipe: what a step does besides.
        dtype: dtype of every floating-point leaf.

    Returns:
        The state before the first step.
    """

    def cast(leaf: Tensor) -> Tensor:
        return leaf.to(dtype) if leaf.is_floating_point() else leaf

    params, state = optree.tree_map(cast, model.init(seed))
    return start_from(params, state, numbers, optimizer, recipe)


def start_from(
    params: Params, state: State, numbers: Numbers, optimizer: Optimizer, recipe: Recipe = PLAIN
) -> TrainState:
    """Return the state before the first step with these parameters; else as :func:`start`."""
    opt_state = optimizer(**_split(recipe, numbers)[0]).init(params)
    return TrainState(params, state, opt_state, recipes.start(recipe, params, state))


def _split(recipe: Recipe, numbers: Numbers) -> tuple[Numbers, Numbers]:
    """Return the numbers of the optimizer and those of the recipe."""
    own = {name: numbers[name] for name in recipe.on}
    return {name: number for name, number in numbers.items() if name not in own}, own


def train_step(
    train_state: TrainState,
    batch: Batch,
    numbers: Numbers,
    *,
    model: Model,
    optimizer: Optimizer,
    recipe: Recipe = PLAIN,
) -> tuple[TrainState, Metrics]:
    """Take one optimizer step on the mean cross entropy of ``batch``.

    Args:
        train_state: the state before the step.
        batch: the examples.
        numbers: the numbers of the optimizer, and those of the recipe that are on.
        model: the model.
        optimizer: the optimizer.
        recipe: what the step does besides.

    Returns:
        The state after the step, and the metrics of the batch *before* it: of the changed images,
        but without label smoothing.
    """
    numbers, own = _split(recipe, numbers)
    batch = recipes.change_images(recipe, batch, own)
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
        aim = each
        if "label_smoothing" in recipe.on:
            aim = losses.smooth(each, logits, own["label_smoothing"])
        return aim.mean(), (new, losses.measure(each, logits, batch.labels))

    gradients, (new, metrics) = torch.func.grad(loss, has_aux=True)(leaves)
    grads = optree.tree_unflatten(treespec, gradients)
    state, extras = optree.tree_unflatten(specs[0], new), train_state.extras
    if "clip_norm" in recipe.on:
        grads = recipes.clip(grads, own["clip_norm"])
    if recipe.scheduled:
        factor = recipes.rate_factor(recipe, extras.step, own)
        numbers = {**numbers, "learning_rate": numbers["learning_rate"] * factor}
    updates, opt_state = optimizer(**numbers).update(
        grads, train_state.opt_state, train_state.params
    )
    params = optim.apply_updates(train_state.params, updates)
    if extras:
        extras = recipes.advance(recipe, extras, params, state, own)
    return TrainState(params, state, opt_state, extras), metrics


def eval_step(params: Params, state: State, batch: Batch, *, model: Model) -> Metrics:
    """Return the metrics of ``batch`` in evaluation mode."""
    logits, _ = model.apply(params, state, batch.images, train=False, noise=())
    return losses.measure(losses.cross_entropy(logits, batch.labels), logits, batch.labels)
