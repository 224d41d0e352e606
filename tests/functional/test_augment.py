"""Random changes of images equal those of torchvision, given the same draws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import normal, seeds
from torch.func import vmap
from torchvision.transforms import v2

from fmnist.functional import augment, batching

IMAGES = normal(6, 1, 28, 28, seed=1)


def noise(width, seed=0, count=6):
    return torch.rand(count, width, generator=torch.Generator().manual_seed(seed))


def shift(images, noise, most):
    return augment.shift(images, noise, most, 5)


def number(value):
    return torch.tensor(value, dtype=torch.float64)


@given(seeds)
@settings(deadline=None)
def test_flip_equals_torchvision(seed):
    drawn = noise(1, seed)
    flipped = v2.functional.horizontal_flip(IMAGES)
    for image, own, mirror, u in zip(
        augment.flip(IMAGES, drawn), IMAGES, flipped, drawn, strict=True
    ):
        assert torch.equal(image, mirror if u < 0.5 else own)


@given(seeds, st.integers(0, 27))
@settings(deadline=None)
def test_shift_equals_padding_and_cropping_of_torchvision(seed, most):
    drawn = noise(2, seed)
    padded = v2.functional.pad(IMAGES, [most])
    moved = augment.shift(IMAGES, drawn, number(most), most)
    for image, large, (row, column) in zip(moved, padded, drawn, strict=True):
        top, left = (min(int(u * (2 * most + 1)), 2 * most) for u in (row, column))
        assert torch.equal(image, v2.functional.crop(large, top, left, 28, 28))


@pytest.mark.parametrize("most", [0, 1, 3])
def test_all_moves_are_equally_likely_and_there_are_no_others(most):
    count = 20_000
    image = torch.zeros(1, 1, 28, 28)
    image[..., 14, 14] = 1
    moved = augment.shift(
        image.expand(count, -1, -1, -1), noise(2, count=count), number(most), most
    )
    place = moved.flatten(1).argmax(1)
    for places in (place // 28, place % 28):
        found, times = places.unique(return_counts=True)
        assert found.tolist() == list(range(14 - most, 15 + most))
        share = 1 / (2 * most + 1)
        assert (times / count - share).abs().max() < 5 * (share / count) ** 0.5


def test_largest_random_number_stays_within_the_moves():
    """0.99999994 * 5 rounds to 5 in float32."""
    drawn = torch.full((6, 2), 1 - 2**-24)
    moved = augment.shift(IMAGES, drawn, number(2), 2)
    assert torch.equal(moved, augment.shift(IMAGES, drawn * 0 + 0.9, number(2), 5))


@given(seeds, st.floats(0, 1))
@settings(deadline=None)
def test_erased_rectangle_is_within_the_ranges_and_equals_torchvision(seed, rate):
    drawn, images = noise(5, seed), torch.ones(6, 1, 28, 28)
    for image, u in zip(augment.erase(images, drawn, number(rate)), drawn, strict=True):
        gone = (image[0] == 0).nonzero()
        if u[0] >= rate:
            assert not len(gone)
            continue
        (top, left), (bottom, right) = gone.amin(0).tolist(), gone.amax(0).tolist()
        height, width = bottom - top + 1, right - left + 1
        expected = v2.functional.erase(images[0], top, left, height, width, torch.zeros(1, 1, 1))
        assert torch.equal(image, expected)
        area = (0.02 + 0.31 * u[1].item()) * 784
        ratio = 0.3 * (1 / 0.09) ** u[2].item()
        assert abs(height - min(28, (area * ratio) ** 0.5)) <= 0.51
        assert abs(width - min(28, (area / ratio) ** 0.5)) <= 0.51


def test_nothing_is_changed_by_a_zero():
    assert torch.equal(augment.shift(IMAGES, noise(2), number(0), 3), IMAGES)
    assert torch.equal(augment.erase(IMAGES, noise(5), number(0)), IMAGES)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_lanes_equal_each_alone_and_inputs_are_kept(seed):
    before, drawn = IMAGES.clone(), noise(5, seed)
    rates, mosts = number([0.0, 0.5, 1.0]), number([0.0, 2.0, 5.0])
    for function, width, values in ((augment.erase, 5, rates), (shift, 2, mosts)):
        own = drawn[:, :width]
        for images, dim in ((IMAGES, None), (torch.stack([IMAGES, -IMAGES, 2 * IMAGES]), 0)):
            together = vmap(function, in_dims=(dim, None, 0))(images, own, values)
            for i in range(3):
                alone = function(images if dim is None else images[i], own, values[i])
                assert torch.equal(together[i], alone)
    assert torch.equal(IMAGES, before)


@given(seeds, st.integers(1, 50), st.integers(1, 9))
@settings(deadline=None)
def test_alternating_flip_mirrors_each_example_in_every_other_epoch(seed, examples, epoch):
    now, later = (batching.flip_numbers(seed, examples, e) for e in (epoch, epoch + 1))
    assert torch.equal(now < 0.5, later >= 0.5)
    assert torch.equal(now, batching.flip_numbers(seed, examples, epoch + 2))
    assert ((now >= 0) & (now < 1)).all()
