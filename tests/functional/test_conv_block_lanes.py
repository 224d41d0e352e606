"""The CPU kernels under vmap and grad, in evaluation, and with several threads; and opcheck."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from blocks import everything, numbers, problems, winograd
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import normal, seeds
from torch.func import grad, vmap

from fmnist.functional.kernels import conv_block as block
from fmnist.functional.kernels.cpu.simd import WIDTH

EXAMPLES = 2 * WIDTH - 5
BLOCKS = (2, 2, 6, 5, WIDTH)


def lanes_of(*lanes, outputs=4, seed=0):
    """Weights, scales and shifts for 3x3 kernels on images like ``BLOCKS``; and a gradient."""
    weight = normal(*lanes, outputs, 2, 3, 3, seed=seed)
    return (weight, *numbers(*lanes, outputs, seed=seed)), normal(EXAMPLES, outputs, 2, 1, seed=9)


@given(st.integers(1, 4), problems(), st.booleans(), st.booleans(), seeds, st.booleans())
@settings(max_examples=60, deadline=None)
def test_lane_equals_the_lane_alone_bit_for_bit(lanes, problem, shared, for_images, seed, fast):
    """Under vmap and grad."""
    (examples, *image), weights, frame = problem
    own = () if shared else (lanes,)
    x = normal(*own, -(-examples // WIDTH), *image, WIDTH, seed=seed)
    inputs = (normal(lanes, *weights, seed=seed), *numbers(lanes, weights[0], seed=seed))
    squares = [(size + sum(frame) - weights[-1] + 1) // 2 for size in image[1:]]
    upstream = normal(examples, weights[0], *squares, seed=9)
    wanted = (0, 1, 2, 3)[not for_images :]
    compute = partial(everything, upstream=upstream, wanted=wanted, frame=frame)
    with winograd(fast):
        together = vmap(compute, (None if shared else 0, 0, 0, 0))(x, *inputs)
        for i in range(lanes):
            alone = compute(x if shared else x[i], *(t[i] for t in inputs))
            assert all(torch.equal(t[i], a) for t, a in zip(together, alone, strict=True))


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("which", range(4))
def test_nan_in_a_lane_does_not_reach_other_lanes(which, fast):
    images = (2, 8, 6, 5, WIDTH)
    weight, gamma, beta = normal(3, 4, 8, 3, 3), *numbers(3, 4)
    inputs = [normal(3, *images, seed=0), weight, gamma, beta]
    compute = vmap(partial(everything, upstream=normal(EXAMPLES, 4, 2, 1, seed=9)))
    with winograd(fast):
        clean = compute(*inputs)
        inputs[which][1] = math.nan
        ours = compute(*inputs)
    assert ours[0][1].isnan().all()
    for mine, its in zip(ours, clean, strict=True):
        assert torch.equal(mine[[0, 2]], its[[0, 2]])


ORDERS = ["vmap vmap grad", "vmap grad vmap", "grad vmap vmap"]


def nested(order, gradient, function, outer, inner):
    """The gradient of a function under two axes of lanes, in this order."""
    outer, inner = partial(vmap, in_dims=outer), partial(vmap, in_dims=inner)
    if order == "vmap vmap grad":
        return outer(inner(gradient(function)))
    if order == "vmap grad vmap":
        return outer(gradient(inner(function)))
    return gradient(outer(inner(function)))


@pytest.mark.parametrize("wanted", [(0, 1, 2, 3), (1, 2, 3)], ids=["for images", "for weights"])
@pytest.mark.parametrize("inner", [0, None], ids=["own", "shared"])
@pytest.mark.parametrize("outer", [0, None], ids=["own", "shared"])
@pytest.mark.parametrize("order", ORDERS)
def test_gradients_under_nested_vmap_equal_those_alone(order, outer, inner, wanted):
    """For shared and separate images on both axes, and for each position of grad."""
    inputs, upstream = lanes_of(2, 3)
    x = normal(1 if outer is None else 2, 1 if inner is None else 3, *BLOCKS, seed=0)
    all_ = (x.expand(2, 3, *BLOCKS), *inputs)

    def pooled(*inputs):
        return block.unpack(block.conv_block(*inputs, EXAMPLES)[0], EXAMPLES)

    def gradient(function):
        return grad(lambda *inputs: (function(*inputs) * upstream).sum(), argnums=wanted)

    x = x if outer == 0 else x[0]
    x = x if inner == 0 else x.squeeze(-len(BLOCKS) - 1)
    dims = ((outer, 0, 0, 0), (inner, 0, 0, 0))
    ours = nested(order, gradient, pooled, *dims)(x, *inputs)
    alone = [[gradient(pooled)(*(t[i, j] for t in all_)) for j in range(3)] for i in range(2)]
    shared = [inner is None and order != ORDERS[0], outer is None and order == ORDERS[2]]
    for k, mine in zip(wanted, ours, strict=True):
        expected = torch.stack([torch.stack([g[k - wanted[0]] for g in row]) for row in alone])
        if k == 0 and any(shared):  # the gradient of lanes that share is the sum of theirs
            for axis in (1, 0):
                expected = expected.sum(axis) if shared[1 - axis] else expected
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(mine, expected)


THREADS = """
import numba, torch
from fmnist.functional.kernels.cpu import blocks as cpu

