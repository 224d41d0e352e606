"""Measures of probabilities against their definitions, and the greedy choice of models."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import normal, seeds

from fmnist.functional import ensembles


def drawn(seed, members=4, examples=30, sharpness=2.0):
    logits = normal(members, examples, 10, seed=seed, scale=sharpness).double()
    labels = torch.randint(10, (examples,), generator=torch.Generator().manual_seed(seed))
    return logits.softmax(2), labels


@given(seeds, st.integers(1, 40), st.sampled_from([0.1, 2.0, 20.0]))
@settings(deadline=None)
def test_accuracy_and_loss_equal_torch(seed, examples, sharpness):
    members, labels = drawn(seed, 1, examples, sharpness)
    found = ensembles.measures(members[0], labels)
    assert found.loss == pytest.approx(
        F.nll_loss(members[0].clamp(min=1e-12).log(), labels).item(), rel=1e-12
    )
    assert found.accuracy == (members[0].argmax(1) == labels).double().mean().item()


@given(seeds, st.integers(1, 60), st.sampled_from([0.1, 2.0, 20.0]))
@settings(deadline=None)
def test_calibration_error_equals_its_definition(seed, examples, sharpness):
    members, labels = drawn(seed, 1, examples, sharpness)
    confidence, predicted = members[0].max(1)
    expected = 0.0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if inside.any():
            accuracy = (predicted == labels)[inside].double().mean()
            gap = (confidence[inside].mean() - accuracy).abs().item()
            expected += gap * inside.sum().item() / examples
    assert ensembles.calibration_error(members[0], labels) == pytest.approx(expected, abs=1e-12)


def test_calibration_of_what_is_sure():
    sure = F.one_hot(torch.tensor([3, 3, 5, 7])).double()
    sure = F.pad(sure, (0, 2))
    assert ensembles.calibration_error(sure, torch.tensor([3, 3, 5, 7])) == 0
    assert ensembles.calibration_error(sure, torch.tensor([3, 3, 5, 1])) == 0.25
    found = ensembles.measures(sure, torch.tensor([3, 3, 5, 1]))
    assert math.isfinite(found.loss)


@given(seeds, st.integers(1, 5))
@settings(deadline=None)
def test_disagreement_is_the_mean_over_pairs(seed, members):
    probabilities, _ = drawn(seed, members)
    classes = probabilities.argmax(2)
    pairs = list(itertools.combinations(classes, 2))
    expected = sum((a != b).double().mean().item() for a, b in pairs) / max(len(pairs), 1)
    assert ensembles.disagreement(probabilities) == pytest.approx(expected, abs=1e-12)


@given(seeds, st.integers(1, 6))
@settings(deadline=None)
def test_greedy_choice_is_the_best_at_each_step(seed, most):
    members, labels = drawn(seed)
    chosen = ensembles.greedy(members, labels, most)
    assert 1 <= len(chosen) <= most

    def loss(places):
        return ensembles.measures(members[places].mean(0), labels).loss

    for end in range(1, len(chosen) + 1):
        best = min(loss([*chosen[: end - 1], other]) for other in range(4))
        assert loss(chosen[:end]) == pytest.approx(best, rel=1e-12)
    # What follows would be no better, and every earlier beginning is worse.
    assert all(loss(chosen[:end]) > loss(chosen) for end in range(1, len(chosen)))


@given(seeds)
@settings(deadline=None)
def test_growing_ensembles_are_means_of_their_first_members(seed):
    members, labels = drawn(seed)
    chosen = [2, 0, 2, 3]
    found = ensembles.growing(members, labels, chosen)
    for end, own in enumerate(found, 1):
        expected = ensembles.measures(members[chosen[:end]].mean(0), labels)
        assert own == pytest.approx(expected, rel=1e-12)
