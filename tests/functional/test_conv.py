"""Every back end of conv2d equals torch."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gpu_phases.draws import permuted, sliced
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import normal, seeds

from fmnist.functional.kernels import conv, fold


@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4),
    st.booleans(), st.sampled_from(conv.BACKENDS), st.tuples(*[st.integers(0, 2)] * 2), seeds,
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_conv2d_under_vmap_and_grad_equals_torch(
    lanes, batch, inputs, outputs, kernel, shared, how, frame, seed
):
    images = normal(*(() if shared else (lanes,)), batch, inputs, 7, 6, seed=seed).double()
    weight = normal(lanes, outputs, inputs, kernel, kernel, seed=1).double()
    bias = normal(lanes, outputs, seed=2).double()
    sides = (size + sum(frame) - kernel + 1 for size in (7, 6))
    upstream = normal(lanes, batch, outputs, *sides, seed=3).double()

    def through(function):
        def loss(x, weight, bias, upstream):
            return (function(x, weight, bias) * upstream).sum()

        def grads(x, weight, bias, upstream):
            return torch.func.grad_and_value(loss, argnums=(0, 1, 2))(x, weight, bias, upstream)

        dims = (None if shared else 0, 0, 0, 0)
        return torch.func.vmap(grads, in_dims=dims)(images, weight, bias, upstream)

    def framed(x, weight, bias):
        return F.conv2d(F.pad(x, (*frame, *frame)), weight, bias)

    computed = through(partial(conv.conv2d, backend=how, frame=frame))
    for ours, theirs in zip(
        torch.utils._pytree.tree_leaves(computed),
        torch.utils._pytree.tree_leaves(through(framed)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("how", conv.BACKENDS)
def test_conv2d_and_gradients_of_any_layout(how):
    """The product may take another path for another layout, so to rounding."""
    x, weight, bias = normal(5, 2, 7, 6), normal(3, 2, 3, 3, seed=1), normal(3, seed=2)
    upstream = normal(5, 3, 5, 4, seed=3)

    def through(x, weight, bias):
        def loss(x, weight, bias):
            return (conv.conv2d(x, weight, bias, how) * upstream).sum()

        return torch.func.grad_and_value(loss, argnums=(0, 1, 2))(x, weight, bias)

    def expanded(t):
        return t[:1].expand_as(t)

    for layout in (permuted, sliced, expanded):
        views = [layout(t) for t in (x, weight, bias)]
        found, expected = through(*views), through(*(t.contiguous() for t in views))
        flat = torch.utils._pytree.tree_leaves
        for ours, its in zip(flat(found), flat(expected), strict=True):
            torch.testing.assert_close(ours, its, rtol=1e-5, atol=1e-4)


def test_unknown_back_end_is_refused():
    x, weight = torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="winograd"):
        conv.conv2d(x, weight, torch.zeros(1), "winograd")


def test_conv2d_under_nested_vmap_equals_torch():
    x = normal(2, 3, 4, 2, 6, 6, seed=0).double()
    weight, bias = normal(2, 3, 5, 2, 3, 3, seed=1).double(), normal(2, 3, 5, seed=2).double()
    ours = torch.func.vmap(torch.func.vmap(conv.conv2d))(x, weight, bias)
    for i in range(2):
        for j in range(3):
            expected = F.conv2d(x[i, j], weight[i, j], bias[i, j])
            torch.testing.assert_close(ours[i, j], expected, rtol=1e-10, atol=1e-10)


@given(st.integers(1, 4), st.integers(0, 2), seeds)
def test_unfold_is_the_inverse_of_fold(lanes, lane_dim, seed):
    x = normal(3, 4, 5, seed=seed)
    with_lanes = x.unsqueeze(lane_dim).expand(*x.shape[:lane_dim], lanes, *x.shape[lane_dim:])
    folded = fold.fold(with_lanes, lane_dim, lanes, 1)
    assert folded.shape == (3, lanes * 4, 5)
    assert torch.equal(fold.unfold(folded, lanes, 1).movedim(1, lane_dim), with_lanes)
    assert torch.equal(fold.fold(x, None, lanes, 1), folded)
    assert np.prod(folded.shape) == x.numel() * lanes