from fmnist.functional.kernels.cpu import algorithm

gamma, beta = torch.randn(2, 3, 7)
examples = 18 * cpu.WIDTH + 1
for inputs, frame, keep, fast in (
    (2, (0, 0), False, False), (30, (1, 2), True, False), (2, (1, 1), True, False),
    (30, (1, 2), True, True), (9, (0, 0), True, True),
):
    algorithm.winograd = lambda *_: fast
    cpu.plan.cache_clear()
    x, weight = torch.randn(3, 19, inputs, 6, 5, cpu.WIDTH), torch.randn(3, 7, inputs, 3, 3)
    several = []
    for threads in (1, 2, 3):
        numba.set_num_threads(threads)
        torch.set_num_threads(threads)
        pooled, *saved = cpu.forward(x, weight, gamma, beta, examples, 1e-5, frame, keep)
        grads = cpu.backward(pooled, x, weight, gamma, *saved, examples, 1e-5, True, frame)
        given = cpu.forward_given(x, weight, gamma, beta, *saved[:2], 1e-5, frame)
        several.append([pooled, *saved, *grads, given])
    for other in several[1:]:
        assert all(map(torch.equal, several[0], other))
"""


def test_number_of_threads_changes_no_bit():
    """In a separate process, which has three threads on any machine."""
    environment = {**os.environ, "NUMBA_NUM_THREADS": "3"}
    run = subprocess.run(
        [sys.executable, "-c", THREADS], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


# Evaluation ------------------------------------------------------------------------------------


@given(st.integers(1, 3), problems(), st.booleans(), seeds, st.booleans())
@settings(max_examples=40, deadline=None)
def test_evaluation_equals_the_definition(lanes, problem, shared, seed, fast):
    images, weights, frame = problem
    x = [block.pack(normal(*images, seed=seed + i)) for i in range(lanes)]
    weight, own = normal(lanes, *weights, seed=1), (lanes, len(normal(*weights, seed=1)))
    inputs = (weight, *numbers(*own), normal(*own, seed=4), normal(*own, seed=5).square())
    dims = (None if shared else 0, *[0] * 5)
    evaluate = partial(block.conv_block_given, frame=frame)
    with winograd(fast):
        ours = vmap(evaluate, dims)(x[0] if shared else torch.stack(x), *inputs)
        lone = [evaluate(x[0 if shared else i], *(t[i] for t in inputs)) for i in range(lanes)]
    for i in range(lanes):
        alone = (x[0 if shared else i], *(t[i] for t in inputs))
        assert torch.equal(ours[i], lone[i])
        wide = block.definition_given(*(t.double() for t in alone), frame)
        # A small variance makes numbers large, and the error of each is relative to all of them.
        most = wide.abs().max().item() if fast else 1.0
        atol = max(1e-4, 1e-5 * most)
        torch.testing.assert_close(ours[i].double(), wide, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("inner", [0, None], ids=["own", "shared"])
@pytest.mark.parametrize("outer", [0, None], ids=["own", "shared"])
@pytest.mark.parametrize("order", ORDERS)
def test_gradient_of_evaluation_equals_that_of_the_definition(order, outer, inner):
    (weight, *rest), _ = lanes_of(2, 3)
    statistics = torch.rand(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    shape = [n for n, dim in ((2, outer), (3, inner)) if dim is not None]
    inputs = (normal(*shape, *BLOCKS), weight, *rest, *statistics)

    def gradient(function):
        return grad(lambda *inputs: function(*inputs).sum(), argnums=tuple(range(6)))

    dims = ((outer, *[0] * 5), (inner, *[0] * 5))
    functions = (block.conv_block_given, block.definition_given)
    ours, theirs = (nested(order, gradient, function, *dims)(*inputs) for function in functions)
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("for_images", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_operators_pass_opcheck(own, for_images):
    x, (inputs, _) = normal(3 if own or for_images else 1, *BLOCKS), lanes_of(3)
    pooled, *saved = block._forward(x, *inputs, EXAMPLES, 1, 0)
    torch.library.opcheck(block._forward, (x, *inputs, EXAMPLES, 1, 0))
    torch.library.opcheck(block._given, (x, *inputs, *saved[:2], 1, 0))
    tensors = (pooled, x, *inputs[:2], *saved)
    torch.library.opcheck(block._backward, (*tensors, EXAMPLES, for_images, 1, 0))
