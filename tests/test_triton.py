"""The Triton kernels of norm_relu_pool: interpreted on a CPU, compiled without a GPU, run on one.

Triton decides when it is imported whether it interprets, so that happens in a process of its own,
where this file is the script: it does the checks and prints what failed. Interpreting shows that
the arithmetic and the indices are right; speed and what threads do to each other it cannot show.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import traceback
from functools import partial
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
EPS = 1e-5


def normal(*shape, seed=0, scale=1.0, shift=0.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale + shift


def numbers(channels, seed=0):
    """Weights of both signs with zeros among them, and biases."""
    weight = normal(channels, seed=seed + 1)
    weight[::3] = 0.0
    return weight, normal(channels, seed=seed + 2)


# The checks, in the interpreting process ------------------------------------------------------


def check_definition(shape, x=None):
    """Outputs, statistics and gradients, against the definition in float64 and its autograd."""
    from test_kernels import check_against_definition

    x = normal(*shape, scale=2.0, shift=1.0) if x is None else x
    check_against_definition(x, *numbers(shape[1]), seed=5)


def check_ties(shape):
    generator = torch.Generator().manual_seed(0)
    check_definition(shape, torch.randint(-2, 3, shape, generator=generator).float())


def check_same_as_cpu(shape):
    """Given the same mean and variance, each pixel's arithmetic is the CPU's to the bit."""
    from fmnist.functional.kernels import cpu, triton_cuda

    x, (weight, bias) = normal(*shape, scale=2.0, shift=1.0), numbers(shape[1])
    pooled, mean, var, centred, which = real_cpu["forward"](x, weight, bias, EPS)
    ours = triton_cuda.forward_given(x, weight, bias, mean, var, EPS)
    for mine, theirs in zip(ours, (pooled, centred, which), strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.stride() == theirs.stride()
        assert torch.equal(mine, theirs)
    grad = normal(*pooled.shape, seed=9)
    saved = (weight, mean, var, centred, which, EPS)
    # A gradient may come with any strides.
    for g in (grad, grad.contiguous(memory_format=torch.channels_last)):
        ours = triton_cuda.backward(g, x, *saved)
        for mine, theirs in zip(ours, real_cpu["backward"](grad, x, *saved), strict=True):
            assert mine.stride() == theirs.stride()
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6 * theirs.abs().max())
    assert cpu.forward is triton_cuda.forward


def check_channels_stand_alone():
    """To the bit, though the tiles of 130 channels are others than those of 5."""
    from fmnist.functional.kernels import triton_cuda

    x, (weight, bias) = normal(7, 130, 9, 8), numbers(130)
    together = triton_cuda.forward(x, weight, bias, EPS)
    grad = normal(*together[0].shape, seed=9)
    grads = triton_cuda.backward(grad, x, weight, *together[1:], EPS)
    for own in (slice(0, 5), slice(62, 67), slice(129, 130)):
        solo = triton_cuda.forward(x[:, own], weight[own], bias[own], EPS)
        solo_grads = triton_cuda.backward(grad[:, own], x[:, own], weight[own], *solo[1:], EPS)
        for all_, one in zip(together + grads, solo + solo_grads, strict=True):
            assert torch.equal(all_[:, own] if all_.dim() == 4 else all_[own], one)


def check_parts(batch):
    """More rows than the parts' least size holds, whole parts and not: the cuts are right."""
    from fmnist.functional.kernels import triton_cuda

    triton_cuda.PARTS = 3
    try:
        x = normal(batch, 2, 8, 8, shift=3.0)
        pooled, mean, var, centred, which = triton_cuda.forward(x, *numbers(2), EPS)
        exact = torch.var_mean(x.double(), dim=(0, 2, 3), correction=0)
        torch.testing.assert_close(var.double(), exact[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(mean.double(), exact[1], rtol=1e-6, atol=0)
        grad = normal(*pooled.shape, seed=9)
        dbias = triton_cuda.backward(grad, x, numbers(2)[0], mean, var, centred, which, EPS)[2]
        passed = torch.where(which < 4, grad.double(), 0.0).sum((0, 2, 3))
        torch.testing.assert_close(dbias.double(), passed, rtol=1e-5, atol=1e-5)
    finally:
        triton_cuda.PARTS = 512


def check_statistics(shift):
    from fmnist.functional.kernels import triton_cuda

    x = normal(20, 5, 12, 12, shift=shift)
    _, mean, var, *_ = triton_cuda.forward(x, torch.ones(5), torch.zeros(5), EPS)
    exact = torch.var_mean(x.double(), dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(var.double(), exact[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(mean.double(), exact[1], rtol=1e-7, atol=0)


def check_bfloat16():
    """Only rounded on the way in and out."""
    from fmnist.functional.kernels import triton_cuda

    x, (weight, bias) = normal(3, 5, 6, 7).bfloat16(), numbers(5)
    pooled, *saved = triton_cuda.forward(x, weight, bias, EPS)
    exact, *exact_saved = triton_cuda.forward(x.float(), weight, bias, EPS)
    assert pooled.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(saved, exact_saved, strict=True))
    torch.testing.assert_close(pooled.float(), exact, rtol=2**-7, atol=1e-6)
    dx, *rest = triton_cuda.backward(exact.bfloat16(), x, weight, *saved, EPS)
    ours = triton_cuda.backward(exact.bfloat16().float(), x.float(), weight, *saved, EPS)
    assert dx.dtype == torch.bfloat16
    torch.testing.assert_close(dx.float(), ours[0], rtol=2**-7, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(rest, ours[1:], strict=True))


def from_test_kernels(name, **arguments):
    """A test of the CPU's kernels, with these in their place."""
    import test_kernels

    test = getattr(test_kernels, name)
    getattr(test, "hypothesis", None) and (test := test.hypothesis.inner_test)
    test(**arguments)


SHAPES = [(1, 12, 2, 2), (3, 12, 9, 7), (9, 24, 8, 8), (4, 48, 5, 6), (2, 130, 5, 4), (2, 1, 24, 24)]
CHECKS = {
    **{f"definition {shape}": partial(check_definition, shape) for shape in SHAPES},
    **{f"ties {shape}": partial(check_ties, shape) for shape in SHAPES[1:4]},
    **{f"same as cpu {shape}": partial(check_same_as_cpu, shape) for shape in SHAPES},
    **{f"statistics at {shift:g}": partial(check_statistics, shift) for shift in (1e4, -1e4)},
    **{f"parts of {batch} images": partial(check_parts, batch) for batch in (11, 12)},
    "channels stand alone": check_channels_stand_alone,
    "bfloat16": check_bfloat16,
    "closed": partial(from_test_kernels, "test_nothing_passes_a_closed_relu"),
    **{
        f"poison {x}": partial(
            from_test_kernels, "test_a_poisoned_channel_is_its_own_trouble", poison=x
        )
        for x in (math.nan, math.inf, -math.inf)
    },
    "outlier": partial(
        from_test_kernels, "test_an_outlier_that_comes_first_does_not_spoil_the_statistics"
    ),
    "lanes": partial(
        from_test_kernels, "test_lanes_do_not_disturb_each_other", lanes=3, channels=5, seed=0
    ),
    "evaluation": partial(
        from_test_kernels, "test_evaluation_equals_its_definition", lanes=2, shape=(3, 5, 6, 7), seed=0
    ),
    "operators": partial(from_test_kernels, "test_the_operators_keep_torchs_rules"),
}
real_cpu = {}
