"""The network and optimizers equal the reference model and torch.optim, in float64."""

from __future__ import annotations

from functools import partial

import optree
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    NUMBERS,
    SMALL,
    assert_close,
    hyperparams,
    make_group,
    optimizer_of,
    optimizers,
    random_split,
    run_group,
    seeds,
)

from fmnist.functional import batching, cnn, losses, optim, train
from fmnist.functional.types import ModelConfig
from fmnist.reference import Network, fit_reference, from_module, make_optimizer, to_module


@st.composite
def configs(draw):
    """Networks of one to four blocks that leave something of the image."""
    kernel = draw(st.integers(1, 7))
    padding = draw(st.just("same") | st.integers(0, kernel - 1))
    side, most = 28, 0
    while most < 4 and side >= 2:
        side = (side if padding == "same" else side + 2 * padding - kernel + 1) // 2
        most += side >= 1
    return ModelConfig(
        channels=tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=most))),
        hidden=tuple(draw(st.lists(st.integers(1, 9), max_size=3))),
        kernel_size=kernel,
        padding=padding,
        linear_norm=draw(st.booleans()),
        flip_average=draw(st.booleans()),
    )


CONFIGS = configs()

MODEL = cnn.build(SMALL)


def reference_model(seed: int, config: ModelConfig) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(config)


@given(seeds, CONFIGS)
@settings(max_examples=25, deadline=None)
def test_init_equals_the_reference_model_bit_for_bit(seed, config):
    params, state = cnn.init(seed, config)
    expected_params, expected_state = from_module(reference_model(seed, config))
    assert_close(params, expected_params, rtol=0)
    assert_close(state, expected_state, rtol=0)


@settings(deadline=None, max_examples=20)
@given(CONFIGS)
def test_shapes_are_those_of_init_without_memory(config):
    found, expected = cnn.shapes(config), cnn.init(0, config)
    assert optree.tree_structure(found) == optree.tree_structure(expected)
    leaves = zip(optree.tree_leaves(found), optree.tree_leaves(expected), strict=True)
    for shape, leaf in leaves:
        assert (shape.device.type, shape.shape, shape.dtype) == ("meta", leaf.shape, leaf.dtype)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@given(seeds, CONFIGS, st.integers(2, 5), st.booleans())  # torch refuses to normalise one row
@settings(max_examples=25, deadline=None)
def test_logits_gradients_and_statistics_equal_the_reference_model(
    seed, config, examples, training
):
    batch = batching.gather(random_split(examples, seed), torch.arange(examples), torch.float64)
    params, state = cnn.init(seed, config, dtype=torch.float64)
    network, model = to_module(params, state, config).train(training), cnn.build(config)

    def loss(params):
        logits, new_state = model.apply(params, state, batch.images, train=training)
        return losses.cross_entropy(logits, batch.labels).mean(), (logits, new_state)

    grads, (logits, new_state) = torch.func.grad(loss, has_aux=True)(params)
    expected = network(batch.images)
    F.cross_entropy(expected, batch.labels).backward()
    assert_close(logits, expected.detach())
    for name, parameter in network.named_parameters():
        layer, leaf = name.split(".")
        torch.testing.assert_close(grads[layer][leaf], parameter.grad, rtol=1e-8, atol=1e-11)
    assert_close(new_state, from_module(network)[1])


@given(optimizers(), seeds, st.booleans())
@settings(max_examples=40, deadline=None)
def test_fifty_steps_of_each_optimizer_equal_torch_optim(drawn, seed, decay_biases):
    """On given gradients: a loss would amplify rounding where Adam divides by small numbers."""
    algorithm, numbers, nesterov = drawn
    generator = torch.Generator().manual_seed(seed)
    layer = torch.nn.Linear(5, 3).double()
    params = {"layer": {k: v.detach().clone() for k, v in layer.named_parameters()}}
    torch_optimizer = make_optimizer(layer, algorithm, numbers, nesterov=nesterov)
    make = optimizer_of(algorithm, nesterov=nesterov)
    if not decay_biases:
        make = partial(make, decay_biases=False)
        (group,) = torch_optimizer.param_groups
        group["params"] = [layer.weight]
        torch_optimizer.add_param_group({"params": [layer.bias], "weight_decay": 0.0})
    ours = make(**hyperparams(algorithm, **numbers))
    opt_state = ours.init(params)
    for _ in range(50):
        grads = {
            name: torch.randn(p.shape, generator=generator, dtype=torch.float64)
            for name, p in layer.named_parameters()
        }
        for name, parameter in layer.named_parameters():
            parameter.grad = grads[name]
        torch_optimizer.step()
        updates, opt_state = ours.update({"layer": grads}, opt_state, params)
        params = optim.apply_updates(params, updates)
    assert_close(params["layer"], {k: v.detach() for k, v in layer.named_parameters()})


