"""Custom models: the one of docs/models.md, and others."""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import optree
import pytest
import torch
import torch.nn.functional as F
from strategies import random_split

import fmnist
from fmnist.engine.lanes import make_lanes
from fmnist.functional import batching

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def mixer():
    names = {}
    exec(compile(blocks("python")[0], str(PAGE), "exec"), names)
    return names["mixer"](width=8, blocks=1)


TRAINING, VALIDATION = random_split(47), random_split(20, seed=1)
LANES = {"learning_rate": [0.01, 0.003, 0.001], "seed": [0, 0, 5]}


def run(model, lanes, dtype=torch.float64, epochs=2, optimizer=fmnist.adamw, resume=None):
    return list(
        fmnist.fit(
            model, optimizer, TRAINING, VALIDATION,
            lanes=lanes, batch_size=10, epochs=epochs, dtype=dtype, resume=resume,
        )
    )  # fmt: skip


def leaves(result, lane):
    return optree.tree_leaves(optree.tree_map(lambda leaf: leaf[lane], result.train_state))


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_lane_equals_a_run_of_one_lane(mixer, dtype, bar):
    together = run(mixer, LANES, dtype)
    for lane in range(3):
        own = {name: values[lane] for name, values in LANES.items()}
        for ours, alone in zip(together, run(mixer, own, dtype), strict=True):
            torch.testing.assert_close(ours.train.loss[lane], alone.train.loss[0], rtol=bar, atol=0)
            for a, b in zip(leaves(ours, lane), leaves(alone, 0), strict=True):
                torch.testing.assert_close(a, b, rtol=bar, atol=bar * 1e-2)


def test_lane_equals_a_plain_torch_loop(mixer):
    """With autograd and torch.optim, in float64."""
    (*_, last) = run(mixer, {"learning_rate": 0.003, "seed": 5})
    params, state = mixer.init(5)
    params = optree.tree_map(lambda leaf: leaf.double().requires_grad_(), params)
    optimizer = torch.optim.AdamW(optree.tree_leaves(params), lr=0.003)
    for epoch in (1, 2):
        for indices in batching.permutation(5, epoch, 47).split(10):
            batch = batching.gather(TRAINING, indices, torch.float64)
            optimizer.zero_grad()
            logits, _ = mixer.apply(params, state, batch.images, train=True)
            F.cross_entropy(logits, batch.labels).backward()
            optimizer.step()
    ours = optree.tree_leaves(optree.tree_map(lambda leaf: leaf[0], last.train_state.params))
    for a, b in zip(ours, optree.tree_leaves(params), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-8, atol=1e-11)


def test_resumed_training_equals_uninterrupted_training(mixer):
    whole = run(mixer, LANES, torch.float32, epochs=3)
    state = fmnist.TrainerState(1, whole[0].train_state)
    rest = run(mixer, LANES, torch.float32, epochs=3, resume=state)
    for a, b in zip(leaves(whole[-1], 1), leaves(rest[-1], 1), strict=True):
        assert torch.equal(a, b)


def linear_model(layers):
    """A linear classifier whose parameters are the tree that ``layers`` builds."""

    def init(seed):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(10, 784, generator=generator) / 28
        return layers(weight, torch.zeros(10)), {"seen": torch.zeros((), dtype=torch.int64)}

    def apply(params, state, images, *, train, noise=()):
        weight, bias = optree.tree_leaves(params)
        logits = images.flatten(1) @ weight.mT + bias
        if train and noise:
            logits = logits * noise[0]
        return logits, {"seen": state["seen"] + len(images) * train}

    return fmnist.Model(init, apply)


@pytest.mark.parametrize(
    "layers",
    [
        lambda w, b: [w, b],
        lambda w, b: {"x": {"y": (w, b)}},
        lambda w, b: (w, None, (b,)),
    ],
)
@pytest.mark.parametrize("optimizer", [fmnist.sgd, fmnist.adam])
def test_parameters_may_be_any_pytree(layers, optimizer):
    result = run(linear_model(layers), LANES, torch.float32, optimizer=optimizer)[-1]
    assert result.train_state.state["seen"].tolist() == [94] * 3
    assert result.train.accuracy.shape == (3,)


def test_noise_depends_on_the_seed_of_the_lane():
    noisy = linear_model(lambda w, b: [w, b])._replace(noise_widths=(10,))
    together = run(noisy, LANES, torch.float64)[-1]
    alone = run(noisy, {"learning_rate": 0.001, "seed": 5}, torch.float64)[-1]
    plain = run(linear_model(lambda w, b: [w, b]), LANES, torch.float64)[-1]
    torch.testing.assert_close(together.train.loss[2], alone.train.loss[0], rtol=1e-9, atol=0)
    assert not torch.isclose(together.train.loss[2], plain.train.loss[2])


