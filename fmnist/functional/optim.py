"""Optimizers as pairs of pure functions, after optax; the arithmetic is torch.optim's.

An optimizer is built from numbers, and every number may be a tensor: under ``vmap`` a
learning rate is then simply an argument, and each lane has its own. Nothing here branches
on a number's value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import optree
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fmnist.functional.kernels import adam_update
from fmnist.functional.types import Hyperparams, OptState, Params

Number = float | Float[Tensor, ""]


class GradientTransformation(NamedTuple):
    """An optimizer.

    Attributes:
        init: params -> opt_state.
        update: (grads, opt_state, params) -> (updates, opt_state); updates are added to params.
    """

    init: Callable[[Params], OptState]
    update: Callable[[Params, OptState, Params], tuple[Params, OptState]]


class AdamState(NamedTuple):
    """State of :func:`adam` and :func:`adamw`."""

    steps: Int[Tensor, ""]  # updates done
    mean: Params  # running mean of the gradients, shapes of the parameters
    square: Params  # running mean of their squares


class SgdState(NamedTuple):
    """State of :func:`sgd`."""

    velocity: Params  # shapes of the parameters


def apply_updates(params: Params, updates: Params) -> Params:
    """The parameters after a step: ``params + updates``, leaf by leaf."""
    return optree.tree_map(torch.add, params, updates)


def _adam_init(params: Params) -> AdamState:
    leaf = optree.tree_leaves(params)[0]
    steps = torch.zeros((), dtype=torch.int64, device=leaf.device)
    zeros = optree.tree_map(torch.zeros_like, params)
    return AdamState(steps, zeros, optree.tree_map(torch.zeros_like, params))


def _like(number: Number, leaf: Tensor) -> Number:
    """Scalars are reckoned in float64 and meet the leaves in the leaves' own precision."""
    return number.to(leaf.dtype) if isinstance(number, Tensor) else number


def _adam_direction(
    grads: Params, state: AdamState, beta1: Number, beta2: Number, eps: Number, rate: Number
) -> tuple[Params, AdamState]:
    """``-rate * mean_hat / (sqrt(square_hat) + eps)`` and the state that goes with it."""
    steps = state.steps + 1
    correction1 = 1 - beta1 ** steps.double()
    correction2 = torch.sqrt(1 - beta2 ** steps.double())
    step_size = rate / correction1

    def mean_of(old: Tensor, grad: Tensor) -> Tensor:
        return old + (grad - old) * _like(1 - beta1, grad)

    def square_of(old: Tensor, grad: Tensor) -> Tensor:
        return old * _like(beta2, grad) + grad * grad * _like(1 - beta2, grad)

    def direction(mean: Tensor, square: Tensor) -> Tensor:
        denominator = square.sqrt() / _like(correction2, square) + _like(eps, square)
        return -_like(step_size, mean) * mean / denominator

    mean = optree.tree_map(mean_of, state.mean, grads)
    square = optree.tree_map(square_of, state.square, grads)
    return optree.tree_map(direction, mean, square), AdamState(steps, mean, square)


def adam(
    learning_rate: Number,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-8,
    weight_decay: Number = 0.0,
) -> GradientTransformation:
    """Adam with L2 regularisation inside the gradient, as torch.optim.Adam.

    Source: Kingma and Ba, Adam: A Method for Stochastic Optimization (2015), algorithm 1.
    """

    def update(grads: Params, state: AdamState, params: Params) -> tuple[Params, AdamState]:
        grads = _decayed(grads, params, weight_decay)
        return _adam_direction(grads, state, beta1, beta2, eps, learning_rate)

    return GradientTransformation(_adam_init, update)


def adamw(
    learning_rate: Number,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-8,
    weight_decay: Number = 0.01,
) -> GradientTransformation:
    """Adam whose weight decay does not pass through the moments, as torch.optim.AdamW.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization (2019), algorithm 2.
    """

    def update(grads: Params, state: AdamState, params: Params) -> tuple[Params, AdamState]:
        updates, state = _adam_direction(grads, state, beta1, beta2, eps, learning_rate)
        return _decayed(updates, params, -learning_rate * weight_decay), state

    return GradientTransformation(_adam_init, update)


