"""Many models as one: every leaf gets a leading axis ``lanes``, every step is vmapped over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import optree
import torch
from jaxtyping import Int
from torch import Tensor

from fmnist.functional import train
from fmnist.functional.types import Batch, Metrics, Model, Numbers, Params, State, TrainState

Tree = TypeVar("Tree")


def stack(trees: Sequence[Tree]) -> Tree:
    """Lay trees of one structure side by side: leaves ``[...]`` become ``[lanes, ...]``.

    Raises:
        ValueError: There is no tree, or two differ in structure or in a leaf's shape.
    """
    if not trees:
        raise ValueError("there is nothing to stack")
    try:
        return optree.tree_map(lambda *leaves: torch.stack(leaves), *trees)
    except RuntimeError as error:
        raise ValueError(f"these trees do not stack: {error}") from error


def size(tree: Tree) -> int:
    """How many lanes a stacked tree has."""
    return optree.tree_leaves(tree)[0].shape[0]


def unstack(tree: Tree) -> list[Tree]:
    """The lanes of a stacked tree, one tree each; undoes :func:`stack`."""
    return [optree.tree_map(lambda leaf, i=i: leaf[i], tree) for i in range(size(tree))]


def take(tree: Tree, lanes: Int[Tensor, " chosen"]) -> Tree:
    """The stacked tree of only the lanes at these positions, in their order."""
    return optree.tree_map(lambda leaf: leaf[lanes], tree)


def train_step(
    train_state: TrainState,
    batch: Batch,
    numbers: Numbers,
    *,
    shared: bool,
    model: Model,
    optimizer: train.Optimizer,
) -> tuple[TrainState, Metrics]:
    """:func:`fmnist.functional.train.train_step` of every lane at once.

    Args:
        train_state: stacked.
        batch: one batch for all lanes when ``shared``, else stacked.
        numbers: stacked.
        shared: whether all lanes see the same examples and noise.
        model, optimizer: as in the solo step.

    Returns:
        The stacked state and the metrics ``[lanes]``.
    """
    step = partial(train.train_step, model=model, optimizer=optimizer)
    stepped: tuple[TrainState, Metrics] = over_lanes(step, (0, None if shared else 0, 0))(
        train_state, batch, numbers
    )
    return stepped


def eval_step(params: Params, state: State, batch: Batch, *, model: Model) -> Metrics:
    """:func:`fmnist.functional.train.eval_step` of every lane on one shared batch."""
    step = partial(train.eval_step, model=model)
    metrics: Metrics = over_lanes(step, (0, 0, None))(params, state, batch)
    return metrics


def over_lanes(function: Callable[..., Any], in_dims: Sequence[int | None]) -> Callable[..., Any]:
    """``torch.func.vmap`` of a function of trees, whatever the trees are made of.

    torch takes a None in a tree for a leaf, and so refuses it.

    Args:
        function: of trees of tensors, to a tree of tensors.
        in_dims: for each argument 0 where it is stacked, or None where all lanes share it.
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
