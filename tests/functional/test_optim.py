"""The fused update equals the optimizer in plain torch, for any number of lanes."""

from __future__ import annotations

from functools import partial
from unittest.mock import patch

import optree
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import hyperparams, normal, optimizers, seeds

from fmnist.functional import optim, vmap
from fmnist.functional.kernels import adam_update
from fmnist.functional.kernels.cpu import adam as adam_loops
from fmnist.functional.trace import traced

adams = optimizers().filter(lambda drawn: drawn[0] != "sgd")
leaf_shapes = st.lists(
    st.lists(st.integers(0, 40), max_size=2).map(tuple)
    | st.just((2 * adam_loops.PIECE + 3,)),  # of several threads, and no whole vectors
    min_size=1,
    max_size=4,
)


def trees(shapes, seed, scale=1.0):
    return {
        "layer": {
            f"leaf{i}": normal(*shape, seed=(seed + i) % 2**32, scale=scale)
            for i, shape in enumerate(shapes)
        }
    }


def both(algorithm, numbers):
    """The fused update on a CPU in float32, and the update by the definition."""
    fused = getattr(optim, algorithm)(**numbers)

    def plain(grads, state, params):
        with patch.object(adam_update, "serves", lambda leaf: False):
            return fused.update(grads, state, params)

    return fused, plain


def same(ours, theirs):
    """Whether two trees hold the same bits."""
    pairs = zip(optree.tree_leaves(ours), optree.tree_leaves(theirs), strict=True)
    return all(torch.equal(a.nan_to_num(9e9), b.nan_to_num(9e9)) for a, b in pairs)


@given(adams, leaf_shapes, seeds, st.sampled_from([1e-20, 1.0, 1e10, 1e30]))
@settings(max_examples=60, deadline=None)
def test_fused_update_equals_the_definition(drawn, shapes, seed, scale):
    """Bit for bit, except for the square root, which torch does not round correctly."""
    algorithm, numbers, _ = drawn
    params = trees(shapes, seed)
    fused, plain = both(algorithm, hyperparams(algorithm, **numbers))
    ours = theirs = fused.init(params)
    for step in range(3):
        grads = trees(shapes, seed + step + 1, scale)  # 1e30 overflows: infinity and NaN
        kept = optree.tree_map(torch.clone, (grads, ours, params))
        updates, after = fused.update(grads, ours, params)
        assert same((grads, ours, params), kept)
        expected, theirs = plain(grads, theirs, params)
        assert same(after, theirs)
        # AdamW's two parts may cancel, and leave the rounding of parts of this size.
        atol = 1e-6 * numbers["learning_rate"]
        close = partial(torch.testing.assert_close, rtol=1e-6, atol=atol, equal_nan=True)
        optree.tree_map(close, updates, expected)
        params, ours = optim.apply_updates(params, updates), after


def test_the_callers_default_device_does_not_matter():
    def update(numbers, *trees):
        return optim.adam(**numbers).update(*trees)

    numbers, shapes = hyperparams("adam"), [(3, 2), (), (0,)]
    params, grads = trees(shapes, 1), trees(shapes, 2)
    state = optim.adam(**numbers).init(params)
    expected = update(numbers, grads, state, params)
    with torch.device("meta"):
        found = traced(update)(numbers, grads, state, params)
    assert same(found, expected)


def lane(i):
    numbers = {"learning_rate": 0.1**i, "beta1": 0.9 - 0.1 * i, "weight_decay": 0.1 * i}
    return hyperparams("adam", **numbers)


@pytest.mark.parametrize("algorithm", ["adam", "adamw"])
def test_lane_of_an_update_equals_the_update_alone_bit_for_bit(algorithm):
    """With different numbers in each lane, nested vmap, and one gradient for all lanes."""
    make = getattr(optim, algorithm)
    shapes = [(3, 7), (50,), ()]
    alone = []
    for i in range(4):
        params, grads = trees(shapes, i), trees(shapes, 9)
        fused = make(**lane(i))
        state = fused.init(params)
        alone.append((params, state, lane(i), fused.update(grads, state, params)))
    *inputs, expected = vmap.stack(alone)

    def update(params, state, numbers):
        return make(**numbers).update(grads, state, params)

    assert same(torch.func.vmap(update)(*inputs), expected)
    twice = torch.func.vmap(torch.func.vmap(update))
    square = optree.tree_map(lambda leaf: leaf.unflatten(0, (2, 2)), (tuple(inputs), expected))
    assert same(twice(*square[0]), square[1])


def test_update_in_float64_uses_the_definition():
    params = {"layer": {"leaf": normal(5).double()}}
    fused, plain = both("adam", lane(1))
    assert not adam_update.serves(params["layer"]["leaf"])
    args = (params, fused.init(params), params)
    assert same(fused.update(*args), plain(*args))


def operands(lanes=2):
    leaves = [normal(lanes, 3, 7, seed=1), normal(lanes, 50, seed=2)]
    moments = [normal(lanes, 71, seed=3).abs() for _ in range(2)]
    numbers = [torch.full((lanes,), x, dtype=torch.float64) for x in (0.1, 0.9, 0.999, 1e-8, 0.1)]
    return leaves, leaves, *moments, torch.ones(lanes, dtype=torch.int64), numbers, False


def test_operator_passes_opcheck():
    torch.library.opcheck(adam_update._update, operands())


def test_operator_refuses_mismatched_shapes_and_dtypes():
    """Compiled code does not check bounds."""
    grads, params, mean, *rest = operands()
    with pytest.raises(ValueError, match="do not go with"):
        adam_update._update(grads, params, mean[:, 1:], *rest)
    with pytest.raises(ValueError, match="do not go with"):
        adam_update._update(grads[:1], params, mean, *rest)
    with pytest.raises(TypeError, match="float32"):
        adam_update._update([g.double() for g in grads], params, mean, *rest)
