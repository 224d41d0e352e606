"""The choice of the fastest variant of a model."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from strategies import NUMBERS, SMALL, make_group, random_split, run_group

from fmnist.engine import autotune, trainer
from fmnist.functional import cnn, features
from fmnist.functional.kernels import conv

CPU = torch.device("cpu")
SHAPE = (1, 28, 28)


def choose(config=SMALL, shared=True, convolution="auto"):
    model = cnn.build(config, convolution)
    return autotune.choose(model, 4, 3, CPU, shared=shared, shape=SHAPE)


@pytest.mark.parametrize("quickest", conv.BACKENDS)
@pytest.mark.parametrize("shared", [True, False])
def test_fastest_variant_is_chosen_and_cached(quickest, shared, monkeypatch):
    """With a CPU in place of a GPU."""
    ways = {name: cnn.build(SMALL, name) for name in conv.BACKENDS}
    model = cnn.build(SMALL)._replace(variants=lambda device: ways)
    autotune.timed.cache_clear()
    seen = []
    plain = conv.conv2d

    def watched(*args, backend, frame):
        seen.append(backend)
        return plain(*args, backend, frame)

    def clock(run, device):
        seen.clear()
        run()
        return 1.0 if set(seen) == {quickest} else 2.0

    monkeypatch.setattr(conv, "conv2d", watched)
    monkeypatch.setattr(autotune, "_milliseconds", clock)

    def choice():
        return autotune.choose(model, 4, 3, CPU, shared=shared, shape=SHAPE)

    assert choice() == (quickest, ways[quickest])
    seen.clear()
    assert choice() == (quickest, ways[quickest])
    assert seen == []  # remembered, not timed again
    autotune.timed.cache_clear()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, NotImplementedError])
def test_variant_that_cannot_run_is_not_chosen(error, monkeypatch):
    def fails(*args, **kwargs):
        raise error

    ways = {"a": cnn.build(SMALL)._replace(apply=fails), "b": cnn.build(SMALL)}
    model = cnn.build(SMALL)._replace(variants=lambda device: ways)
    monkeypatch.setattr(autotune, "_milliseconds", lambda run, device: 1.0)
    assert autotune.choose(model, 4, 3, CPU, shared=True, shape=SHAPE)[0] == "b"
    autotune.timed.cache_clear()


def test_single_variant_is_not_timed():
    assert choose() == ("blocks", cnn.build(SMALL, "blocks"))
    assert choose(convolution="unfold") == ("", cnn.build(SMALL, "unfold"))
    assert autotune.timed.cache_info().currsize == 0


@pytest.mark.parametrize(
    ("precision", "name"), [("float32", "blocks"), ("tf32", "blocks"), ("bfloat16", "lanes")]
)
def test_name_of_the_variant_is_that_of_what_computes(monkeypatch, precision, name):
    found, model = choose(dataclasses.replace(SMALL, precision=precision))
    used = []
    fused, layered = features._fused, features._layered
    monkeypatch.setattr(features, "_fused", lambda *a: used.append("blocks") or fused(*a))
    monkeypatch.setattr(features, "_layered", lambda *a: used.append(a[-2]) or layered(*a))
    model.apply(*model.init(0), torch.zeros(4, *SHAPE), train=True)
    assert [found] == used == [name]


def test_equal_settings_give_the_same_model_object():
    assert cnn.cnn(channels=[3, 4], hidden=[7]) is cnn.build(SMALL)


def test_training_uses_the_chosen_variant(monkeypatch):
    splits = random_split(16), random_split(8, 1)
    own = [(0, NUMBERS), (1, NUMBERS)]
    asked = []

    def unfold(model, *args, **kwargs):
        asked.append((model, *args, kwargs))
        return "unfold", cnn.build(SMALL, "unfold")

    monkeypatch.setattr(autotune, "choose", unfold)
    (epoch,) = run_group(make_group(SMALL, "adam", False, 8, own), *splits, epochs=1)
    # Once: before the step is traced.
    assert asked == [(cnn.build(SMALL), 8, 2, CPU, {"shared": False, "shape": SHAPE})]
    monkeypatch.undo()
    group = make_group(SMALL, "adam", False, 8, own, convolution="unfold")
    (expected,) = run_group(group, *splits, epochs=1)
    assert torch.equal(epoch.train.loss_sum, expected.train.loss_sum)
    assert trainer.variant(*group, splits[0])[0] == ""