def sgd(
    learning_rate: Number,
    momentum: Number = 0.0,
    weight_decay: Number = 0.0,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Stochastic gradient descent with momentum, as torch.optim.SGD with dampening 0.

    Source: Sutskever et al., On the importance of initialization and momentum (2013), section 2.
    """

    def init(params: Params) -> SgdState:
        return SgdState(optree.tree_map(torch.zeros_like, params))

    def update(grads: Params, state: SgdState, params: Params) -> tuple[Params, SgdState]:
        grads = _decayed(grads, params, weight_decay)
        velocity = optree.tree_map(
            lambda old, grad: old * _like(momentum, grad) + grad, state.velocity, grads
        )
        direction = _decayed(grads, velocity, momentum) if nesterov else velocity
        updates = optree.tree_map(lambda d: -_like(learning_rate, d) * d, direction)
        return updates, SgdState(velocity)

    return GradientTransformation(init, update)


def _decayed(grads: Params, params: Params, factor: Number) -> Params:
    return optree.tree_map(lambda g, p: g + p * _like(factor, p), grads, params)


def flatten(inner: GradientTransformation) -> GradientTransformation:
    """The same optimizer on all parameters as one vector: a few large operations for many small.

    The state of ``inner`` then holds vectors; the updates have the parameters' own structure.
    """

    def init(params: Params) -> OptState:
        return inner.init(_vector(params))

    def update(grads: Params, state: OptState, params: Params) -> tuple[Params, OptState]:
        vector, state = inner.update(_vector(grads), state, _vector(params))
        return _tree(vector["all"]["all"], params), state

    return GradientTransformation(init, update)


def _vector(params: Params) -> Params:
    flat = torch.cat([leaf.reshape(-1) for leaf in optree.tree_leaves(params)])
    return {"all": {"all": flat}}


def _tree(vector: Float[Tensor, " all"], like: Params) -> Params:
    """Cut a vector into leaves of these shapes."""
    leaves, treespec = optree.tree_flatten(like)
    parts = vector.split([leaf.numel() for leaf in leaves])
    return optree.tree_unflatten(
        treespec, [part.view(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    )


def fused(
    algorithm: str, hyperparams: Hyperparams, *, nesterov: bool = False
) -> GradientTransformation:
    """:func:`flatten` of :func:`from_hyperparams`, by one operation where there is one.

    Raises:
        ValueError: when there is no such algorithm.
    """
    plain = flatten(from_hyperparams(algorithm, hyperparams, nesterov=nesterov))
    if algorithm == "sgd":
        return plain

    def update(grads: Params, state: AdamState, params: Params) -> tuple[Params, OptState]:
        leaves = optree.tree_leaves(params)
        if not adam_update.serves(leaves[0]):
            return plain.update(grads, state, params)
        steps = state.steps + 1
        vector, mean, square = adam_update.adam_update(
            optree.tree_leaves(grads),
            leaves,
            state.mean["all"]["all"],
            state.square["all"]["all"],
            steps,
            hyperparams[:5],
            decoupled=algorithm == "adamw",
        )
        moments = ({"all": {"all": moment}} for moment in (mean, square))
        return _tree(vector, params), AdamState(steps, *moments)

    return GradientTransformation(plain.init, update)


def from_hyperparams(
    algorithm: str, hyperparams: Hyperparams, *, nesterov: bool = False
) -> GradientTransformation:
    """The optimizer called ``algorithm`` with one lane's numbers.

    Raises:
        ValueError: when there is no such algorithm.
    """
    h = hyperparams
    if algorithm == "adam":
        return adam(h.learning_rate, h.beta1, h.beta2, h.eps, h.weight_decay)
    if algorithm == "adamw":
        return adamw(h.learning_rate, h.beta1, h.beta2, h.eps, h.weight_decay)
    if algorithm == "sgd":
        return sgd(h.learning_rate, h.momentum, h.weight_decay, nesterov=nesterov)
    raise ValueError(f"no optimizer is called {algorithm!r}; there are adam, adamw and sgd")
