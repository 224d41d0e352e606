"""Every derivative of the network and of Adam equals that of the same in torch.nn.functional."""

from __future__ import annotations

from functools import partial

import optree
import pytest
import torch
import torch.nn.functional as F
from strategies import SMALL, normal, random_split
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import fmnist
from fmnist import adam, adamw
from fmnist.functional import batching, cnn, losses, optim
from fmnist.functional.kernels.conv import BACKENDS, conv2d
from fmnist.functional.types import ModelConfig
from fmnist.reference import Network, to_module

# torch compiles its own decompositions at the first use of forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["32", "64"])
MODES = pytest.mark.parametrize("train", [True, False], ids=["training", "evaluation"])
BATCH = batching.gather(random_split(6), torch.arange(6), torch.float64)
MODEL = fmnist.cnn(channels=SMALL.channels, hidden=SMALL.hidden)
LAYERS = ("conv1", "norm1", "conv2", "norm2", "linear2")


def tree(dtype, seed=0, config=SMALL):
    """Parameters, and statistics that are not those of a new network."""
    params, state = cnn.init(seed, config, dtype=dtype)
    for i, layer in enumerate(state.values()):
        layer["running_mean"] += normal(*layer["running_mean"].shape, seed=i, scale=0.1).to(dtype)
    return params, state


def plain(params, state, images, train):
    """Return the logits by torch.nn.functional."""
    x = images
    for i, statistics in enumerate(state.values(), 1):
        given = (None, None) if train else tuple(statistics.values())
        x = F.conv2d(x, **params[f"conv{i}"])
        x = F.batch_norm(x, *given, **params[f"norm{i}"], training=train)
        x = F.max_pool2d(F.relu(x), 2)
    x = F.relu(F.linear(x.flatten(1), **params["linear1"]))
    return F.linear(x, **params["linear2"])


def both(dtype, train, layer=None, seed=0):
    """The loss as a function of a layer (by default of all layers): ours and torch's."""
    params, state = tree(dtype, seed)
    images, labels = BATCH.images.to(dtype), BATCH.labels

    def loss(logits, own):
        own = own if layer is None else {**params, layer: own}
        return losses.cross_entropy(logits(own, state, images, train=train), labels).mean()

    def ours(params, state, images, train):
        return MODEL.apply(params, state, images, train=train)[0]

    return partial(loss, ours), partial(loss, plain), params if layer is None else params[layer]


def assert_close(ours, theirs, dtype):
    """Equal to rounding, in units of the largest entry of a leaf."""
    assert optree.tree_structure(ours) == optree.tree_structure(theirs)
    bar = 1e-9 if dtype == torch.float64 else 2e-3
    for a, b in zip(optree.tree_leaves(ours), optree.tree_leaves(theirs), strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, rtol=0, atol=bar * max(b.abs().max().item(), 1e-3))


def direction(params, seed=0):
    return optree.tree_map(lambda p: normal(*p.shape, seed=seed).to(p.dtype), params)


@DTYPES
@MODES
def test_forward_and_reverse_mode(train, dtype):
    ours, theirs, params = both(dtype, train)
    tangent = direction(params)
    assert_close(jvp(ours, (params,), (tangent,)), jvp(theirs, (params,), (tangent,)), dtype)
    one = torch.ones((), dtype=dtype)
    assert_close(vjp(ours, params)[1](one), vjp(theirs, params)[1](one), dtype)


def along(function, towards):
    """The derivative in a direction, by forward mode."""
    return lambda own: jvp(function, (own,), (towards,))[1]


def along_by_reverse(function, towards):
    """The same by reverse mode, as torch gets batch norm wrong: forward mode inside of another."""

    def derivative(own):
        pairs = zip(*map(optree.tree_leaves, (grad(function)(own), towards)), strict=True)
        return sum((a * b).sum() for a, b in pairs)

    return derivative


