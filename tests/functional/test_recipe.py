"""The features of a training step equal torch, see no other lanes, and survive interruptions."""

from __future__ import annotations

import copy
import itertools
from functools import partial

import optree
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import NUMBERS, SMALL, assert_close, normal, random_split, seeds

import fmnist
from fmnist.engine import trainer
from fmnist.functional import cnn, losses, recipe, vmap
from fmnist.reference import fit_reference, from_module

TRAIN, HELD_OUT = random_split(47), random_split(20, seed=1)
MODEL = cnn.build(SMALL)
EVERYTHING = {
    "shift": 2.0,
    "erasing": 0.5,
    "label_smoothing": 0.1,
    "clip_norm": 0.7,
    "ema_decay": 0.9,
    "warmup": 0.3,
    "floor": 0.05,
}


def fit(lanes, *, epochs=2, dtype=torch.float32, **options):
    options = {"flip": "random", "schedule": "cosine"} | options
    return list(
        fmnist.fit(
            MODEL, fmnist.adamw, TRAIN, HELD_OUT, lanes=lanes, batch_size=10, epochs=epochs,
            dtype=dtype, **options,
        )
    )  # fmt: skip


@given(seeds, st.floats(0, 0.9))
@settings(deadline=None)
def test_smoothed_loss_equals_torch(seed, amount):
    logits, labels = normal(9, 10, seed=seed), torch.arange(9)
    each = losses.cross_entropy(logits, labels)
    ours = losses.smooth(each, logits, torch.tensor(amount, dtype=torch.float64))
    theirs = F.cross_entropy(logits, labels, reduction="none", label_smoothing=amount)
    torch.testing.assert_close(ours, theirs)


@given(seeds, st.floats(0.01, 100))
@settings(deadline=None)
def test_clipped_gradients_equal_torch(seed, most):
    grads = {"a": normal(3, 4, seed=seed), "b": (normal(5, seed=seed ^ 1),)}
    ours = recipe.clip(grads, torch.tensor(most, dtype=torch.float64))
    theirs = [torch.zeros_like(leaf) for leaf in optree.tree_leaves(grads)]
    for leaf, grad in zip(theirs, optree.tree_leaves(grads), strict=True):
        leaf.grad = grad.clone()
    torch.nn.utils.clip_grad_norm_(theirs, most)
    for mine, its in zip(optree.tree_leaves(ours), theirs, strict=True):
        torch.testing.assert_close(mine, its.grad)
    kept = recipe.clip(grads, torch.tensor(0.0, dtype=torch.float64))
    assert all(map(torch.equal, optree.tree_leaves(kept), optree.tree_leaves(grads)))


@pytest.mark.parametrize("flip", recipe.FLIPS)
@pytest.mark.parametrize("schedule", ["linear", "cosine", "one-cycle"])
@pytest.mark.parametrize("decay_biases", [True, False])
def test_training_with_everything_equals_the_reference(flip, schedule, decay_biases):
    """Parameters, averages and losses of torch's features, in float64."""
    optimizer = partial(fmnist.adamw, decay_biases=decay_biases)
    numbers = {"learning_rate": 0.01, "weight_decay": 0.1, **EVERYTHING}
    ours = fmnist.fit(
        MODEL, optimizer, TRAIN, HELD_OUT, lanes=numbers, batch_size=10, epochs=2,
        dtype=torch.float64, flip=flip, schedule=schedule,
    )  # fmt: skip
    theirs = fit_reference(
        SMALL, "adamw", NUMBERS | numbers, TRAIN, HELD_OUT, batch_size=10, seed=0, epochs=2,
        decay_biases=decay_biases, dtype=torch.float64,
        recipe=recipe.Recipe(flip, schedule, tuple(EVERYTHING)),
    )  # fmt: skip
    for mine, its in zip(ours, theirs, strict=True):
        evaluated = vmap.unstack(mine.train_state)[0].evaluated
        assert_close(evaluated, from_module(its.network), rtol=1e-7)
        for split in ("train", "validation"):
            assert_close([t[0] for t in getattr(mine, split)], [*getattr(its, split)], rtol=1e-7)


@pytest.mark.parametrize("flip", recipe.FLIPS)
@pytest.mark.parametrize("seed", [0, [0, 0, 0], [4, 5, 6]])
def test_lanes_with_numbers_of_their_own_are_their_solo_runs(flip, seed):
    """Bit for bit; also a lane for which a number is 0, where others have it on."""
    table = {"learning_rate": [0.01, 0.001, 0.003], "seed": seed} | {
        name: [value, 0.0, value / 2] for name, value in EVERYTHING.items()
    }
    table["shift"] = [2.0, 0.0, 1.0]
    together = fit(table, flip=flip)
    for lane in range(3):
        own = {k: v[lane] if isinstance(v, list) else v for k, v in table.items()}
        for ours, alone in zip(together, fit(own, flip=flip), strict=True):
            for of in (
                lambda r: (r.train, r.validation, r.train_state[:3]),
                lambda r: r.train_state.evaluated,
            ):
                taken = vmap.take(of(ours), torch.tensor([lane]))
                for mine, its in zip(*map(optree.tree_leaves, (taken, of(alone))), strict=True):
                    assert torch.equal(mine, its)


