"""Checks of the rules of norm_relu_pool's operators: strides, refusals, derivatives.

They are run by pooling_checks.py.
"""

from __future__ import annotations

from functools import partial

import torch
from torch.func import hessian, jacrev, jvp

from gpu_phases.draws import normal, numbers, permuted, sliced


def check_operators():
    """The operators pass the checks of torch."""
    from fmnist.functional.kernels import norm_relu_pool as nrp

    x = normal(4, 3, 7, 6)
    weight, bias = torch.ones(3), torch.zeros(3)
    torch.library.opcheck(nrp._forward, (x, weight, bias))
    pooled, *rest = nrp._forward(x, weight, bias)
    torch.library.opcheck(nrp._given, (x, weight, bias, bias, weight))
    torch.library.opcheck(nrp._backward, (pooled, x, weight, *rest))


def check_layouts():
    """Inputs of any strides give the same bits, and the strides that torch is told of."""
    from fmnist.functional.kernels import norm_relu_pool as nrp

    def channels_last(x):
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    for channels in (1, 3):
        x, weight, bias = normal(4, channels, 7, 6), *numbers(channels)
        pooled, *saved = nrp._forward(x, weight, bias)
        for operator, inputs in (
            (nrp._forward, (x, weight, bias)),
            (nrp._given, (x, weight, bias, *saved[:2])),
            (nrp._backward, (pooled, x, weight, *saved)),
        ):
            expected = torch.utils._pytree.tree_leaves(operator(*inputs))
            for layout in (permuted, sliced, channels_last):
                own = tuple(layout(t) for t in inputs)
                ours = torch.utils._pytree.tree_leaves(operator(*own))
                assert all(map(torch.equal, ours, expected))
                torch.library.opcheck(operator, own, test_utils="test_faketensor")


def check_refusals():
    """A tensor of another length is refused, as kernels do not check bounds."""
    from fmnist.functional.kernels import norm_relu_pool as nrp

    x, weight, bias = normal(4, 3, 7, 6), *numbers(3)
    pooled, *saved = nrp._forward(x, weight, bias)
    for operator, inputs in (
        (nrp._forward, (x, weight, bias)),
        (nrp._given, (x, weight, bias, *saved[:2])),
        (nrp._backward, (pooled, x, weight, *saved)),
    ):
        for place, tensor in enumerate(inputs):
            if tensor is x and operator is not nrp._backward:
                continue
            wrong = tensor.narrow(-1, 0, tensor.shape[-1] - 2)
            try:
                operator(*inputs[:place], wrong, *inputs[place + 1 :])
            except ValueError:
                continue
            raise AssertionError(f"argument {place} of {operator} was accepted")


def check_derivatives():
    """Second derivatives and those of forward mode are of the definition."""
    from fmnist.functional.kernels import norm_relu_pool as nrp

    inputs = (normal(2, 2, 3, 4), *(normal(2, seed=k) for k in (1, 2)))
    statistics = (normal(2, seed=3), normal(2, seed=4).square())
    wide = tuple(t.double() for t in inputs)

    def loss(function, *own):
        rest = statistics if "given" in function.__name__ else ()
        out = function(*own, *(t.to(own[0].dtype) for t in rest))
        return (out[0] if isinstance(out, tuple) else out).sin().sum()

    pairs = (
        (nrp.norm_relu_pool, nrp.definition),
        (nrp.norm_relu_pool_given, nrp.definition_given),
    )
    places = (0, 1, 2)
    for mine, its in pairs:
        for derivative in (
            lambda f, x: hessian(f, argnums=places)(*x),
            lambda f, x: jacrev(jacrev(f, argnums=places), argnums=places)(*x),
            lambda f, x: jvp(f, x, tuple(t.cos() for t in x)),
        ):
            found = derivative(partial(loss, mine), inputs)
            exact = derivative(partial(loss, its), wide)
            leaves = torch.utils._pytree.tree_leaves
            for a, b in zip(leaves(found), leaves(exact), strict=True):
                atol = 1e-4 * (b.abs().max().item() + 1)
                torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=atol)
