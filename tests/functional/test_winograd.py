"""Winograd's algorithm: its matrices, its digits, and the rule that chooses it.

That it computes the convolution block and its gradients is tested in test_conv_block.py, for all
shapes.
"""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from blocks import winograd
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal

from fmnist.functional.kernels import conv_block as block
from fmnist.functional.kernels.cpu import algorithm
from fmnist.functional.kernels.cpu.simd import WIDTH
from fmnist.functional.kernels.cpu.transforms import KERNELS, matrices, tile_side


def times(matrix, vector):
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


@given(st.sampled_from(KERNELS), st.data())
def test_matrices_correlate_exactly(k, data):
    m = tile_side(k)
    n = m + k - 1
    numbers = st.fractions(-9, 9, max_denominator=9)
    kernel, images = (data.draw(st.lists(numbers, min_size=size, max_size=size)) for size in (k, n))
    of = matrices(k)
    products = [
        a * b for a, b in zip(times(of.kernel, kernel), times(of.inputs, images), strict=True)
    ]
    expected = [sum(kernel[j] * images[i + j] for j in range(k)) for i in range(m)]
    assert times(of.outputs, products) == expected


@pytest.mark.parametrize("k", KERNELS)
def test_rows_of_the_images_have_about_the_length_one(k):
    """Numbers of very different sizes would cost digits."""
    for row in matrices(k).inputs:
        assert Fraction(1, 2) <= sum(x * x for x in row) <= 2


@pytest.mark.parametrize("k", KERNELS)
@pytest.mark.parametrize("channels", [12, 64])
def test_digits(channels, k):
    """The error is a hundredth of that of TF32, or less."""
    x, weight = normal(WIDTH, channels, 14, 14).relu(), normal(16, channels, k, k, seed=1)
    inputs = (block.pack(x), weight, *torch.tensor([1.0, 0, 0, 1])[:, None].expand(4, 16))
    with winograd(True):
        ours = block.conv_block_given(*inputs)
    exact = block.definition_given(*(t.double() for t in inputs))
    error = (ours.double() - exact).square().mean() / exact.square().mean()
    assert error**0.5 < 1e-5


@given(st.integers(1, 9), st.integers(1, 99), st.integers(1, 7), st.integers(1, 70))
def test_the_rule_knows_neither_lanes_nor_examples(lanes, blocks, k, channels):
    """What computes a lane must not depend on its mates, or on what is left for the last step."""
    images, weight = (channels, 12, 11, WIDTH), (2 * channels, channels, k, k)
    frame = (1, 0) if k > 1 else (0, 0)
    wanted = {
        algorithm.winograd((some, b, *images), (some, *weight), frame)
        for some, b in ((lanes, blocks), (1, 1))
    }
    assert len(wanted) == 1


def test_second_blocks_are_computed_by_it_and_first_blocks_are_not():
    def chosen(outputs, inputs, size):
        x, weight = (1, 1, inputs, size, size, WIDTH), (1, outputs, inputs, 5, 5)
        return algorithm.winograd(x, weight, (0, 0))

    assert chosen(24, 12, 12)
    assert chosen(128, 64, 12)
    assert not chosen(12, 1, 28)
    assert not chosen(64, 1, 28)
