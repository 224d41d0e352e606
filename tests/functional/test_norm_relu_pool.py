"""norm_relu_pool in bfloat16 on a CPU equals its definition, for any shape, layout and lane."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from blocks import numbers, whole
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import layouts, normal, seeds
from torch.func import grad_and_value, hessian, jvp, vmap

from fmnist.functional.kernels import norm_relu_pool as nrp

sides = st.integers(2, 9)
shapes = st.tuples(st.integers(1, 5), st.integers(1, 40), sides, sides)


def everything(function, x, weight, bias, upstream):
    """Outputs, statistics and gradients."""

    def loss(*inputs):
        outputs = function(*inputs)
        return (outputs[0] * upstream).sum().float(), outputs

    grads, (_, outputs) = grad_and_value(loss, argnums=(0, 1, 2), has_aux=True)(x, weight, bias)
    return [*outputs, *grads]


def check_against_definition(x, weight, bias, upstream):
    """In float64; what is bfloat16 may differ by its last bit."""
    ours = everything(nrp.norm_relu_pool, x, weight, bias, upstream)
    wide = (t.double() for t in (x, weight, bias, upstream))
    exact = everything(nrp.definition, *wide)
    for mine, its in zip(ours, exact, strict=True):
        last = 2**-8 if mine.dtype == torch.bfloat16 else 1e-5
        atol = (1e-3 if mine.dtype == torch.bfloat16 else 1e-5) * (its.abs().amax().item() + 1e-3)
        torch.testing.assert_close(mine.double(), its, rtol=last, atol=atol)
    given = nrp.norm_relu_pool_given(x, weight, bias, *ours[1:3])
    assert torch.equal(given, ours[0])


def problem(shape, seed, scale=1.0, shift=0.0):
    x = normal(*shape, seed=seed, scale=scale, shift=shift).bfloat16()
    upstream = normal(*shape[:2], shape[2] // 2, shape[3] // 2, seed=3).bfloat16()
    return x, *numbers(shape[1]), upstream


def decided(x, weight, bias):
    """Where the largest pixel of a square does not depend on rounding."""
    x, weight, bias = (t.double() for t in (x, weight, bias))
    out = torch.nn.functional.batch_norm(x, None, None, weight, bias, training=True)
    height, width = (size // 2 * 2 for size in x.shape[2:])
    squares = out[:, :, :height, :width].unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    ranked = squares.transpose(3, 4).flatten(4).sort(-1, descending=True)[0]
    equal = (ranked[..., 0] == ranked[..., 1]) & (weight[:, None, None] == 0)
    clear = equal | (ranked[..., 0] - ranked[..., 1] > 1e-3)
    return clear & (ranked[..., 0].abs() > 1e-3)


@given(shapes, seeds, st.sampled_from([0.3, 1.0, 30.0]), st.sampled_from([-2.0, 0.0, 2.0]))
@settings(max_examples=100, deadline=None)
def test_kernel_equals_the_definition(shape, seed, scale, shift):
    x, weight, bias, upstream = problem(shape, seed, scale, shift)
    check_against_definition(x, weight, bias, upstream * decided(x, weight, bias))


def test_first_of_equal_pixels_gets_the_gradient():
    x = whole(0, 2, 3, 5, 6, 8, seed=0).bfloat16()
    weight, bias = torch.tensor([1.0, -1.0, 2.0, 0.5, 1.0]), torch.full((5,), 5.0)
    check_against_definition(x, weight, bias, normal(3, 5, 3, 4).bfloat16())


@given(shapes, layouts(), seeds)
@settings(max_examples=50, deadline=None)
def test_layouts_change_no_bit(shape, layout, seed):
    x, weight, bias, upstream = problem(shape, seed)
    results = nrp._forward(x, weight, bias)
    gradients = nrp._backward(upstream, x, weight, *results[1:])
    own = [layout(t) for t in (x, weight, bias, upstream)]
    assert all(map(torch.equal, nrp._forward(*own[:3]), results))
    saved = [layout(t) for t in results[1:]]
    assert all(map(torch.equal, nrp._backward(own[3], *own[:2], *saved), gradients))
    assert torch.equal(nrp._given(*own[:3], *saved[:2]), results[0])


@pytest.mark.parametrize("shape", [(4, 3, 7, 6), (1, 1, 2, 2), (2, 1, 5, 5), (3, 4, 1, 3)])
def test_operators_pass_the_checks_of_torch(shape):
    x, weight, bias, upstream = problem(shape, 0)
    _, *saved = nrp._forward(x, weight, bias)
    for layout in (lambda t: t, lambda t: t.contiguous(memory_format=torch.channels_last)):
        torch.library.opcheck(nrp._forward, (layout(x), weight, bias))
        torch.library.opcheck(nrp._given, (layout(x), weight, bias, *saved[:2]))
        torch.library.opcheck(nrp._backward, (layout(upstream), layout(x), weight, *saved))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_stay_in_their_channel(value):
    x, weight, bias, upstream = problem((3, 4, 6, 6), 0)
    clean = everything(nrp.norm_relu_pool, x, weight, bias, upstream)
    x[1, 2, 3, 3] = value
    ours = everything(nrp.norm_relu_pool, x, weight, bias, upstream)
    for mine, before in zip(ours, clean, strict=True):
        channel = 1 if mine.dim() == 4 else 0
        rest = torch.tensor([0, 1, 3])
        assert torch.equal(mine.index_select(channel, rest), before.index_select(channel, rest))
    assert ours[0][:, 2].isnan().all()
    assert ours[1][2].isfinite() == False  # noqa: E712  a tensor
    assert ours[2][2].isnan()


def test_lanes_and_threads_change_no_bit():
    x, weight, bias, upstream = problem((7, 15, 9, 6), 0)
    lanes = [t.unflatten(1 if t.dim() == 4 else 0, (3, 5)) for t in (x, weight, bias, upstream)]
    dims = (1, 0, 0, 1)
    together = vmap(partial(everything, nrp.norm_relu_pool), in_dims=dims)(*lanes)
    threads = torch.get_num_threads()
    for lane in range(3):
        own = [t.select(dim, lane) for t, dim in zip(lanes, dims, strict=True)]
        for count in (1, 2):
            torch.set_num_threads(count)
            try:
                alone = everything(nrp.norm_relu_pool, *own)
            finally:
                torch.set_num_threads(threads)
            assert all(torch.equal(t[lane], s) for t, s in zip(together, alone, strict=True))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_other_derivatives_are_of_the_definition():
    x, weight, bias, _ = problem((2, 2, 4, 4), 0)
    weight, bias = weight + 1.5, bias + 0.5

    def loss(function, *inputs):
        return function(x, *inputs)[0].double().sin().sum()

    for derivative in (
        lambda f: hessian(f, argnums=(0, 1))(weight, bias),
        lambda f: jvp(f, (weight, bias), (bias.cos(), weight.cos())),
    ):
        found, expected = (
            torch.utils._pytree.tree_leaves(derivative(partial(loss, function)))
            for function in (nrp.norm_relu_pool, nrp.definition)
        )
        for mine, its in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, its, rtol=2e-2, atol=2e-2)


def test_shapes_that_do_not_go_together_are_refused():
    x, weight, bias, upstream = problem((4, 3, 7, 6), 0)
    _, *saved = nrp._forward(x, weight, bias)
    with pytest.raises(ValueError, match="do not go with numbers"):
        nrp._forward(x, weight[:2], bias)
    with pytest.raises(ValueError, match="do not go with numbers"):
        nrp._given(x, weight, bias, bias[:1], bias)
    with pytest.raises(ValueError, match="must be"):
        nrp._backward(upstream[..., :1], x, weight, *saved)


def test_empty_batch_gives_nothing():
    x, weight, bias, _ = problem((2, 3, 4, 4), 0)
    assert nrp.norm_relu_pool_given(x[:0], weight, bias, bias, weight.abs()).shape == (0, 3, 2, 2)
