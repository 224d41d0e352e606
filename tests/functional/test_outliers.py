"""Shares of images that are as far away, and the confidence that follows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import normal

from fmnist.functional import outliers

seeds = st.integers(0, 2**32 - 1)


def some(seed, examples=200, widths=(4, 6)):
    """Looks at three classes, each around a direction of its own, and their labels."""
    labels = torch.arange(examples) % 3
    looks = [
        normal(examples, width, seed=seed + i) + 5 * torch.eye(width)[labels]
        for i, width in enumerate(widths)
    ]
    return looks, labels


def known(seed, count=99):
    looks, labels = some(seed)
    return outliers.familiar(looks, labels, some(seed + 2, count)[0])


def shares_of(found, *looks):
    return outliers.shares(found, outliers.distances(found.prototypes, looks))


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 300))
def test_a_share_is_that_of_the_images_at_least_as_far_away(seed, count):
    found, looks = known(seed, count), some(seed + 2, count)[0]
    distances = outliers.distances(found.prototypes, looks)
    further = (distances[:, None] >= distances[:, :, None]).sum(dim=2)  # itself included
    expected = (2 * (further.amin(dim=0) + 1).double() / (count + 1)).clamp(max=1)
    torch.testing.assert_close(outliers.shares(found, distances), expected)


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_a_share_falls_with_the_distance_in_any_look(seed):
    found = known(seed)
    first, second = (10 * normal(50, width, seed=seed + 3) for width in (4, 6))
    order = outliers.distances(found.prototypes, (first, second))[0].argsort()
    same = second[:1].expand(50, 6)
    shares = shares_of(found, first[order], same)
    assert (shares.diff() <= 0).all()
    assert ((shares > 0) & (shares <= 1)).all()
    far = shares_of(found, -torch.ones(1, 4), second[:1])
    assert far.item() == pytest.approx(2 / 100)


def test_remoteness_adds_the_looks_in_units_of_their_medians():
    found, looks = known(0), some(5)[0]
    medians = found.distances.median(dim=1).values
    distances = outliers.distances(found.prototypes, looks)
    expected = distances[0] / medians[0] + distances[1] / medians[1]
    torch.testing.assert_close(outliers.remoteness(found, distances), expected)


def test_images_of_the_same_kind_are_seldom_unusual():
    found = known(0, 5000)
    shares = shares_of(found, *some(7, 5000)[0])
    for share in (0.01, 0.1):
        assert (shares <= share).double().mean() < 1.4 * share


@settings(deadline=None, max_examples=30)
@given(seeds, st.floats(0.01, 100), st.randoms())
def test_neither_scale_nor_order_of_the_looks_matters(seed, scale, chance):
    looks, labels = some(seed)
    first = outliers.familiar(looks, labels, looks)
    second = outliers.familiar([scale * look for look in looks], labels, looks)
    torch.testing.assert_close(first.distances, second.distances, atol=1e-4, rtol=1e-4)
    turned = outliers.familiar(looks[::-1], labels, looks[::-1])
    assert torch.equal(first.distances.flip(0), turned.distances)


def test_few_examples_are_their_own_prototypes():
    looks, labels = some(0, 60)
    (prototypes, _), distances = outliers.familiar(looks, labels, looks)
    assert prototypes.shape == (60, 4)
    assert distances[0].max() < 1e-5
    prototypes, _ = outliers.familiar(*some(0, 900), looks)
    assert prototypes[1].shape == (3 * outliers.PROTOTYPES, 6)


def test_a_class_without_examples_has_no_prototypes():
    looks, labels = some(0)
    found = outliers.familiar([look[labels > 0] for look in looks], labels[labels > 0], looks)
    shares = shares_of(found, *(look[labels == 0] for look in looks))
    assert shares.mean() < shares_of(found, *(look[labels > 0] for look in looks)).mean()


def test_looks_without_a_direction_are_far_and_finite():
    found = outliers.familiar([torch.zeros(9, 4)], torch.arange(9) % 3, [torch.zeros(9, 4)])
    assert torch.equal(found.distances, torch.ones(1, 9))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_looks_that_are_not_finite_give_numbers_that_are_not(value):
    looks, labels = some(0)
    looks[0][3, 1] = value
    assert not outliers.familiar(looks, labels, looks).distances.isfinite().all()


def test_outlines_are_differences_of_neighbours():
    images = torch.zeros(2, 1, 28, 28)
    assert torch.equal(outliers.outlines(images + 0.7), torch.zeros(2, 2 * 9 * 9))
    images[0, 0, :, 15:] = 0.25  # an edge from above to below
    across, down = outliers.outlines(images)[0].view(2, 9, 9)
    torch.testing.assert_close(across[:, 4], torch.full((9,), 0.5 / 3))
    assert across.count_nonzero() == 9
    assert (down == 0).all()
    turned = outliers.outlines(images.mT)[0].view(2, 9, 9)
    assert torch.equal(turned, torch.stack([down, across.T]))


def test_areas_are_where_it_is_bright():
    images = torch.zeros(2, 1, 28, 28)
    images[1, 0, 4:8, 8:12] = 0.25
    first, second = outliers.areas(images).view(2, 7, 7)
    assert (first == 0).all()
    assert second.nonzero().tolist() == [[1, 2]]
    assert second[1, 2] == 0.5


@settings(deadline=None, max_examples=50)
@given(seeds, st.floats(0.01, 1))
def test_the_plain_looks_do_not_depend_on_contrast(seed, factor):
    images = normal(3, 1, 28, 28, seed=seed).sigmoid()
    for look in (outliers.outlines, outliers.areas):
        prototypes = (torch.nn.functional.normalize(look(images)),)
        distances = outliers.distances(prototypes, [look(images * factor)])
        assert distances.abs().max() < 1e-5


@settings(deadline=None, max_examples=50)
@given(seeds, st.floats(1e-6, 1))
def test_only_unusual_images_lose_confidence(seed, share):
    row = normal(1, 10, seed=seed).double().softmax(dim=1)
    weights = outliers.weights(torch.tensor([share], dtype=torch.float64))
    stated = outliers.less_confident(row, weights)
    assert stated.sum().item() == pytest.approx(1)
    if share >= outliers.UNUSUAL:
        assert torch.equal(stated, row)
    else:
        weight = share / outliers.UNUSUAL
        torch.testing.assert_close(stated, weight * row + (1 - weight) * 0.1)
        assert (stated.argsort() == row.argsort()).all() or weight < 1e-9