@pytest.mark.parametrize("nothing", [(), None])
def test_custom_optimizer(nothing):
    """Sign descent with two numbers, and an integer that is not a number of a lane."""

    def sign(rate, scale=1.0, times=2):
        def update(grads, state, params):
            for _ in range(times):
                grads = optree.tree_map(torch.sign, grads)
            return optree.tree_map(lambda g: -g * (rate * scale).to(g.dtype), grads), state

        return fmnist.GradientTransformation(lambda params: nothing, update)

    model = linear_model(lambda w, b: [w, b])
    result = run(model, {"rate": [0.01, 0.02]}, torch.float64, optimizer=sign)[-1]
    half = run(model, {"rate": [0.02], "scale": [0.5]}, torch.float64, optimizer=sign)[-1]
    torch.testing.assert_close(result.train.loss[0], half.train.loss[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("lanes", "said"),
    [
        ({"learning_rate": [0.1], "momentum": 0.9}, "no number 'momentum'; it takes learning_rate"),
        ({}, "the optimizer needs learning_rate"),
        ({"learning_rate": [0.1, 0.2], "eps": [1e-8]}, "learning_rate has 2, eps has 1"),
        ({"learning_rate": []}, "learning_rate has 0"),
        ({"learning_rate": 0.1, "seed": [0.5]}, "a seed is a whole number from 0"),
        ({"learning_rate": 0.1, "seed": -1}, "a seed is a whole number from 0"),
    ],
)
def test_lanes_that_do_not_fit_the_optimizer_are_refused(lanes, said):
    with pytest.raises(ValueError, match=said):
        fmnist.fit(fmnist.cnn(), fmnist.adam, TRAINING, VALIDATION, lanes=lanes)


def test_fit_refuses_a_bad_batch_size_and_a_state_of_other_lanes():
    def started(**more):
        arguments = {"lanes": {"learning_rate": [0.1]}, "epochs": 2} | more
        return next(iter(fmnist.fit(fmnist.cnn(), fmnist.adam, TRAINING, VALIDATION, **arguments)))

    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        started(batch_size=0)
    state = fmnist.TrainerState(1, started(epochs=1).train_state)
    with pytest.raises(ValueError, match="the state is of 1 lanes, not of 2"):
        started(resume=state, lanes={"learning_rate": [0.1, 0.2]})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"precision": "tf23"}, "precision must be one of float32, tf32, bfloat16, not 'tf23'"),
        ({"convolution": "winograd"}, "convolution must be one of auto, blocks, grouped"),
        ({"channels": []}, "at least one convolution block"),
        ({"dropout": 1.0}, "dropout must be from 0 to below 1"),
        ({"kernel_size": 20}, "leaves nothing of a 28x28 image"),
    ],
)
def test_cnn_refuses_bad_settings(settings, said):
    with pytest.raises(ValueError, match=said):
        fmnist.cnn(**settings)


def test_fastest_variant_of_a_custom_model_is_used():
    """By a real measurement, and for a model that is not hashable."""
    plain = linear_model(lambda w, b: [w, b])
    used = []

    def slow(*args, **kwargs):
        used.append("slow")
        for _ in range(200):
            plain.apply(*args, **kwargs)
        return plain.apply(*args, **kwargs)

    ways = {"slow": plain._replace(apply=slow), "plain": plain}
    model = plain._replace(variants=lambda device: ways, noise_widths=[])
    result = run(model, LANES, torch.float32)[-1]
    assert used
    assert torch.equal(result.train.loss, run(plain, LANES, torch.float32)[-1].train.loss)


def test_numbers_may_be_tensors_and_arrays():
    for value in (torch.tensor(0.1), np.float32(0.1), np.array(0.1)):
        lanes = make_lanes(fmnist.adam, {"learning_rate": value, "seed": torch.arange(2)})
        assert lanes.seeds == (0, 1)
        assert lanes.numbers["learning_rate"] == (float(value),) * 2


def test_updates_keep_dtypes_and_have_a_gradient():
    params = {"a": torch.ones(2), "b": torch.ones(3, dtype=torch.float64)}
    for optimizer in (fmnist.adam(0.1), fmnist.sgd(0.1)):
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        assert (updates["a"].dtype, updates["b"].dtype) == (torch.float32, torch.float64)

    def moved(rate):
        optimizer = fmnist.adam(rate)
        return optimizer.update([params["a"]], optimizer.init([params["a"]]), [params["a"]])[0][0]

    slope = torch.func.grad(lambda rate: moved(rate).sum())(torch.tensor(0.1))
    torch.testing.assert_close(slope, torch.tensor(-2.0))


def test_scalars_are_shared_and_defaults_come_from_the_optimizer():
    lanes = make_lanes(fmnist.adamw, {"learning_rate": 0.1, "seed": range(3)})
    assert lanes.seeds == (0, 1, 2)
    assert lanes.numbers["learning_rate"] == (0.1,) * 3
    assert lanes.numbers["weight_decay"] == (0.01,) * 3
    held = make_lanes(partial(fmnist.sgd, nesterov=True, momentum=0.9), {"learning_rate": [1, 2]})
    assert held.numbers == {
        "learning_rate": (1.0, 2.0), "momentum": (0.9, 0.9), "weight_decay": (0.0, 0.0)
    }  # fmt: skip


def test_page_prints_the_shown_output(capsys):
    names = {}
    for code in blocks("python"):
        exec(compile(code, str(PAGE), "exec"), names)
    ours, shown = (
        [list(map(float, line.split())) for line in text.strip().splitlines()]
        for text in (capsys.readouterr().out, blocks("text")[0])
    )
    assert [row[0] for row in ours] == [row[0] for row in shown]
    assert all(
        math.isclose(a, b, abs_tol=0.05)
        for mine, theirs in zip(ours, shown, strict=True)
        for a, b in zip(mine, theirs, strict=True)
    )
