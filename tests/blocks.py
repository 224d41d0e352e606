"""Helpers of the tests of conv_block: images, weights, and all results of a lane."""

from __future__ import annotations

import contextlib

import torch
from hypothesis import strategies as st
from strategies import normal
from torch.func import grad_and_value

from fmnist.functional.kernels import conv_block as block
from fmnist.functional.kernels.cpu import algorithm, blocks
from fmnist.functional.kernels.cpu.transforms import KERNELS


@contextlib.contextmanager
def winograd(wanted):
    """Winograd's algorithm computes all convolutions that it can, or none; None: as is faster."""
    rule = algorithm.winograd
    if wanted is not None:
        algorithm.winograd = lambda x, weight, frame: wanted and weight[-1] in KERNELS
        blocks.plan.cache_clear()
    try:
        yield
    finally:
        algorithm.winograd = rule
        blocks.plan.cache_clear()


def whole(low, high, *shape, seed):
    """Random integers. Their sums of products are exact and often equal."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).float()


def numbers(*shape, seed=0):
    """Scales of both signs, some zero, and shifts, some zero."""
    gamma, beta = normal(*shape, seed=seed + 1), normal(*shape, seed=seed + 2)
    gamma[..., 2::3] = 0.0  # all pixels of a square are then equal, and the first counts
    beta[..., 5::6] = 0.0
    return gamma, beta


EXAMPLES = st.integers(1, 40)


@st.composite
def problems(draw, examples=EXAMPLES):
    """Shapes of images and weights that leave at least one square to pool, and a frame."""
    kernel, inputs, outputs = (draw(st.integers(1, most)) for most in (7, 9, 29))
    frame = draw(st.just((0, 0)) | st.tuples(*[st.integers(0, kernel - 1)] * 2))
    least = max(1, kernel + 1 - sum(frame))
    height, width = (draw(st.integers(least, least + 6)) for _ in range(2))
    return (draw(examples), inputs, height, width), (outputs, inputs, kernel, kernel), frame


def everything(packed, weight, gamma, beta, upstream, wanted=(0, 1, 2, 3), frame=(0, 0)):
    """Outputs, statistics and the gradients for the arguments ``wanted``."""

    def loss(*inputs):
        pooled, *rest = block.conv_block(*inputs, len(upstream), frame)
        pooled = block.unpack(pooled, len(upstream))
        return (pooled * upstream).sum(), [pooled, *rest]

    gradients = grad_and_value(loss, argnums=wanted, has_aux=True)
    grads, (_, outputs) = gradients(packed, weight, gamma, beta)
    return [*outputs, *grads]