@pytest.mark.parametrize("layer", LAYERS)
@DTYPES
@MODES
def test_forward_mode_inside_of_other_modes(train, dtype, layer):
    ours, theirs, own = both(dtype, train, layer)
    first, second = direction(own), direction(own, 1)
    expected = along_by_reverse(along_by_reverse(theirs, first), second)(own)
    assert_close(along(along(ours, first), second)(own), expected, dtype)
    lanes = optree.tree_map(lambda p: torch.stack([p, p.cos()]), own)
    within = vmap(along(along(ours, first), second))(lanes)
    assert_close(within[0], expected, dtype)
    assert_close(grad(along(ours, first))(own), grad(along_by_reverse(theirs, first))(own), dtype)


@pytest.mark.parametrize("layer", LAYERS)
@DTYPES
@MODES
def test_hessian(train, dtype, layer):
    """For the first kernel of a convolution, and all parameters of other layers."""
    ours, theirs, own = both(dtype, train, layer)

    def of(function):
        def loss(some):
            if layer.startswith("conv"):
                outputs, inputs = own["weight"].shape[:2]
                other = F.pad(some["weight"][None, None], (0,) * 5 + (inputs - 1, 0, outputs - 1))
                some = {**own, "weight": own["weight"] + other}
            return function(some)

        return loss

    some = {"weight": torch.zeros(5, 5, dtype=dtype)} if layer.startswith("conv") else own
    expected = hessian(of(theirs))(some)
    assert_close(hessian(of(ours))(some), expected, dtype)
    if layer == "norm1":
        assert_close(jacrev(grad(of(ours)))(some), expected, dtype)


@DTYPES
@MODES
def test_forward_mode_over_lanes(train, dtype):
    """Under vmap on both sides: lanes with parameters of their own, and many directions."""
    ours, theirs, own = both(dtype, train, "norm1")
    lanes = optree.tree_map(lambda p: torch.stack([p, p + normal(*p.shape).to(dtype)]), own)
    assert_close(vmap(jacfwd(ours))(lanes), vmap(jacfwd(theirs))(lanes), dtype)
    assert_close(jacfwd(vmap(ours))(lanes), jacfwd(vmap(theirs))(lanes), dtype)
    assert_close(vmap(hessian(ours))(lanes), vmap(hessian(theirs))(lanes), dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives_of_each_convolution(backend):
    x, weight, bias = normal(2, 3, 2, 5, 6), normal(2, 4, 2, 3, 3, seed=1), normal(2, 4, seed=2)
    inputs = [tensor.double() for tensor in (x, weight, bias)]

    def loss(function, *inputs):
        return vmap(function)(*inputs).sin().sum()

    for mode in (hessian, lambda f, argnums: jacrev(jacrev(f, argnums), argnums)):
        ours, theirs = (
            mode(partial(loss, function), argnums=(0, 1, 2))(*inputs)
            for function in (partial(conv2d, backend=backend), F.conv2d)
        )
        for a, b in zip(optree.tree_leaves(ours), optree.tree_leaves(theirs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@DTYPES
def test_gradient_with_torch_autograd_twice(dtype):
    ours, theirs, params = both(dtype, True)
    found = []
    for loss in (ours, theirs):
        leaf = params["conv1"]["weight"].clone().requires_grad_()
        own = {**params, "conv1": {**params["conv1"], "weight": leaf}}
        (first,) = torch.autograd.grad(loss(own), leaf, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), leaf)[0])
    assert_close(*found, dtype)


@pytest.mark.parametrize("make", [adam, adamw])
@DTYPES
def test_hypergradient(dtype, make):
    """The derivative of the loss after two steps by the learning rate and the weight decay."""
    ours, theirs, params = both(dtype, True)

    def after(loss, numbers):
        optimizer = make(learning_rate=numbers[0], weight_decay=numbers[1], eps=0.01)
        own, state = params, optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(grad(loss)(own), state, own)
            own = optim.apply_updates(own, updates)
        return loss(own)

    numbers = torch.tensor([0.003, 0.1], dtype=torch.float64)
    expected = grad(partial(after, theirs))(numbers)
    assert expected.isfinite().all()
    bar = 1e-7 if dtype == torch.float64 else 0.01
    for mode in (grad, jacfwd):
        found = mode(partial(after, ours))(numbers)
        torch.testing.assert_close(found.double(), expected, rtol=bar, atol=0)
    lanes = vmap(grad(partial(after, ours)))(torch.stack([numbers, 2 * numbers]))
    torch.testing.assert_close(lanes[0].double(), expected, rtol=bar, atol=0)


@DTYPES
def test_adams_update_has_all_derivatives(dtype):
    """Against the same in float64, which no fused operation computes; some gradients are zero."""
    params = {"a": normal(3, 4, seed=1).to(dtype), "b": normal(5, seed=2).to(dtype)}
    grads, numbers = direction(params, 3), torch.tensor(0.01, dtype=torch.float64)
    grads["b"][1:3] = 0.0

    def norm(dtype, grads, rate):
        own, grads = (optree.tree_map(lambda p: p.to(dtype), x) for x in (params, grads))
        optimizer = adam(learning_rate=rate, eps=0.1)
        updates, _ = optimizer.update(grads, optimizer.init(own), own)
        return sum((100 * u.double()).exp().sum() for u in optree.tree_leaves(updates))

    for mode in (grad, jacfwd, hessian):
        ours, wide = (mode(partial(norm, d), argnums=(0, 1)) for d in (dtype, torch.float64))
        found, expected = (optree.tree_leaves(f(grads, numbers)) for f in (ours, wide))
        for a, b in zip(found, expected, strict=True):
            assert b.isfinite().all()
            top = b.abs().max().item()
            torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-5 * top)