@pytest.mark.parametrize(
    ("algorithm", "numbers", "nesterov"),
    [
        ("adam", {"weight_decay": 0.01}, False),
        ("adamw", {"weight_decay": 0.1}, False),
        ("sgd", {}, False),
        ("sgd", {"momentum": 0.9, "weight_decay": 0.01}, False),
        ("sgd", {"momentum": 0.9}, True),
    ],
)
def test_fifty_training_steps_equal_the_reference_model(algorithm, numbers, nesterov):
    check_fifty_steps(SMALL, algorithm, numbers, nesterov)


@pytest.mark.parametrize("padding", [1, 2, "same"])
def test_fifty_training_steps_with_padding_equal_the_reference_model(padding):
    config = ModelConfig(channels=(2, 3, 4), hidden=(5,), kernel_size=3, padding=padding)
    check_fifty_steps(config, "adam", {}, nesterov=False)


def check_fifty_steps(config, algorithm, numbers, nesterov):
    """10 epochs of 5 steps, the last step smaller: parameters, statistics and metrics."""
    split, held_out = random_split(43), random_split(20, seed=1)
    numbers = NUMBERS | {"learning_rate": 0.003} | numbers
    group = make_group(config, algorithm, nesterov, 10, ((3, numbers),))
    ours = run_group(group, split, held_out, epochs=10, dtype=torch.float64)
    theirs = fit_reference(
        config, algorithm, numbers, split, held_out,
        batch_size=10, seed=3, epochs=10, nesterov=nesterov, dtype=torch.float64,
    )  # fmt: skip
    for mine, plain in zip(ours, theirs, strict=True):
        params, state = from_module(plain.network)
        solo = optree.tree_map(lambda leaf: leaf[0], mine.train_state)
        assert_close(solo.params, params)
        assert_close(solo.state, state)
        for a, b in ((mine.train, plain.train), (mine.validation, plain.validation)):
            torch.testing.assert_close(a.loss_sum[0], b.loss_sum, rtol=1e-9, atol=0)
            assert a.correct[0] == b.correct
            assert a.examples[0] == b.examples


def test_conversion_to_the_reference_model_and_back_is_exact():
    params, state = cnn.init(7, SMALL)
    back = from_module(to_module(params, state, SMALL))
    assert_close(back, (params, state), rtol=0)


def test_evaluation_does_not_depend_on_batch_sizes():
    params, state = cnn.init(0, SMALL, dtype=torch.float64)
    split = random_split(30)
    whole = train.eval_step(
        params, state, batching.gather(split, torch.arange(30), torch.float64), model=MODEL
    )
    for sizes in ([1] * 30, [7, 23], [29, 1]):
        parts = [
            train.eval_step(
                params, state, batching.gather(split, indices, torch.float64), model=MODEL
            )
            for indices in torch.arange(30).split(sizes)
        ]
        torch.testing.assert_close(
            sum(p.loss_sum for p in parts), whole.loss_sum, rtol=1e-12, atol=0
        )
        assert sum(p.correct for p in parts) == whole.correct


def test_running_variance_after_one_value_is_finite():
    """One example of one pixel, which torch.nn refuses."""
    from fmnist.functional import layers

    state = {"running_mean": torch.zeros(2), "running_var": torch.ones(2)}
    new = layers.update_running_stats(state, torch.ones(2), torch.zeros(2), count=1)
    assert torch.isfinite(new["running_var"]).all()
