"""Shares of images that are as far away, and the confidence that follows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import normal

from fmnist.functional import outliers

seeds = st.integers(0, 2**32 - 1)


def some(seed, width=4, examples=200):
    """Features of three classes, and their labels."""
    labels = torch.arange(examples) % 3
    scales = normal(width, seed=seed + 1).exp()
    return normal(examples, width, seed=seed) * scales + 5 * labels[:, None], labels


def known(seed, count=99, width=4):
    features, labels = some(seed, width)
    return outliers.familiar(features, labels, some(seed + 2, width, count)[0])


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 300))
def test_calibration_images_have_each_share_once(seed, count):
    found, images = known(seed, count), some(seed + 2, examples=count)[0]
    distances, shares = outliers.distances(found, images), outliers.shares(found, images)
    further = (distances >= distances[:, None]).sum(dim=1)  # itself included
    torch.testing.assert_close(shares, (further + 1).double() / (count + 1))
    if len(distances.unique()) == count:
        expected = torch.arange(2, count + 2).double() / (count + 1)
        torch.testing.assert_close(shares.sort().values, expected)


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_the_further_the_smaller_the_share(seed):
    found, features = known(seed), 10 * normal(50, 4, seed=seed + 3)
    order = outliers.distances(found, features).argsort()
    shares = outliers.shares(found, features)[order]
    assert (shares.diff() <= 0).all()
    assert ((shares > 0) & (shares <= 1)).all()
    far = outliers.shares(found, torch.full((1, 4), 1e6))
    assert far.item() == pytest.approx(1 / 100)


@settings(deadline=None, max_examples=30)
@given(seeds, st.floats(0.1, 10), st.floats(-10, 10))
def test_units_of_the_features_do_not_matter(seed, scale, shift):
    features, labels = some(seed)
    moved = scale * features.double() + shift
    a = outliers.familiar(features, labels, features)
    b = outliers.familiar(moved.float(), labels, moved.float())
    torch.testing.assert_close(a.distances, b.distances, atol=1e-2, rtol=1e-2)


def test_distances_are_those_of_mahalanobis():
    features, labels = some(0)
    found = outliers.familiar(features, labels, features)
    means = torch.stack([features[labels == kind].double().mean(0) for kind in range(3)])
    centred = features.double() - means[labels]
    covariance = centred.T @ centred / len(features)
    ridge = outliers.RIDGE * covariance.diagonal().mean() * torch.eye(4)
    inverse = torch.linalg.inv(covariance + ridge)
    point = features[:7].double() + 3
    expected = torch.stack([((point - m) @ inverse * (point - m)).sum(1) for m in means])
    torch.testing.assert_close(
        outliers.distances(found, point.float()).double(), expected.amin(0).sqrt(),
        atol=1e-4, rtol=1e-4,
    )  # fmt: skip


def test_a_feature_that_never_varied_tells():
    features, labels = some(0)
    features[:, 0] = 0
    found = outliers.familiar(features, labels, features)
    strange = features[:5].clone()
    strange[:, 0] = 20
    assert (outliers.shares(found, strange) < 0.01).all()
    nothing = outliers.familiar(torch.zeros(9, 4), labels[:9], torch.zeros(9, 4))
    assert all(tensor.isfinite().all() for tensor in nothing)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_give_numbers_that_are_not(value):
    features, labels = some(0)
    features[3, 1] = value
    found = outliers.familiar(features, labels, features)
    assert not all(tensor.isfinite().all() for tensor in found)


@settings(deadline=None, max_examples=50)
@given(seeds, st.floats(1e-6, 1))
def test_only_unusual_inputs_lose_confidence(seed, share):
    row = normal(1, 10, seed=seed).double().softmax(dim=1)
    shares = torch.tensor([share], dtype=torch.float64)
    stated = outliers.less_confident(row, shares)
    assert stated.sum().item() == pytest.approx(1)
    if share >= outliers.UNUSUAL:
        assert torch.equal(stated, row)
    else:
        weight = share / outliers.UNUSUAL
        torch.testing.assert_close(stated, weight * row + (1 - weight) * 0.1)
        assert (stated.argsort() == row.argsort()).all() or weight < 1e-9
