"""The caller's default dtype and device change no result of the functions."""

from __future__ import annotations

import contextlib

import optree
import pytest
import torch
from strategies import normal, random_split
from torch.func import grad

from fmnist import adam, sgd
from fmnist.functional import batching, cnn, layers, losses, optim
from fmnist.functional.types import ModelConfig

CONFIG = ModelConfig(channels=(3, 4), hidden=(7,), dropout=0.4)


@contextlib.contextmanager
def default_dtype():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def a_step(split, noise):
    """Everything that a step of training computes, by functions of the package alone."""
    params, state = cnn.init(3, CONFIG)
    order = batching.permutation(3, 1, len(split.labels))
    batch = batching.gather(split, order[:9])
    drawn = batching.uniform_noise(3, 1, 9, CONFIG.hidden)

    def loss(params):
        logits, new_state = cnn.apply(
            params, state, batch.images, train=True, dropout=CONFIG.dropout, noise=drawn
        )
        mean = losses.cross_entropy(logits, batch.labels)
        return mean.mean(), (new_state, losses.measure(mean, logits, batch.labels))

    grads, rest = grad(loss, has_aux=True)(params)
    found = [params, state, order, batch, drawn, grads, rest]
    for optimizer in (adam(0.01, weight_decay=0.1), sgd(0.01, momentum=0.9)):
        updates, moments = optimizer.update(grads, optimizer.init(params), params)
        found += [optim.apply_updates(params, updates), moments]
    found.append(cnn.apply(params, state, batch.images, train=False)[0])
    found.append(layers.dropout(noise, noise.sigmoid(), 0.3))
    return optree.tree_leaves(found, namespace="fmnist")


@pytest.mark.parametrize(
    "default",
    [default_dtype, lambda: torch.device("meta"), torch.inference_mode, torch.no_grad],
    ids=["dtype", "device", "inference mode", "no_grad"],
)
def test_default_changes_nothing(default):
    split, noise = random_split(20), normal(4, 6)
    expected = a_step(split, noise)
    with default():
        found = a_step(split, noise)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.device == b.device
        assert torch.equal(a, b)
