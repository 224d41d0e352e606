"""Operators give the same bits for tensors of any layout in memory, and check their shapes."""

from __future__ import annotations

import optree
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SMALL, layouts, normal, random_split, seeds
from torch.func import grad, vmap

import fmnist
from fmnist.engine import trainer
from fmnist.functional import batching, cnn, losses
from fmnist.functional.kernels import adam_update, conv_block, product
from fmnist.functional.kernels.cpu.simd import WIDTH
from fmnist.functional.types import ModelConfig

EXAMPLES = 2 * WIDTH - 5


def operands(lanes=3, *, shared=False, seed=0):
    """The arguments of each operator, by its name."""
    x = normal(1 if shared else lanes, 2, 6, 6, 5, WIDTH, seed=seed)
    weight = normal(lanes, 4, 6, 3, 3, seed=seed + 1)
    scale, shift = normal(2, lanes, 4, seed=seed + 2)
    x[:, 1, ..., EXAMPLES - WIDTH :] = 0.0
    pooled, *saved = conv_block._forward(x, weight, scale, shift, EXAMPLES, 0, 1)
    upstream = normal(*pooled.shape, seed=seed + 3)
    leaves = [normal(lanes, 3, 7, seed=1), normal(lanes, 50, seed=2)]
    moments = [normal(lanes, 71, seed=n).abs() for n in (3, 4)]
    numbers = [torch.full((lanes,), n, dtype=torch.float64) for n in (0.1, 0.9, 0.999, 1e-8, 0.1)]
    steps = torch.ones(lanes, dtype=torch.int64)
    return {
        "forward": (conv_block._forward, (x, weight, scale, shift, EXAMPLES, 0, 1)),
        "given": (conv_block._given, (x, weight, scale, shift, saved[0], saved[1].abs(), 0, 1)),
        "backward": (
            conv_block._backward,
            (upstream, x, weight, scale, *saved, EXAMPLES, not shared, 0, 1),
        ),
        "adam": (adam_update._update, (leaves, leaves[::-1][::-1], *moments, steps, numbers, True)),
    }


OPERATORS = pytest.mark.parametrize("name", ["forward", "given", "backward", "adam"])


@OPERATORS
@given(layouts(), st.booleans(), seeds)
@settings(max_examples=25, deadline=None)
def test_any_layout_gives_the_same_bits_contiguously(name, layout, shared, seed):
    operator, args = operands(shared=shared, seed=seed)[name]
    expected = optree.tree_leaves(operator(*args))
    views = optree.tree_map(lambda x: layout(x) if isinstance(x, torch.Tensor) else x, args)
    before = optree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, views)
    for ours, its in zip(optree.tree_leaves(operator(*views)), expected, strict=True):
        assert torch.equal(ours, its)
        assert ours.is_contiguous()
    for x, old in zip(optree.tree_leaves(views), optree.tree_leaves(before), strict=True):
        assert torch.equal(torch.as_tensor(x), torch.as_tensor(old))


def expanded(x, axis):
    """A view whose entries along the axis are one place in memory."""
    return x.narrow(axis, 0, 1).expand_as(x)


@OPERATORS
def test_expanded_tensors_give_the_bits_of_their_copies(name):
    operator, args = operands()[name]
    leaves, treespec = optree.tree_flatten(args)
    for i, x in enumerate(leaves):
        for axis in range(x.dim() if isinstance(x, torch.Tensor) else 0):
            view = expanded(x, axis)
            results = [
                optree.tree_leaves(
                    operator(*optree.tree_unflatten(treespec, [*leaves[:i], t, *leaves[i + 1 :]]))
                )
                for t in (view, view.clone(memory_format=torch.contiguous_format))
            ]
            for ours, its in zip(*results, strict=True):
                assert torch.equal(ours, its)
                assert ours.is_contiguous()


@OPERATORS
@given(layouts())
@settings(max_examples=4, deadline=None)
def test_opcheck_of_any_layout(name, layout):
    """Among others, the results without data have the strides of the real ones."""
    operator, args = operands()[name]
    views = optree.tree_map(lambda x: layout(x) if isinstance(x, torch.Tensor) else x, args)
    torch.library.opcheck(operator, views)


@given(layouts(), layouts(), st.integers(1, 3), seeds)
@settings(max_examples=25, deadline=None)
def test_product_of_any_layout(a, b, width, seed):
    x, weight = normal(5, 7, seed=seed), normal(width, 7, seed=seed + 1)
    ours = product.linear(a(x), b(weight))
    torch.testing.assert_close(ours, x @ weight.mT, rtol=1e-5, atol=1e-5)


def stacked(lanes, axis, seed=0):
    """Trees of lanes, stacked on this axis of each leaf."""
    trees = [cnn.init(seed + lane, SMALL)[0] for lane in range(lanes)]
    return optree.tree_map(lambda *leaves: torch.stack(leaves, axis), *trees)


