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
from fmnist.functional.types import OptState, Params

Number = float | Float[Tensor, ""]
"""A number of an optimizer: a Python number or a scalar tensor."""

Vector = Float[Tensor, " all"]
"""The concatenation of all flattened leaves, in the order of ``optree.tree_leaves``."""


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
) -> GradientTransformation:
    """Build Adam, with weight decay added to the gradient, as torch.optim.Adam.

    Source: Kingma and Ba, Adam: A Method for Stochastic Optimization (2015), algorithm 1.

    Args:
        learning_rate: the step size.
        beta1: decay rate of the running mean of the gradients.
        beta2: decay rate of the running mean of the squared gradients.
        eps: added to the denominator.
        weight_decay: coefficient of the L2 penalty.
    """
    return _adam((learning_rate, beta1, beta2, eps, weight_decay), decoupled=False)


def adamw(
    learning_rate: Number,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-8,
    weight_decay: Number = 0.01,
) -> GradientTransformation:
    """Build AdamW: Adam with decoupled weight decay, as torch.optim.AdamW.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization (2019), algorithm 2.

    Args:
        learning_rate: the step size, which also scales the weight decay.
        beta1: decay rate of the running mean of the gradients.
        beta2: decay rate of the running mean of the squared gradients.
        eps: added to the denominator.
        weight_decay: coefficient of the decoupled weight decay.
    """
    return _adam((learning_rate, beta1, beta2, eps, weight_decay), decoupled=True)


def _adam(numbers: Sequence[Number], *, decoupled: bool) -> GradientTransformation:
    """Build Adam or AdamW. Their update is the fused operation where it is supported."""

    def init(params: Params) -> AdamState:
        zeros = torch.zeros_like(_to_vector(params))
        count = torch.zeros((), dtype=torch.int64, device=zeros.device)
        return AdamState(count, zeros, zeros.clone())

    def update(grads: Params, state: AdamState, params: Params) -> tuple[Params, AdamState]:
        leaves = optree.tree_leaves(params)
        if not all(map(adam_update.serves, leaves)) or _needs_gradient(grads, params, numbers):
            vector, state = adam_definition(
                _to_vector(grads), state, _to_vector(params), numbers, decoupled=decoupled
            )
            return _to_tree(vector, params), state
        count = state.count + 1
        own = [_to_scalar_tensor(number, leaves[0].device) for number in numbers]
        vector, mu, nu = adam_update.adam_update(
            optree.tree_leaves(grads), leaves, state.mu, state.nu, count, own, decoupled=decoupled
        )
        return _to_tree(vector, params), AdamState(count, mu, nu)

    return GradientTransformation(init, update)


def adam_definition(
    grads: Vector, state: AdamState, params: Vector, numbers: Sequence[Number], *, decoupled: bool
) -> tuple[Vector, AdamState]:
    """Compute Adam's update in plain torch: the definition that the fused operation is tested by.

    The update is ``-learning_rate * mu_hat / (sqrt(nu_hat) + eps)``, where ``mu_hat`` and
    ``nu_hat`` are the bias-corrected moments.

    Args:
        grads: the gradients.
        state: the state before the step.
        params: the parameters before the step.
        numbers: learning rate, beta1, beta2, eps and weight decay.
        decoupled: true for AdamW's weight decay, false for Adam's.

    Returns:
        The updates and the state after the step.
    """
    rate, beta1, beta2, eps, decay = numbers
    if not decoupled:
        grads = _add_scaled(grads, params, decay)
    count = state.count + 1
    correction1 = 1 - beta1 ** count.double()
    correction2 = torch.sqrt(1 - beta2 ** count.double())
    mu = state.mu + (grads - state.mu) * _cast_like(1 - beta1, grads)
    nu = state.nu * _cast_like(beta2, grads) + grads * grads * _cast_like(1 - beta2, grads)
    denominator = nu.sqrt() / _cast_like(correction2, nu) + _cast_like(eps, nu)
    updates = -_cast_like(rate / correction1, mu) * mu / denominator
    if decoupled:
        updates = _add_scaled(updates, params, -rate * decay)
    return updates, AdamState(count, mu, nu)


def sgd(
    learning_rate: Number,
    momentum: Number = 0.0,
    weight_decay: Number = 0.0,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Build stochastic gradient descent with momentum, as torch.optim.SGD with dampening 0.

    Source: Sutskever et al., On the importance of initialization and momentum (2013), section 2.

    Args:
        learning_rate: the step size.
        momentum: decay rate of the velocity.
        weight_decay: coefficient of the L2 penalty.
        nesterov: whether to use Nesterov's momentum.
    """

    def init(params: Params) -> SgdState:
        return SgdState(torch.zeros_like(_to_vector(params)))

    def update(grads: Params, state: SgdState, params: Params) -> tuple[Params, SgdState]:
        vector = _add_scaled(_to_vector(grads), _to_vector(params), weight_decay)
        velocity = state.velocity * _cast_like(momentum, vector) + vector
        direction = _add_scaled(vector, velocity, momentum) if nesterov else velocity
        return _to_tree(-_cast_like(learning_rate, direction) * direction, params), SgdState(
            velocity
        )

    return GradientTransformation(init, update)


def _needs_gradient(*trees: object) -> bool:
    """Return whether autograd needs a gradient of the update. The fused operation has none."""
    leaves = optree.tree_leaves(trees)
    return torch.is_grad_enabled() and any(
        isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves
    )


def _cast_like(number: Number, vector: Vector) -> Number:
    """Convert a scalar tensor, which is computed in float64, to the dtype of ``vector``."""
    return number.to(vector.dtype) if isinstance(number, Tensor) else number


def _to_scalar_tensor(number: Number, device: torch.device) -> Float[Tensor, ""]:
    if isinstance(number, Tensor):
        return number
    return torch.full((), number, dtype=torch.float64, device=device)


def _add_scaled(a: Vector, b: Vector, factor: Number) -> Vector:
    """Return ``a + factor * b``."""
    return a + b * _cast_like(factor, b)


def _to_vector(tree: Params) -> Vector:
    """Concatenate all flattened leaves."""
    return torch.cat([leaf.reshape(-1) for leaf in optree.tree_leaves(tree)])


def _to_tree(vector: Vector, like: Params) -> Params:
    """Split a vector into leaves with the shapes and dtypes of ``like``."""
    leaves, treespec = optree.tree_flatten(like)
    parts = vector.split([leaf.numel() for leaf in leaves])
    return optree.tree_unflatten(
        treespec,
        [part.view(leaf.shape).to(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)],
    )