@DTYPES
def test_batch_without_examples(dtype):
    params, state = tree(dtype)
    images = torch.empty(0, 1, 28, 28, dtype=dtype)
    network = to_module(params, state, SMALL).eval()
    logits, _ = cnn.apply(params, state, images, train=False)
    assert logits.shape == network(images).shape == (0, 10)
    with pytest.raises(ValueError, match="batch without examples"):
        cnn.apply(params, state, images, train=True)


def test_functional_call_of_the_reference_has_the_same_jacobian():
    """The reference model itself, not a copy of it in this file."""
    params, state = tree(torch.float32)
    network: Network = to_module(params, state, SMALL).eval()
    images = BATCH.images.float()

    def theirs(weight):
        return functional_call(network, {"conv2.weight": weight}, (images,))

    def ours(weight):
        own = {**params, "conv2": {**params["conv2"], "weight": weight}}
        return cnn.apply(own, state, images, train=False)[0]

    weight = params["conv2"]["weight"]
    assert_close(jacfwd(ours)(weight), jacfwd(theirs)(weight), torch.float32)
    assert_close(jacrev(ours)(weight), jacrev(theirs)(weight), torch.float32)


def test_dropout_and_three_layers_have_second_derivatives():
    config = ModelConfig(channels=(2,), hidden=(6, 5), kernel_size=3, dropout=0.4)
    params, state = cnn.init(1, config)
    noise = tuple(normal(6, width, seed=width).sigmoid() for width in config.hidden)

    def loss(dtype, bias):
        own = {**params, "linear1": {**params["linear1"], "bias": bias}}
        wide = optree.tree_map(lambda p: p.to(dtype), (own, state, BATCH.images, noise))
        logits, _ = cnn.apply(*wide[:3], train=True, dropout=0.4, noise=wide[3])
        return losses.cross_entropy(logits, BATCH.labels).mean()

    bias = params["linear1"]["bias"]
    found, expected = (hessian(partial(loss, d))(bias) for d in (torch.float32, torch.float64))
    assert_close(found, expected.float(), torch.float32)