@pytest.mark.parametrize("train", [True, False])
def test_gradients_of_lanes_on_the_last_axis(train):
    """Their values were those of memory that nobody had written to."""
    batch = batching.gather(random_split(EXAMPLES), torch.arange(EXAMPLES))
    state = cnn.init(0, SMALL)[1]

    def loss(params):
        logits, _ = cnn.apply(params, state, batch.images, train=train)
        return losses.cross_entropy(logits, batch.labels).mean()

    first = vmap(grad(loss))(stacked(3, 0))
    for axis in (-1, 1):
        params = optree.tree_map(
            lambda p, axis=axis: p.movedim(0, min(axis, p.dim() - 1)), stacked(3, 0)
        )
        dims = optree.tree_map(lambda p, axis=axis: min(axis % p.dim(), p.dim() - 1), params)
        leaves, treespec = optree.tree_flatten(params)

        def of_leaves(*leaves, treespec=treespec):
            return grad(loss)(optree.tree_unflatten(treespec, leaves))

        found = vmap(of_leaves, tuple(optree.tree_leaves(dims)))(*leaves)
        for a, b in zip(optree.tree_leaves(found), optree.tree_leaves(first), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@given(layouts())
@settings(max_examples=5, deadline=None)
def test_training_resumes_from_a_state_of_any_layout(layout):
    training, validation = random_split(30), random_split(8, seed=1)
    lanes = {"learning_rate": [0.01, 0.003, 0.001]}
    arguments = (fmnist.cnn(channels=(3, 4), hidden=(7,)), fmnist.adam, training, validation)
    whole = list(fmnist.fit(*arguments, lanes=lanes, batch_size=10, epochs=2))
    state = trainer.TrainerState(1, whole[0].train_state)
    views = optree.tree_map(
        lambda x: layout(x) if isinstance(x, torch.Tensor) else x, state, namespace="fmnist"
    )
    (last,) = fmnist.fit(*arguments, lanes=lanes, batch_size=10, epochs=2, resume=views)
    for a, b in zip(
        optree.tree_leaves(last.train_state), optree.tree_leaves(whole[1].train_state), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("batch", [1, WIDTH - 1, WIDTH + 1])
def test_large_weights_do_not_overflow_in_the_padding(batch):
    """The variance is finite in float32, in torch.nn too, but the mean of 1e19 squared is not.

    Padding is as far from the mean as zero.
    """
    config = ModelConfig(channels=(2,), hidden=(3,))
    params, state = cnn.init(0, config)
    params["conv1"]["weight"] = params["conv1"]["weight"].abs() * 1e18
    images = 10 + random_split(batch).images.float() / 25500
    _, found = cnn.apply(params, state, images, train=True)
    y = torch.nn.functional.conv2d(images, params["conv1"]["weight"])
    expected = 0.9 + 0.1 * y.double().var(dim=(0, 2, 3))
    assert found["norm1"]["running_var"].isfinite().all()
    torch.testing.assert_close(found["norm1"]["running_var"].double(), expected, rtol=1e-4, atol=0)


def test_padding_of_results_is_zero_and_reaches_no_gradient():
    """Also where the statistics are so far from the padding's zeros that a product overflows."""
    x = 10 + normal(1, 1, 1, 6, 5, WIDTH, scale=1e-4)
    x[..., 3:] = 0.0
    weight, shift = normal(1, 2, 1, 3, 3).abs() * 1e18, torch.ones(1, 2)
    scale = torch.tensor([[1e22, -1e22]])  # padding is far below zero, and far above
    pooled, *saved = conv_block._forward(x, weight, scale, shift, 3, 0, 0)
    assert pooled.isfinite().all()
    assert not pooled[..., 3:].any()
    assert not saved[3][..., 3:].any()
    upstream = torch.zeros_like(pooled)
    upstream[..., :3] = normal(*upstream.shape[:-1], 3, seed=1)
    gradients = conv_block._backward(upstream, x, weight, scale, *saved, 3, True, 0, 0)
    assert all(g.isfinite().all() for g in gradients)
    assert not gradients[0][..., 3:].any()


def test_a_hidden_layer_of_one_unit_is_the_same_bit_for_bit():
    training, validation = random_split(30), random_split(8, seed=1)
    arguments = (fmnist.cnn(channels=(3,), hidden=(1, 5, 1)), fmnist.adam, training, validation)
    lanes = {"learning_rate": [0.01, 0.003, 0.001], "seed": [0, 1, 2]}
    (together,) = fmnist.fit(*arguments, lanes=lanes, batch_size=10)
    for lane in range(3):
        own = {name: values[lane] for name, values in lanes.items()}
        (alone,) = fmnist.fit(*arguments, lanes=own, batch_size=10)
        leaves = map(optree.tree_leaves, (together.train_state, alone.train_state))
        for a, b in zip(*leaves, strict=True):
            assert torch.equal(a[lane], b[0])


def wrong(name):
    """Arguments of an operator, each with a fault that compiled loops would not see."""
    _, args = operands()[name]

    def but(place, value):
        return (*args[:place], value, *args[place + 1 :])

    for i, x in enumerate(args):
        if isinstance(x, torch.Tensor):
            yield but(i, x[..., :-1])
            yield but(i, x[:-1])
            yield but(i, x[None])
            yield but(i, x.double() if x.is_floating_point() else x.float())
            yield but(i, x[:0])
        elif isinstance(x, list):
            yield but(i, x[1:])
            yield but(i, [t[:, :-1] if t.dim() > 1 else t[:-1] for t in x])
        elif x in (0, 1) and type(x) is int:
            for rows in (-1, 3, 10**9):
                yield but(i, rows)
        elif type(x) is int:
            for examples in (-1, 0, WIDTH, 2 * WIDTH + 1, 10**9):
                yield but(i, examples)


@OPERATORS
def test_wrong_arguments_are_refused(name):
    operator, _ = operands()[name]
    for args in wrong(name):
        with pytest.raises((ValueError, TypeError)):
            operator(*args)


def test_adam_without_leaves_is_refused():
    """It was an error of Numba's types."""
    _, (_, _, mean, square, *rest) = operands()["adam"]
    with pytest.raises(ValueError, match="do not go with these leaves"):
        adam_update._update([], [], mean[:, :0], square[:, :0], *rest)
