"""Lane i of a vmapped run equals a run of configuration i alone, whatever the other lanes are."""

from __future__ import annotations

import optree
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    NUMBERS,
    SMALL,
    assert_close,
    learning_rates,
    make_group,
    optimizer_of,
    random_split,
    run_group,
    seeds,
)

from fmnist.engine import trainer
from fmnist.engine.lanes import Lanes, stacked_numbers
from fmnist.engine.step import EpochNoise, Program, example_order
from fmnist.functional import batching, cnn, vmap
from fmnist.functional.types import ModelConfig

TREES = st.integers(1, 3).flatmap(
    lambda size: st.lists(
        seeds.map(
            lambda seed: {
                "a": torch.rand(size, 2, generator=torch.Generator().manual_seed(seed)),
                "b": (torch.tensor(seed),),
            }
        ),
        min_size=1,
        max_size=5,
    )
)


def equal(a, b):
    return optree.tree_structure(a) == optree.tree_structure(b) and all(
        torch.equal(x, y) for x, y in zip(optree.tree_leaves(a), optree.tree_leaves(b), strict=True)
    )


@given(TREES)
def test_unstack_is_the_inverse_of_stack(trees):
    stacked = vmap.stack(trees)
    assert vmap.size(stacked) == len(trees)
    assert all(equal(a, b) for a, b in zip(vmap.unstack(stacked), trees, strict=True))
    assert equal(vmap.stack(vmap.unstack(stacked)), stacked)


@given(TREES, st.data())
def test_take_selects_lanes_in_order(trees, data):
    chosen = data.draw(st.lists(st.integers(0, len(trees) - 1), min_size=1))
    taken = vmap.take(vmap.stack(trees), torch.tensor(chosen))
    assert equal(taken, vmap.stack([trees[i] for i in chosen]))


def test_stack_refuses_no_trees_and_unequal_trees():
    with pytest.raises(ValueError, match="nothing to stack"):
        vmap.stack([])
    with pytest.raises(ValueError, match="stack"):
        vmap.stack([{"a": torch.zeros(2)}, {"a": torch.zeros(3)}])
    with pytest.raises(ValueError, match="key"):
        vmap.stack([{"a": torch.zeros(2)}, {"b": torch.zeros(2)}])


LANES = st.lists(st.tuples(st.sampled_from([0, 1]), learning_rates), min_size=1, max_size=4)


@given(LANES, st.integers(5, 16), st.sampled_from(["adam", "sgd"]), st.sampled_from([0.0, 0.4]))
@settings(max_examples=6, deadline=None)
def test_lane_equals_a_run_of_one_lane(drawn, batch_size, algorithm, dropout):
    config = ModelConfig(SMALL.channels, SMALL.hidden, dropout=dropout)
    split, held_out = random_split(33), random_split(11, seed=1)
    numbers = {"momentum": 0.9} if algorithm == "sgd" else {}
    own = tuple((seed, NUMBERS | numbers | {"learning_rate": lr}) for seed, lr in drawn)

    def run(some):
        group = make_group(config, algorithm, False, batch_size, some)
        return list(run_group(group, split, held_out, epochs=2, dtype=torch.float64))

    together = run(own)
    for i, lane in enumerate(own):
        for ours, solo in zip(together, run((lane,)), strict=True):
            mine = vmap.take(ours[1:], torch.tensor(i))
            assert_close(mine, vmap.take(solo[1:], torch.tensor(0)), rtol=1e-8)


MATES = [(0,), (0, 0), (1, 0), (0, 0, 0), (3, 2, 1, 0), (1, 1, 1, 1, 1, 0)]


@pytest.mark.parametrize(
    ("model", "algorithm", "batch_size"),
    [
        (ModelConfig(), "adam", 37),
        (ModelConfig(dropout=0.3), "adam", 100),
        (ModelConfig(hidden=(7,)), "sgd", 25),  # matrices that begin anywhere
        (ModelConfig(hidden=(7, 13), dropout=0.3), "adamw", 4),
        (ModelConfig((12, 64), padding="same", precision="bfloat16"), "adam", 37),
    ],
)
def test_other_lanes_change_no_bit_of_a_lane(model, algorithm, batch_size):
    """On a CPU, for any number of lanes, with shared and separate images."""
    split, held_out = random_split(230), random_split(60, seed=1)

    def last_of(mates):
        """The result of the last lane, whose configuration is always the same."""
        own = [
            (seed, NUMBERS | {"learning_rate": 0.001 * (len(mates) - i)})
            for i, seed in enumerate(mates)
        ]
        group = make_group(model, algorithm, False, batch_size, tuple(own))
        end = list(run_group(group, split, held_out, epochs=2))[-1]
        return vmap.take(end[1:], torch.tensor(len(mates) - 1))

    alone = last_of(MATES[0])
    assert all(equal(last_of(mates), alone) for mates in MATES[1:])


def test_diverging_lane_changes_no_bit_of_other_lanes():
    split, held_out = random_split(40), random_split(10, seed=1)
    sane = (0, NUMBERS | {"learning_rate": 0.01})
    mad = (0, NUMBERS | {"learning_rate": 1e30})
    group = make_group(SMALL, "sgd", False, 10, (sane, mad, sane))
    last = list(run_group(group, split, held_out, epochs=3))[-1]
    assert not torch.isfinite(last.train.loss_sum[1])
    calm = make_group(SMALL, "sgd", False, 10, (sane, sane, sane))
    expected = list(run_group(calm, split, held_out, epochs=3))[-1]
    for i in (0, 2):
        assert equal(
            vmap.take(last.train_state, torch.tensor(i)),
            vmap.take(expected.train_state, torch.tensor(i)),
        )


