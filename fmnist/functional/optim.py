"""Optimizers as pairs of pure functions, as in optax, with the arithmetic of torch.optim.

An optimizer is built from numbers, each of which may be a tensor. Under ``vmap`` each lane then
has its own learning rate, for example. No function branches on the value of a number.

Adam and SGD are elementwise. They therefore work on one vector ``[all]``, the concatenation of all
flattened leaves, which needs fewer operations than a loop over the leaves. Their states hold such
vectors; updates have the structure of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optree
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fmnist.functional.kernels import adam_update
from fmnist.functional.kernels.adam_update import Number, Vector, add_scaled, cast_like
from fmnist.functional.types import OptState, Params


class GradientTransformation(NamedTuple):
    """An optimizer.

    Attributes:
        init: ``params -> opt_state``.
        update: ``(grads, opt_state, params) -> (updates, opt_state)``. The new parameters are
            ``params + updates``.
    """

    init: Callable[[Params], OptState]
    update: Callable[[Params, Any, Params], tuple[Params, OptState]]


class AdamState(NamedTuple):
    """State of :func:`adam` and :func:`adamw`.

    Attributes:
        count: number of updates so far, int64.
        mu: running mean of the gradients.
        nu: running mean of the squared gradients.
    """

    count: Int[Tensor, ""]  # type: ignore[assignment]
    mu: Vector
    nu: Vector


class SgdState(NamedTuple):
    """State of :func:`sgd`.

    Attributes:
        velocity: the momentum buffer.
    """

    velocity: Vector


def apply_updates(params: Params, updates: Params) -> Params:
    """Return ``params + updates``, leaf by leaf."""
    return optree.tree_map(torch.add, params, updates)


def adam(
    learning_rate: Number,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-8,
    weight_decay: Number = 0.0,
    *,
    decay_biases: bool = True,
) -> GradientTransformation:
    """Build Adam, with weight decay added to the gradient, as torch.optim.Adam.

    Source: Kingma and Ba, Adam: A Method for Stochastic Optimization (2015), algorithm 1.

    Args:
        learning_rate: the step size.
        beta1: decay rate of the running mean of the gradients.
        beta2: decay rate of the running mean of the squared gradients.
        eps: added to the denominator.
        weight_decay: coefficient of the L2 penalty.
        decay_biases: whether it applies to all leaves, or only to those of two axes and more, which
            spares biases and the scales of norms.
    """
    numbers = (learning_rate, beta1, beta2, eps, weight_decay)
    return _adam(numbers, decoupled=False, decay_biases=decay_biases)


def adamw(
    learning_rate: Number,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-8,
    weight_decay: Number = 0.01,
    *,
    decay_biases: bool = True,
) -> GradientTransformation:
    """Build AdamW: Adam with decoupled weight decay, as torch.optim.AdamW.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization (2019), algorithm 2.

    Args:
        learning_rate: the step size, which also scales the weight decay.
        beta1: decay rate of the running mean of the gradients.
        beta2: decay rate of the running mean of the squared gradients.
        eps: added to the denominator.
        weight_decay: coefficient of the decoupled weight decay.
        decay_biases: as in :func:`adam`.
    """
    numbers = (learning_rate, beta1, beta2, eps, weight_decay)
    return _adam(numbers, decoupled=True, decay_biases=decay_biases)


def _adam(
    numbers: Sequence[Number], *, decoupled: bool, decay_biases: bool
) -> GradientTransformation:
    """Build Adam or AdamW. Their update is the fused operation where it is supported."""
    rate, *_, decay = numbers
    if not decay_biases:
        numbers = (*numbers[:-1], 0.0)

    def init(params: Params) -> AdamState:
        zeros = torch.zeros_like(_to_vector(params))
        count = torch.zeros((), dtype=torch.int64, device=zeros.device)
        return AdamState(count, zeros, zeros.clone())

    def update(grads: Params, state: AdamState, params: Params) -> tuple[Params, AdamState]:
        if not decay_biases and not decoupled:
            grads = _add_weights(grads, params, decay)
        leaves, count = optree.tree_leaves(params), state.count + 1
        rest = (state.mu, state.nu, count)
        if all(map(adam_update.serves, leaves)):
            own = [_to_scalar_tensor(number, leaves[0].device) for number in numbers]
            vector, mu, nu = adam_update.adam_update(
                optree.tree_leaves(grads), leaves, *rest, own, decoupled=decoupled
            )
        else:
            vector, mu, nu = adam_update.definition(
                _to_vector(grads), _to_vector(params), *rest, numbers, decoupled=decoupled
            )
        updates = _to_tree(vector, params)
        if not decay_biases and decoupled:
            updates = _add_weights(updates, params, -rate * decay)
        return updates, AdamState(count, mu, nu)

    return GradientTransformation(init, update)


def sgd(
    learning_rate: Number,
    momentum: Number = 0.0,
    weight_decay: Number = 0.0,
    *,
    nesterov: bool = False,
    decay_biases: bool = True,
) -> GradientTransformation:
    """Build stochastic gradient descent with momentum, as torch.optim.SGD with dampening 0.

    Source: Sutskever et al., On the importance of initialization and momentum (2013), section 2.

    Args:
        learning_rate: the step size.
        momentum: decay rate of the velocity.
        weight_decay: coefficient of the L2 penalty.
        nesterov: whether to use Nesterov's momentum.
        decay_biases: as in :func:`adam`.
    """

    def init(params: Params) -> SgdState:
        return SgdState(torch.zeros_like(_to_vector(params)))

    def update(grads: Params, state: SgdState, params: Params) -> tuple[Params, SgdState]:
        if decay_biases:
            vector = add_scaled(_to_vector(grads), _to_vector(params), weight_decay)
        else:
            vector = _to_vector(_add_weights(grads, params, weight_decay))
        velocity = state.velocity * cast_like(momentum, vector) + vector
        direction = add_scaled(vector, velocity, momentum) if nesterov else velocity
        return _to_tree(-cast_like(learning_rate, direction) * direction, params), SgdState(
            velocity
        )

    return GradientTransformation(init, update)


def _add_weights(tree: Params, params: Params, factor: Number) -> Params:
    """Return ``tree + factor * params`` for the leaves that are no biases and no scales."""

    def add(leaf: Tensor, param: Tensor) -> Tensor:
        return add_scaled(leaf, param, factor) if param.dim() > 1 else leaf

    return optree.tree_map(add, tree, params)


def _to_scalar_tensor(number: Number, device: torch.device) -> Float[Tensor, ""]:
    if isinstance(number, Tensor):
        return number
    return torch.full((), number, dtype=torch.float64, device=device)


def _to_vector(tree: Params) -> Vector:
    """Concatenate all flattened leaves."""
    return torch.cat([leaf.reshape(-1) for leaf in optree.tree_leaves(tree)])


def _to_tree(vector: Vector, like: Params) -> Params:
    """Split a vector into leaves with the shapes and dtypes of ``like``."""
    leaves, treespec = optree.tree_flatten(like)
    parts = vector.split([leaf.numel() for leaf in leaves])
    return optree.tree_unflatten(
        treespec,
        [part.reshape(leaf.shape).to(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)],
    )