@pytest.mark.parametrize(
    ("model", "threads"),
    [
        (
            fmnist.cnn(linear_norm=True, dropout=0.2, feature_dropout=0.3, flip_average=True),
            (1, 2),
        ),
        # oneDNN's sums may depend on the number of threads.
        (
            fmnist.cnn(
                channels=(32, 64), hidden=(256, 128), linear_norm=True, precision="bfloat16"
            ),
            (),
        ),
    ],
    ids=["float32", "bfloat16"],
)
def test_other_lanes_and_threads_change_no_bit_of_larger_networks(model, threads):
    """Torch sums what is longer than 32,768 numbers in an order that depends on both."""
    split, held_out = random_split(150), random_split(30, seed=1)

    def last(lanes):
        (end,) = fmnist.fit(
            model, fmnist.adamw, split, held_out, batch_size=50, flip="random",
            schedule="one-cycle", lanes={"learning_rate": [0.003] * lanes} | EVERYTHING,
        )  # fmt: skip
        return optree.tree_leaves(vmap.take(end[1:], torch.tensor(0)))

    alone, before = last(1), torch.get_num_threads()
    assert all(map(torch.equal, last(2), alone))
    assert all(map(torch.equal, last(5), alone))
    try:
        for count in threads:
            torch.set_num_threads(count)
            assert all(map(torch.equal, last(1), alone))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("lanes", "said"),
    [
        ({"shift": -1}, "shift is out of range"),
        ({"shift": 1.5}, "shift must be a whole number"),
        ({"ema_decay": [0.9, 1.0]}, "ema_decay is out of range"),
        ({"erasing": 1.1}, "erasing is out of range"),
        ({"clip_norm": float("nan")}, "clip_norm is out of range"),
    ],
)
def test_numbers_out_of_range_are_refused(lanes, said):
    with pytest.raises(ValueError, match=said):
        fit({"learning_rate": 0.01} | lanes)


def test_one_cycle_without_a_warmup_is_refused():
    with pytest.raises(ValueError, match="one-cycle needs a warmup"):
        fit({"learning_rate": 0.01, "warmup": [0.3, 0.0]}, schedule="one-cycle")


def test_features_that_are_off_change_no_bit():
    plain = fit({"learning_rate": 0.01}, flip="none", schedule="constant")
    zeros = dict.fromkeys(recipe.NUMBERS, 0.0)
    off = fit({"learning_rate": 0.01, **zeros}, flip="none", schedule="constant")
    for ours, theirs in zip(off, plain, strict=True):
        assert all(map(torch.equal, *map(optree.tree_leaves, (ours[1:], theirs[1:]))))


@pytest.mark.parametrize("flip", recipe.FLIPS)
def test_interrupted_training_ends_with_the_same_bits(flip):
    """Also in the middle of an epoch."""
    lanes = {"learning_rate": [0.01, 0.001], "seed": [1, 2]} | EVERYTHING
    whole = fit(lanes, flip=flip)
    first = fmnist.fit(
        MODEL, fmnist.adamw, TRAIN, HELD_OUT, lanes=lanes, batch_size=10, epochs=2,
        flip=flip, schedule="cosine",
    )  # fmt: skip
    resumed = copy.deepcopy(next(first))
    state = trainer.TrainerState(1, resumed.train_state)
    (after,) = fit(lanes, flip=flip, resume=state)
    assert all(map(torch.equal, *map(optree.tree_leaves, (after[1:], whole[-1][1:]))))
    program = trainer.Program(
        MODEL, fmnist.adamw, 10, torch.float32,
        recipe.Recipe(flip, "cosine", tuple(EVERYTHING)),
    )  # fmt: skip
    own = trainer.make_lanes(fmnist.adamw, lanes)
    events = trainer.train_lanes(program, own, TRAIN, HELD_OUT, epochs=2)
    within = list(itertools.islice(events, 8))[-1]
    assert (within.epoch, within.examples) == (1, 10)
    rest = trainer.train_lanes(program, own, TRAIN, HELD_OUT, epochs=2, resume=within)
    *_, end = rest
    assert all(map(torch.equal, *map(optree.tree_leaves, (end[1:], whole[-1][1:]))))


@settings(deadline=None)
@given(st.sampled_from(["flip", "schedule"]))
def test_unknown_words_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be one of"):
        fit({"learning_rate": 0.01}, **{name: "sometimes"})
