"""The convolution blocks by each implementation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SMALL, normal, seeds
from torch.func import grad_and_value, vmap
from torch.utils._pytree import tree_leaves, tree_map

from fmnist.functional import cnn
from fmnist.functional.features import features
from fmnist.functional.kernels import conv, conv_block, norm_relu_pool
from fmnist.functional.kernels.cpu.simd import WIDTH


@given(st.integers(1, 40), st.integers(1, 3), seeds)
@settings(max_examples=20, deadline=None)
def test_unpack_is_the_inverse_of_pack(examples, channels, seed):
    images = normal(examples, channels, 3, 2, seed=seed)
    x = conv_block.pack(images)
    assert x.shape == (-(-examples // WIDTH), channels, 3, 2, WIDTH)
    assert x.is_contiguous()
    assert torch.equal(conv_block.unpack(x, examples), images)
    beyond = conv_block.unpack(x, x.shape[0] * WIDTH)[examples:]
    assert torch.equal(beyond, torch.zeros_like(beyond))
    lanes = vmap(conv_block.pack, in_dims=1)(images.expand(2, *images.shape).movedim(0, 1))
    assert torch.equal(lanes, x.expand(2, *x.shape))


def test_block_kernels_support_only_float32_on_a_cpu():
    images = torch.zeros(1, 1, 28, 28)
    assert conv_block.serves(images, None)
    assert conv_block.serves(images, torch.float32)
    assert not conv_block.serves(images, torch.bfloat16)
    for others in (images.double(), images.bfloat16()):
        assert not conv_block.serves(others, None)


def test_norm_relu_pool_in_float64_passes_gradcheck():
    x, weight, bias = normal(2, 3, 4, 4).double(), torch.ones(3).double(), torch.zeros(3).double()
    assert torch.autograd.gradcheck(
        lambda x: norm_relu_pool.norm_relu_pool(x, weight, bias)[0], x.requires_grad_()
    )


def network(dtype=torch.float32):
    """Parameters, statistics and images without zeros and ones from the initialisation."""
    params, state = cnn.init(0, SMALL)
    for i, leaf in enumerate(tree_leaves((params, state))):
        leaf += torch.rand(leaf.shape, generator=torch.Generator().manual_seed(i)) * 0.3
    images = torch.rand(WIDTH + 3, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    return tree_map(lambda leaf: leaf.to(dtype), (params, state, images))


WAYS = ("blocks", *conv.BACKENDS)


def results(params, state, images, train, compute=None, convolution="auto"):
    """Features, running statistics and the gradients of parameters and images."""

    def loss(params, images):
        out, new_state = features(
            params, state, images, train=train, compute=compute, convolution=convolution
        )
        return (out * normal(*out.shape, seed=2)).sum(), (out, new_state)

    grads, (_, outputs) = grad_and_value(loss, argnums=(0, 1), has_aux=True)(params, images)
    return outputs, grads


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("how", WAYS)
def test_every_back_end_equals_float64(how, train):
    exact = tree_leaves(results(*network(torch.float64), train))
    ours = tree_leaves(results(*network(), train, convolution=how))
    for mine, theirs in zip(ours, exact, strict=True):
        atol = 1e-4 * theirs.abs().max().item()
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-3, atol=atol)


@pytest.mark.parametrize(("dtype", "compute"), [("float64", None), ("float32", torch.bfloat16)])
def test_other_precisions_use_a_convolution_for_each_lane(dtype, compute):
    ours = results(*network(getattr(torch, dtype)), True, compute)
    lanes = results(*network(getattr(torch, dtype)), True, compute, "lanes")
    assert all(map(torch.equal, tree_leaves(ours), tree_leaves(lanes)))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_features_of_a_lane_equal_features_alone(shared, train):
    params, state, images = network()
    many, stacked = (
        tree_map(lambda leaf: torch.stack([leaf, leaf * 2]), t) for t in (params, state)
    )
    images = images if shared else torch.stack([images, images.flip(3)])

    def through(params, state, images):
        return features(params, state, images, train=train, compute=None)

    together = vmap(through, in_dims=(0, 0, None if shared else 0))(many, stacked, images)
    for i in range(2):
        own = tree_map(lambda leaf, i=i: leaf[i], (many, stacked, together))
        alone = through(*own[:2], images if shared else images[i])
        assert all(map(torch.equal, tree_leaves(own[2]), tree_leaves(alone)))
