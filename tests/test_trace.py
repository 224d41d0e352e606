"""A traced step is the step: same numbers, traced once a shape, inputs untouched."""

from __future__ import annotations

from functools import partial

import optree
import torch
from strategies import NUMBERS, SMALL, random_split

from fmnist import loop
from fmnist.functional import batching, lanes
from fmnist.functional.trace import traced


def test_the_traced_step_is_the_step_bit_for_bit():
    group = loop.Group(SMALL, "adam", False, 8, tuple(loop.Lane(s, NUMBERS) for s in (0, 0, 1)))
    state = loop.start(group, torch.device("cpu"))
    numbers = loop.hyperparams(group, torch.device("cpu"))
    batch = batching.gather(random_split(8), torch.arange(8))
    step = partial(lanes.train_step, shared=True, optimizer=group.optimizer)
    fast = traced(step)
    args = (state, batch, numbers)
    kept = optree.tree_map(torch.clone, args)
    for _ in range(2):
        for ours, theirs in zip(
            optree.tree_leaves(fast(*args)), optree.tree_leaves(step(*args)), strict=True
        ):
            assert torch.equal(ours, theirs)
    assert all(map(torch.equal, optree.tree_leaves(args), optree.tree_leaves(kept)))


def test_one_program_a_shape():
    calls = []

    def double(tree):
        calls.append(tree["x"].shape)
        return {"y": tree["x"] * 2}

    fast = traced(double)
    for size in (2, 2, 3, 2, 3):
        assert torch.equal(fast({"x": torch.ones(size)})["y"], torch.full((size,), 2.0))
    assert calls == [(2,), (3,)]
