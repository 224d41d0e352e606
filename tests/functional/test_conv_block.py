"""The fused convolution block on a CPU equals its definition in plain torch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from blocks import everything, numbers, problems, whole, winograd
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import normal, seeds

from fmnist.functional.kernels import conv_block as block
from fmnist.functional.kernels.cpu.algorithm import CHUNKS
from fmnist.functional.kernels.cpu.simd import WIDTH


def decided(x, weight, gamma, beta, frame=(0, 0)):
    """The squares whose largest pixel is unique and not near zero, independently of rounding."""
    y = F.conv2d(F.pad(x.double(), (*frame, *frame)), weight.double())
    out = F.batch_norm(y, None, None, gamma.double(), beta.double(), training=True)
    largest, second = F.unfold(out.flatten(0, 1)[:, None], 2, stride=2).topk(2, 1)[0].unbind(1)
    clear = (largest - second > 1e-3) & (largest.abs() > 1e-3)
    return clear.unflatten(0, y.shape[:2]).unflatten(2, tuple(size // 2 for size in y.shape[2:]))


def check_against_definition(x, weight, gamma, beta, upstream, frame=(0, 0)):
    """Outputs, statistics and all gradients, against the definition in float64."""
    examples, inputs = len(x), [t.clone().requires_grad_() for t in (x, weight, gamma, beta)]
    pooled, mean, var = block.conv_block(block.pack(inputs[0]), *inputs[1:], examples, frame)
    wide = [t.double().requires_grad_() for t in (x, weight, gamma, beta)]
    exact = block.definition(block.pack(wide[0]), *wide[1:], examples, frame)
    pooled, expected = (block.unpack(t, examples) for t in (pooled, exact[0]))
    torch.testing.assert_close(pooled.double(), expected, rtol=1e-4, atol=1e-4)
    spread = exact[2].max().item()
    torch.testing.assert_close(mean.double(), exact[1], rtol=1e-4, atol=1e-5 * spread**0.5)
    torch.testing.assert_close(var.double(), exact[2], rtol=1e-4, atol=1e-5 * spread)
    ours = torch.autograd.grad(pooled, inputs, upstream)
    theirs = torch.autograd.grad(expected, wide, upstream.double())
    # Where the terms of a gradient cancel, what is left is rounding of terms of this size.
    scale = (gamma / torch.sqrt(var + 1e-5)).abs().max().item()
    terms = (scale * weight.abs().max().item(), scale * x.abs().max().item(), 1.0, 1.0)
    for mine, its, term in zip(ours, theirs, terms, strict=True):
        size = its.abs().max().item() + term
        torch.testing.assert_close(mine.double(), its, rtol=1e-3, atol=1e-4 * size)


@given(
    problems(), seeds, st.sampled_from([0.3, 1.0, 30.0]), st.sampled_from([-2.0, 0.0, 2.0]),
    st.booleans(),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_conv_block_equals_the_definition(problem, seed, scale, shift, fast):
    images, weights, frame = problem
    x, weight = normal(*images, seed=seed, scale=scale, shift=shift), normal(*weights, seed=1)
    gamma, beta = numbers(len(weight))
    sure = decided(x, weight, gamma, beta, frame)
    with winograd(fast):
        check_against_definition(x, weight, gamma, beta, normal(*sure.shape, seed=3) * sure, frame)


@given(problems(), seeds, st.sampled_from([0.25, 1.0, 32.0]), st.sampled_from([-20, 0, 2]))
@settings(max_examples=100, deadline=None)
def test_ties_equal_the_definition(problem, seed, scale, shift):
    images, weights, frame = problem
    x = whole(-2, 3, *images, seed=seed) + shift
    weight = whole(-2, 3, *weights, seed=seed ^ 1) * scale
    gamma, beta = numbers(len(weight))
    squares = decided(x, weight, gamma, beta, frame).shape
    with winograd(False):  # its sums are not exact, so no pixels are equal
        check_against_definition(x, weight, gamma, beta, normal(*squares, seed=3), frame)


@pytest.mark.parametrize("outputs", [1, 4, 12, 16, 23])
@pytest.mark.parametrize("inputs", [1, 13, 40])
def test_more_channels_than_fit_in_registers_and_caches(inputs, outputs):
    """Every sum is a whole number, so it is exact in any order."""
    x, weight = whole(-2, 3, 3, inputs, 7, 8, seed=0), whole(-2, 3, outputs, inputs, 5, 5, seed=1)
    gamma, beta = torch.ones(outputs), torch.zeros(outputs)
    squares = decided(x, weight, gamma, beta, (2, 1))
    upstream = normal(*squares.shape, seed=3) * squares
    check_against_definition(x, weight, gamma, beta, upstream, (2, 1))


@pytest.mark.parametrize("kernel", [8, 9, 11])
def test_large_kernels(kernel):
    x, weight = normal(5, 3, 12, 13, seed=0), normal(7, 3, kernel, kernel, seed=1)
    gamma, beta = numbers(7)
    sure = decided(x, weight, gamma, beta, (1, 0))
    check_against_definition(x, weight, gamma, beta, normal(*sure.shape, seed=3) * sure, (1, 0))


@pytest.mark.parametrize("examples", [16 * WIDTH, 19 * WIDTH - 3])
def test_more_blocks_than_partial_sums(examples):
    assert examples >= CHUNKS * WIDTH
    x, weight = whole(-2, 3, examples, 2, 5, 4, seed=0), whole(-2, 3, 7, 2, 2, 2, seed=1)
    check_against_definition(x, weight, *numbers(7), normal(examples, 7, 2, 1, seed=3))


def test_gradient_of_equal_pixels_goes_to_the_first():
    """Of equal pixels the first in row-major order gets all of the gradient."""
    x = torch.tensor([[0.0, 0, 3, 1], [0, 0, 3, 3]]).expand(2, 1, 2, 4).requires_grad_()
    ones, pixels = torch.ones(1), torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0]])
    pooled = block.conv_block(block.pack(x), ones.view(1, 1, 1, 1), ones, 9 * ones, 2)[0]
    (mine,) = torch.autograd.grad(block.unpack(pooled, 2).sum(), x)
    normal = ((x - x.mean()) * (x.var(correction=0) + 1e-5).rsqrt())[0, 0]
    d = pixels - pixels.mean() - normal * (pixels * normal).mean()
    expected = (d * (x.var(correction=0) + 1e-5).rsqrt()).detach()
    torch.testing.assert_close(mine[0, 0], expected, rtol=1e-4, atol=1e-4)


@given(problems(st.integers(1, 3 * WIDTH).filter(lambda n: n % WIDTH)), seeds, st.booleans())
@settings(max_examples=50, deadline=None)
def test_padding_after_the_last_example_changes_no_bit(problem, seed, fast):
    (examples, *image), weights, frame = problem
    x, weight = normal(examples, *image, seed=seed), normal(*weights, seed=1)
    squares = [(size + sum(frame) - weights[-1] + 1) // 2 for size in image[1:]]
    upstream = normal(examples, len(weight), *squares, seed=3)
    garbage = normal(-examples % WIDTH, *image, seed=4, scale=1e3, shift=1e3)
    with winograd(fast):
        clean, dirty = (
            everything(packed, weight, *numbers(len(weight)), upstream, frame=frame)
            for packed in (block.pack(x), block.pack(torch.cat([x, garbage])))
        )
    assert all(map(torch.equal, clean, dirty))
    beyond = block.unpack(dirty[3], examples + len(garbage))[examples:]
    assert torch.equal(beyond, torch.zeros_like(garbage))


def test_gradients_are_zero_where_the_relu_is_zero():
    x, weight = block.pack(normal(5, 2, 6, 6, seed=0)), normal(3, 2, 3, 3, seed=1)
    upstream = torch.ones(5, 3, 2, 2)
    pooled, _, _, *grads = everything(x, weight, torch.ones(3), torch.full((3,), -1e3), upstream)
    assert torch.equal(pooled, torch.zeros_like(pooled))
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_nonfinite_weight_affects_only_its_channel(poison):
    examples = WIDTH + 3
    x, upstream = block.pack(normal(examples, 2, 6, 6, seed=0)), normal(examples, 8, 2, 2, seed=3)
    weight, (gamma, beta) = normal(8, 2, 3, 3, seed=1), numbers(8)
    clean = everything(x, weight, gamma, beta, upstream)
    poisoned = weight.clone()
    poisoned[3, 1, 1, 2] = poison
    ours = everything(x, poisoned, gamma, beta, upstream)
    theirs = block.definition(x, poisoned, gamma, beta, examples)
    expected = block.unpack(theirs[0], examples)
    assert torch.equal(ours[0].isnan(), expected.isnan())
    assert expected[:, 3].isnan().all()
    others = [0, 1, 2, 4, 5, 6, 7]
    assert torch.equal(ours[0][:, others], clean[0][:, others])
    for mine, its in zip(ours[1:3] + ours[4:], clean[1:3] + clean[4:], strict=True):
        assert torch.equal(mine[others], its[others])
    assert not math.isfinite(ours[2][3])
    assert ours[4][3].isnan().all()


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_nonfinite_pixel_affects_the_same_outputs_as_in_the_definition(poison):
    examples = WIDTH + 3
    images, weight = normal(examples, 2, 8, 7, seed=0), normal(7, 2, 3, 3, seed=1).abs()
    rest = (*numbers(7), normal(7, seed=4), normal(7, seed=5).square())
    clean = block.conv_block_given(block.pack(images), weight, *rest)
    images[4, 1, 3, 3] = poison
    x = block.pack(images)
    ours = block.conv_block_given(x, weight, *rest)
    theirs = block.definition_given(x, weight, *rest)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, equal_nan=True)
    ours, clean = (block.unpack(t, examples) for t in (ours, clean))
    others = [i for i in range(examples) if i != 4]
    assert torch.equal(ours[others], clean[others])
    for mine, its in zip(
        block.conv_block(x, weight, *rest[:2], examples),
        block.definition(x, weight, *rest[:2], examples),
        strict=True,
    ):
        there = block.unpack(mine, examples) if mine.dim() > 1 else mine
        expected = block.unpack(its, examples) if its.dim() > 1 else its
        assert torch.equal(there.isnan(), expected.isnan())


# Statistics: a weight of ones leaves the images as they are ------------------------------------


def statistics(x):
    """Mean and variance of images with one channel, computed in two output channels."""
    ones = torch.ones(2)
    return block.conv_block(block.pack(x), ones.view(2, 1, 1, 1), ones, ones, len(x))[1:]


@given(seeds, st.sampled_from([1e4, -1e4]), st.integers(1, 3 * WIDTH))
@settings(max_examples=10, deadline=None)
def test_statistics_are_accurate_with_a_large_mean(seed, shift, examples):
    x = normal(examples, 1, 12, 12, seed=seed, shift=shift)
    mean, var = statistics(x)
    exact = torch.var_mean(x.double(), correction=0)
    torch.testing.assert_close(var.double(), exact[0].expand(2), rtol=1e-3, atol=0)
    torch.testing.assert_close(mean.double(), exact[1].expand(2), rtol=1e-7, atol=0)


def test_variance_is_accurate_with_an_outlier_first():
    x = normal(50, 1, 12, 12, seed=0)
    x[0, 0, 0, 0] = 1e6
    var = statistics(x)[1]
    torch.testing.assert_close(
        var.double(), x.double().var(correction=0).expand(2), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize(("value", "examples"), [(424524.125, 10), (6159678.5, 9), (65127224.0, 5)])
def test_variance_of_a_constant_is_not_negative(value, examples):
    """Rounding could make it negative, and its square root NaN."""
    mean, var = statistics(torch.full((examples, 1, 23, 23), value))
    assert (mean == value).all()
    assert (var >= 0).all()


def test_kernels_refuse_mismatched_shapes_and_dtypes():
    """Compiled kernels do not check bounds: they would read and write outside the arrays."""
    x, weight = torch.zeros(3, 1, 2, 6, 6, WIDTH), torch.zeros(6, 5, 2, 3, 3)
    gamma = torch.ones(6, 5)
    with pytest.raises(ValueError, match="do not go with weights"):
        block._forward(x, weight, gamma, gamma, 4, 0, 0)
    with pytest.raises(ValueError, match="do not go with weights"):
        block._given(x, weight[:3, :, :1], *[gamma[:3]] * 4, 0, 0)
    with pytest.raises(TypeError, match="float32"):
        block._forward(x.double(), weight[:3].double(), gamma[:3], gamma[:3], 4, 0, 0)
    for before, after in ((-1, 0), (0, 3), (3, 3)):
        with pytest.raises(ValueError, match="a frame of"):
            block._forward(x, weight[:3, :, :2], gamma[:3], gamma[:3], 4, before, after)
