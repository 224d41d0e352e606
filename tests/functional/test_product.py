"""Matrix products of lanes: equal to torch, twice differentiable, independent of other lanes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal, seeds
from torch.func import vmap

from fmnist.functional.kernels.product import linear

SHAPES = [(10, 60), (60, 10), (120, 384), (3, 500), (120, 3136), (1, 60), (60, 1), (1, 1)]


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("batch", [1, 4, 37, 500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_lanes_change_no_bit_of_a_product(batch, inputs, outputs, dtype):
    """Also for a single lane, for which torch uses another routine with several threads."""
    x, weight = normal(5, batch, inputs, seed=0), normal(5, outputs, inputs, seed=1)
    upstream = normal(5, batch, outputs, seed=2)
    x, weight, upstream = (t.to(dtype) for t in (x, weight, upstream))

    def all_of(lanes):
        out, pullback = torch.func.vjp(vmap(linear), x[:lanes], weight[:lanes])
        return [t[0] for t in (out, *pullback(upstream[:lanes]))]

    alone = all_of(1)
    for lanes in (2, 3, 5):
        assert all(map(torch.equal, all_of(lanes), alone))


@given(st.integers(0, 5), st.integers(1, 5), st.integers(1, 5), seeds)
def test_product_equals_torch(batch, inputs, outputs, seed):
    x, weight = normal(batch, inputs, seed=seed), normal(outputs, inputs, seed=seed ^ 1)
    torch.testing.assert_close(linear(x, weight), torch.nn.functional.linear(x, weight))


@pytest.mark.parametrize("lanes", [1, 3])
def test_first_and_second_gradients_of_lanes(lanes):
    def pair(*axes):
        return [
            normal(*axes, *shape, seed=i).double().requires_grad_()
            for i, shape in enumerate([(4, 3), (2, 3)])
        ]

    for function, inputs in (
        (linear, pair()),
        (vmap(linear), pair(lanes)),
        (vmap(vmap(linear)), pair(2, lanes)),
        (vmap(linear, in_dims=(None, 0)), [pair()[0], pair(lanes)[1]]),
    ):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)