def test_resumed_training_equals_uninterrupted_training():
    split, held_out = random_split(40), random_split(10, seed=1)
    group = make_group(SMALL, "adam", False, 10, ((0, NUMBERS), (1, NUMBERS)))
    whole = list(run_group(group, split, held_out, epochs=4))
    half = list(run_group(group, split, held_out, epochs=2))[-1]
    state = trainer.TrainerState(half.epoch, half.train_state)
    rest = list(run_group(group, split, held_out, epochs=4, resume=state))
    assert [r.epoch for r in rest] == [3, 4]
    assert equal(rest[-1].train_state, whole[-1].train_state)


def test_training_does_not_write_into_its_inputs():
    split, held_out = random_split(20), random_split(10, seed=1)
    group = make_group(
        ModelConfig(SMALL.channels, SMALL.hidden, dropout=0.5),
        "adam",
        False,
        10,
        ((0, NUMBERS), (1, NUMBERS)),
    )
    state = trainer.start(*group, torch.device("cpu"))
    inputs = (state, stacked_numbers(group.lanes, torch.device("cpu")), split, held_out)
    before = optree.tree_map(torch.clone, inputs)
    list(run_group(group, split, held_out, epochs=2, resume=trainer.TrainerState(0, state)))
    assert equal(inputs, before)


@given(seeds, st.integers(0, 1000), st.integers(1, 300), st.integers(1, 50))
@settings(deadline=None)
def test_batches_cover_each_index_once(seed, epoch, examples, batch_size):
    order = batching.permutation(seed, epoch, examples)
    assert sorted(order.tolist()) == list(range(examples))
    assert len(order.split(batch_size)) == batching.steps(examples, batch_size)


@given(seeds, st.integers(0, 1000), st.integers(0, 2**31))
@settings(deadline=None)
def test_order_of_examples_depends_on_seed_and_epoch_only(seed, epoch, noise):
    first = batching.permutation(seed, epoch, 100)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(noise)
        before = torch.random.get_rng_state()
        assert torch.equal(batching.permutation(seed, epoch, 100), first)
        cnn.init(seed, SMALL)
        batching.uniform_noise(seed, epoch, 4, (120, 60))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(batching.permutation(seed, epoch + 1, 100), first)
    assert not torch.equal(batching.permutation(seed ^ (1 << 31), epoch, 100), first)


@given(
    st.booleans(),
    st.integers(1, 40),
    st.lists(st.integers(1, 9), max_size=3),
    st.data(),
)
@settings(deadline=None)
def test_noise_in_stretches_is_that_of_the_whole_epoch(shared, examples, widths, data):
    own = Lanes((3, 3) if shared else (3, 4), {})
    position = data.draw(st.integers(0, examples))
    model = cnn.build(SMALL)._replace(noise_widths=tuple(widths))
    program = Program(model, optimizer_of("adam"), 1)
    order = example_order(own, 2, examples, torch.device("cpu"))
    noise = EpochNoise(program, own, 2, order, position)
    stretches = []
    while position < examples:
        count = data.draw(st.integers(1, examples - position))
        room = count + data.draw(st.integers(0, 2))
        drawn = noise.draw(count, room, torch.device("cpu"), torch.float32)
        assert all(layer.shape[-2] == room for layer in drawn)
        stretches.append([layer[..., :count, :] for layer in drawn])
        position += count
    skipped = examples - sum(layers[0].shape[-2] for layers in stretches) if widths else 0
    for i, layers in enumerate(zip(*stretches, strict=True)):
        whole = [batching.uniform_noise(seed, 2, examples, widths)[i] for seed in (3, 4)]
        expected = whole[0] if shared else torch.stack(whole)
        assert torch.equal(torch.cat(layers, -2), expected[..., skipped:, :])


def test_dropout_without_noise_is_refused():
    params, state = cnn.init(0, ModelConfig())
    with pytest.raises(ValueError, match="noise for 2 hidden layers"):
        cnn.apply(params, state, torch.zeros(1, 1, 28, 28), train=True, dropout=0.5)


def test_dropout_preserves_the_mean():
    from fmnist.functional import layers

    noise = torch.rand(1000, 100, generator=torch.Generator().manual_seed(0))
    dropped = layers.dropout(torch.ones(1000, 100), noise, 0.3)
    assert set(dropped.unique().tolist()) == {0.0, (torch.tensor(1.0) / 0.7).item()}
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)


def test_bfloat16_loss_is_close_to_float32():
    split, held_out = random_split(40), random_split(10, seed=1)
    lane = ((0, NUMBERS | {"learning_rate": 0.001}),)

    def loss(precision):
        config = ModelConfig(SMALL.channels, SMALL.hidden, precision=precision)
        group = make_group(config, "adam", False, 10, lane)
        return next(iter(run_group(group, split, held_out, epochs=1))).train.loss_sum.item()

    exact = loss("float32")
    assert loss("bfloat16") != exact
    assert loss("bfloat16") == pytest.approx(exact, rel=0.02)
    if not torch.cuda.is_available():
        assert loss("tf32") == exact
