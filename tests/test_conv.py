"""Every fast way of computing an operation gives what its definition in plain torch gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds

from fmnist.functional.kernels import conv, cpu, fold
from fmnist.functional.kernels import norm_relu_pool as nrp


def normal(*shape: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale + shift


def channel_major(grad):
    return grad.permute(1, 0, 2, 3)


def check_against_definition(x, weight, bias, seed):
    """Outputs, statistics and all gradients, against the definition in float64.

    Where two pixels of a square are equal but for rounding, float32 and float64 may pick different
    ones; so the definition in float32 must agree on the place, and float64 on the sums.
    """
    inputs = [t.clone().requires_grad_() for t in (x, weight, bias)]
    pooled, mean, var = nrp.norm_relu_pool(*inputs)
    wide = [t.double().requires_grad_() for t in (x, weight, bias)]
    expected, expected_mean, expected_var = nrp.definition(*wide)
    close = dict(rtol=1e-4, atol=1e-5)  # noqa: C408
    torch.testing.assert_close(pooled.double(), expected, **close)
    torch.testing.assert_close(mean.double(), expected_mean, **close)
    torch.testing.assert_close(var.double(), expected_var, **close)
    upstream = normal(*pooled.shape, seed=seed)
    ours = torch.autograd.grad(pooled, inputs, upstream)
    theirs = torch.autograd.grad(expected, wide, upstream.double())
    for mine, exact in zip(ours, theirs, strict=True):
        size = exact.abs().max().item() + 1e-6
        torch.testing.assert_close(mine.double(), exact, rtol=1e-3, atol=1e-4 * size)


SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 19), st.integers(2, 9), st.integers(2, 9))


@given(SHAPES, seeds, st.sampled_from([0.3, 1.0, 30.0]), st.sampled_from([-20.0, 0.0, 2.0]))
@settings(max_examples=60, deadline=None)
def test_equals_the_definition(shape, seed, scale, shift):
    channels = shape[1]
    x = normal(*shape, seed=seed, scale=scale, shift=shift)
    weight = normal(channels, seed=seed + 1 & 0xFFFF)
    weight[::3] = 0.0  # then every pixel of a square is equal: the first is taken
    bias = normal(channels, seed=seed + 2 & 0xFFFF)
    check_against_definition(x, weight, bias, seed)


@given(SHAPES, seeds)
@settings(max_examples=40, deadline=None)
def test_ties_go_to_the_first_pixel(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-2, 3, shape, generator=generator).float()  # many equal pixels
    channels = shape[1]
    weight = torch.tensor([1.0, -1.0, 0.5]).repeat(channels)[:channels]
    check_against_definition(x, weight, torch.full((channels,), 0.25), seed)


def test_nothing_passes_a_closed_relu():
    x = normal(2, 3, 4, 4, seed=0).requires_grad_()
    pooled, *_ = nrp.norm_relu_pool(x, torch.ones(3), torch.full((3,), -100.0))
    assert torch.equal(pooled, torch.zeros_like(pooled))
    (grad,) = torch.autograd.grad(pooled.sum(), x)
    assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_poisoned_channel_is_its_own_trouble(poison):
    x = normal(3, 4, 6, 6, seed=1)
    clean = nrp.norm_relu_pool(x, torch.ones(4), torch.zeros(4))
    x[1, 2, 3, 3] = poison
    pooled, mean, var = nrp.norm_relu_pool(x, torch.ones(4), torch.zeros(4))
    expected = nrp.definition(x, torch.ones(4), torch.zeros(4))[0]
    assert torch.equal(pooled.isnan(), expected.isnan())
    for channel in (0, 1, 3):
        assert torch.equal(pooled[:, channel], clean[0][:, channel])
        assert mean[channel] == clean[1][channel]
        assert var[channel] == clean[2][channel]
    assert not math.isfinite(var[2])


@given(seeds, st.sampled_from([1e4, -1e4]))
@settings(max_examples=10, deadline=None)
def test_statistics_do_not_cancel(seed, shift):
    x = normal(20, 5, 12, 12, seed=seed, shift=shift)
    _, mean, var = nrp.norm_relu_pool(x, torch.ones(5), torch.zeros(5))
    exact = torch.var_mean(x.double(), dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(var.double(), exact[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(mean.double(), exact[1], rtol=1e-7, atol=0)


def test_an_outlier_that_comes_first_does_not_spoil_the_statistics():
    x = normal(50, 1, 12, 12, seed=0)
    x[0, 0, 0, 0] = 1e6
    var = nrp.norm_relu_pool(x, torch.ones(1), torch.zeros(1))[2]
    torch.testing.assert_close(var.double(), x.double().var(correction=0)[None], rtol=1e-5, atol=0)


@given(st.integers(1, 4), st.integers(1, 5), seeds)
@settings(max_examples=15, deadline=None)
def test_lanes_do_not_disturb_each_other(lanes, channels, seed):
    """Under vmap and grad, bit for bit the solo result: a channel never looks at another."""
    x = normal(lanes, 3, channels, 6, 5, seed=seed)
    weight, bias = normal(lanes, channels, seed=1), normal(lanes, channels, seed=2)

    def both(x, weight, bias):
        def total(x, weight, bias):
            pooled, *_ = nrp.norm_relu_pool(x, weight, bias)
            return (pooled * torch.arange(float(pooled.numel())).view(pooled.shape)).sum()

        return torch.func.grad_and_value(total, argnums=(0, 1, 2))(x, weight, bias)

    grads, values = torch.func.vmap(both)(x, weight, bias)
    for lane in range(lanes):
        solo_grads, solo_value = both(x[lane], weight[lane], bias[lane])
        torch.testing.assert_close(values[lane], solo_value)
        for together, solo in zip(grads, solo_grads, strict=True):
            assert torch.equal(together[lane], solo)


def test_the_number_of_threads_changes_nothing():
    import numba

    x = normal(37, 5, 9, 8, seed=0)
    many = cpu.forward(x, torch.ones(5), torch.zeros(5), 1e-5)
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        one = cpu.forward(x, torch.ones(5), torch.zeros(5), 1e-5)
    finally:
        numba.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(many, one, strict=True))


@given(st.integers(1, 3), SHAPES, seeds)
@settings(max_examples=20, deadline=None)
def test_evaluation_equals_its_definition(lanes, shape, seed):
    channels = shape[1]
    x = normal(lanes, *shape, seed=seed)
    numbers = [normal(lanes, channels, seed=k) for k in range(4)]
    numbers[3] = numbers[3].square()
    ours = torch.func.vmap(nrp.norm_relu_pool_given)(x, *numbers)
    for lane in range(lanes):
        own = [n[lane] for n in numbers]
        torch.testing.assert_close(ours[lane], nrp.definition_given(x[lane], *own))


def test_evaluation_has_a_gradient():
    x, *numbers = normal(2, 3, 4, 4, seed=0), *(torch.rand(3) for _ in range(4))
    ours, theirs = (
        torch.func.grad(lambda x, f=f: f(x, *numbers).sum())(x)
        for f in (nrp.norm_relu_pool_given, nrp.definition_given)
    )
    torch.testing.assert_close(ours, theirs)


def test_the_operators_keep_torchs_rules():
    x = normal(4, 3, 7, 6, seed=0)
    weight, bias = torch.ones(3), torch.zeros(3)
    torch.library.opcheck(nrp._forward, (x, weight, bias))
    pooled, *rest = nrp._forward(x, weight, bias)
    torch.library.opcheck(nrp._given, (x, weight, bias, bias, weight))
    torch.library.opcheck(nrp._backward, (pooled, x, weight, *rest))


def test_float64_takes_the_definition():
    x = normal(2, 3, 4, 4, seed=0).double()
    weight, bias = torch.ones(3).double(), torch.zeros(3).double()
    assert torch.autograd.gradcheck(
        lambda x: nrp.norm_relu_pool(x, weight, bias)[0], x.requires_grad_()
    )


# Convolution -------------------------------------------------------------------------------


@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4),
    st.booleans(), st.sampled_from(conv.BACKENDS), seeds,
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_convolution_of_lanes(lanes, batch, inputs, outputs, kernel, shared, how, seed):
    images = normal(*(() if shared else (lanes,)), batch, inputs, 7, 6, seed=seed).double()
    weight = normal(lanes, outputs, inputs, kernel, kernel, seed=1).double()
    bias = normal(lanes, outputs, seed=2).double()
    upstream = normal(lanes, batch, outputs, 8 - kernel, 7 - kernel, seed=3).double()

    def through(function):
        def loss(x, weight, bias, upstream):
            return (function(x, weight, bias) * upstream).sum()

        def grads(x, weight, bias, upstream):
            return torch.func.grad_and_value(loss, argnums=(0, 1, 2))(x, weight, bias, upstream)

        dims = (None if shared else 0, 0, 0, 0)
        return torch.func.vmap(grads, in_dims=dims)(images, weight, bias, upstream)

    with conv.forced(how):
        computed = through(conv.conv2d)
    for ours, theirs in zip(
        torch.utils._pytree.tree_leaves(computed),
        torch.utils._pytree.tree_leaves(through(F.conv2d)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_a_back_end_that_is_not_there_is_refused():
    assert conv.backend(torch.device("cpu")) == "grouped"
    with pytest.raises(ValueError, match="winograd"), conv.forced("winograd"):
        pass


def test_convolution_of_nested_lanes():
    x = normal(2, 3, 4, 2, 6, 6, seed=0).double()
    weight, bias = normal(2, 3, 5, 2, 3, 3, seed=1).double(), normal(2, 3, 5, seed=2).double()
    ours = torch.func.vmap(torch.func.vmap(conv.conv2d))(x, weight, bias)
    for i in range(2):
        for j in range(3):
            expected = F.conv2d(x[i, j], weight[i, j], bias[i, j])
            torch.testing.assert_close(ours[i, j], expected, rtol=1e-10, atol=1e-10)


@given(st.integers(1, 4), st.integers(0, 2), seeds)
def test_unfold_undoes_fold(lanes, lane_dim, seed):
    x = normal(3, 4, 5, seed=seed)
    with_lanes = x.unsqueeze(lane_dim).expand(*x.shape[:lane_dim], lanes, *x.shape[lane_dim:])
    folded = fold.fold(with_lanes, lane_dim, lanes, 1)
    assert folded.shape == (3, lanes * 4, 5)
    assert torch.equal(fold.unfold(folded, lanes, 1).movedim(1, lane_dim), with_lanes)
    assert torch.equal(fold.fold(x, None, lanes, 1), folded)
    assert np.prod(folded.shape) == x.numel() * lanes
