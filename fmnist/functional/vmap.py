"""Many models as one: stacked trees with a leading axis ``lanes``, and steps vmapped over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import optree
import torch
from jaxtyping import Int
from torch import Tensor

from fmnist.functional import train
from fmnist.functional.recipe import PLAIN, Recipe
from fmnist.functional.types import Batch, Metrics, Model, Numbers, Params, State, TrainState

Tree = TypeVar("Tree")


def stack(trees: Sequence[Tree]) -> Tree:
    """Stack trees of the same structure: leaves ``[...]`` become ``[lanes, ...]``.

    Raises:
        ValueError: ``trees`` is empty, or two trees differ in structure or in the shape of a leaf.
    """
    if not trees:
        raise ValueError("there is nothing to stack")
    try:
        return optree.tree_map(lambda *leaves: torch.stack(leaves), *trees)
    except RuntimeError as error:
        raise ValueError(f"these trees do not stack: {error}") from error


def size(tree: Tree) -> int:
    """Return the number of lanes of a stacked tree."""
    return optree.tree_leaves(tree)[0].shape[0]


def unstack(tree: Tree) -> list[Tree]:
    """Split a stacked tree into one tree for each lane. This is the inverse of :func:`stack`."""
    return [optree.tree_map(lambda leaf, i=i: leaf[i], tree) for i in range(size(tree))]


def take(tree: Tree, lanes: Int[Tensor, " chosen"]) -> Tree:
    """Return the stacked tree of the lanes at the positions ``lanes``, in that order."""
    return optree.tree_map(lambda leaf: leaf[lanes], tree)


def train_step(
    train_state: TrainState,
    batch: Batch,
    numbers: Numbers,
    *,
    shared: bool,
    model: Model,
    optimizer: train.Optimizer,
    recipe: Recipe = PLAIN,
) -> tuple[TrainState, Metrics]:
    """Apply :func:`fmnist.functional.train.train_step` to every lane.

    Args:
        train_state: stacked state.
        batch: one batch for all lanes if ``shared``, else a stacked batch.
        numbers: stacked numbers of the optimizer and the recipe; a scalar is the same for all.
        shared: whether all lanes use the same examples and noise.
        model: the model.
        optimizer: the optimizer.
        recipe: what the step does besides.

    Returns:
        The stacked state after the step, and the metrics ``[lanes]`` before it.
    """
    common = {name: number for name, number in numbers.items() if not number.dim()}
    own = {name: number for name, number in numbers.items() if number.dim()}

    def step(state: TrainState, batch: Batch, own: Numbers) -> tuple[TrainState, Metrics]:
        both = {**own, **common}
        return train.train_step(state, batch, both, model=model, optimizer=optimizer, recipe=recipe)

    stepped: tuple[TrainState, Metrics] = over_lanes(step, (0, None if shared else 0, 0))(
        train_state, batch, own
    )
    return stepped


def eval_step(params: Params, state: State, batch: Batch, *, model: Model) -> Metrics:
    """Apply :func:`fmnist.functional.train.eval_step` to every lane on one shared batch.

    Args:
        params: stacked parameters.
        state: stacked state.
        batch: one batch, without an axis for lanes.
        model: the model.

    Returns:
        The metrics ``[lanes]``.
    """
    step = partial(train.eval_step, model=model)
    metrics: Metrics = over_lanes(step, (0, 0, None))(params, state, batch)
    return metrics


def over_lanes(function: Callable[..., Any], in_dims: Sequence[int | None]) -> Callable[..., Any]:
    """Map a function of trees over lanes, as ``torch.func.vmap`` does.

    Unlike ``torch.func.vmap``, it accepts trees that contain None, which torch treats as a leaf.

    Args:
        function: maps trees of tensors to a tree of tensors.
        in_dims: for each argument, 0 if it is stacked, or None if all lanes share it.

    Returns:
        A function of the same trees, whose result is stacked.
    """

    def mapped(*trees: Any) -> Any:
        leaves, treespec = optree.tree_flatten(trees)
        dims = [
            dim for tree, dim in zip(trees, in_dims, strict=True) for _ in optree.tree_leaves(tree)
        ]
        specs = []

        def flat(*own: Tensor) -> tuple[Tensor, ...]:
            outputs, spec = optree.tree_flatten(function(*optree.tree_unflatten(treespec, own)))
            specs.append(spec)
            return tuple(outputs)

        outputs = torch.func.vmap(flat, in_dims=tuple(dims))(*leaves)
        return optree.tree_unflatten(specs[0], outputs)

    return mapped
