"""A traced step equals the step, is traced once per shape and does not change its inputs."""

from __future__ import annotations

import contextlib
import weakref
from functools import partial

import optree
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import NUMBERS, SMALL, make_group, random_split, run_group

from fmnist.engine import cuda_graph, trainer
from fmnist.engine.evaluation import evaluate
from fmnist.engine.lanes import stacked_numbers
from fmnist.functional import batching, cnn, vmap
from fmnist.functional.trace import traced

FOREIGN = torch.ones(3)


def test_traced_step_equals_the_step_bit_for_bit():
    group = make_group(SMALL, "adam", False, 8, tuple((s, NUMBERS) for s in (0, 0, 1)))
    state = trainer.start(*group, torch.device("cpu"))
    numbers = stacked_numbers(group.lanes, torch.device("cpu"))
    batch = batching.gather(random_split(8), torch.arange(8))
    program = group.program
    step = partial(vmap.train_step, shared=True, model=program.model, optimizer=program.optimizer)
    fast = traced(step)
    args = (state, batch, numbers)
    kept = optree.tree_map(torch.clone, args)
    for _ in range(2):
        for ours, theirs in zip(
            optree.tree_leaves(fast(*args)), optree.tree_leaves(step(*args)), strict=True
        ):
            assert torch.equal(ours, theirs)
    assert all(map(torch.equal, optree.tree_leaves(args), optree.tree_leaves(kept)))


def test_replayed_step_equals_the_repeated_step():
    """With a substitute for CUDA graphs, which runs the step in place of a replay."""
    captured = []

    def capture(run, device, reset):
        for _ in range(3):  # a real capture runs the step too, on buffers that are then overwritten
            reset()
            run()
        captured.append(device)
        return run

    def step(carry, inputs):
        assert carry["n"] in range(8), "a warm-up runs beyond the last step"
        return {"x": carry["x"] * inputs + 1, "n": carry["n"] + 1}

    looped = cuda_graph.repeater(step, torch.device("cpu"))
    replayed = cuda_graph.Replayed(step, capture)
    carry = {"x": torch.ones(3), "n": torch.tensor(0)}
    for times in (3, 0, 4, 1):
        inputs = torch.rand(3)
        expected, got = looped(carry, inputs, times), replayed(carry, inputs, times)
        assert all(torch.equal(expected[key], got[key]) for key in expected)
        carry = got  # and it does not alias the buffers
    assert captured == [torch.device("cpu")]
    last = cuda_graph.Replayed(step, capture)
    assert last({"x": torch.ones(3), "n": torch.tensor(7)}, torch.ones(3), 1)["n"] == 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_with_a_cuda_graph_equals_training_on_the_cpu():
    group = make_group(SMALL, "adam", False, 8, ((0, NUMBERS), (1, NUMBERS)))
    splits = [random_split(20), random_split(10, 1)]
    ours, theirs = (
        list(run_group(group, *(type(s)(*(t.to(device) for t in s)) for s in splits), epochs=3))
        for device in ("cuda", "cpu")
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.train.loss_sum.cpu(), b.train.loss_sum, rtol=1e-3, atol=0)


def test_function_is_traced_once_per_shape():
    calls = []

    def double(tree):
        calls.append(tree["x"].shape)
        return {"y": tree["x"] * 2}

    fast = traced(double)
    for size in (2, 2, 3, 2, 3):
        assert torch.equal(fast({"x": torch.ones(size)})["y"], torch.full((size,), 2.0))
    assert calls == [(2,), (3,)]


def test_results_that_depend_on_no_argument_are_constants():
    def shifted(x):
        return x + torch.arange(3, device=x.device) * 2 + torch.ones_like(x), torch.full((), 7)

    fast = traced(shifted)
    for seed in range(2):
        x = torch.randn(3, generator=torch.Generator().manual_seed(seed))
        assert all(map(torch.equal, fast(x), shifted(x)))


def test_arguments_traced_as_one_tensor_may_differ_later():
    fast = traced(lambda x, y: (x[1:], y[1:], x.view(2, 2), y.view(2, 2)))
    x, y = torch.arange(4.0), torch.arange(4.0) + 9
    fast(x, x)
    for ours, theirs in zip(fast(x, y), (x[1:], y[1:], x.view(2, 2), y.view(2, 2)), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (lambda x: x + torch.rand(3), "draws"),
        (lambda x: x.add_(1), "writes"),
        (lambda x: x + FOREIGN, "not among its arguments"),
        (lambda x: x * x.sum().item(), "reads the value"),
        (lambda x: x[x > 0], "reads the value"),
        (lambda x: x.nonzero(), "reads the value"),
    ],
)
def test_impure_functions_are_refused(function, word):
    with pytest.raises(ValueError, match=word):
        traced(function)(torch.ones(3))


LAYOUTS = {
    "contiguous": lambda x: x.clone(),
    "transposed": lambda x: x.mT.contiguous().mT,
    "expanded": lambda x: x[:1].expand_as(x),
    "sliced": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "with an offset": lambda x: torch.cat([x, x])[len(x) :],
}


@given(st.lists(st.sampled_from(sorted(LAYOUTS)), min_size=2, max_size=4))
@settings(deadline=None)
def test_record_of_one_layout_is_not_used_for_another(names):
    def function(x):
        flat = x.mT.reshape(-1) * 2
        return flat.view(3, -1), x.as_strided((2, 2), x.stride()), (x @ x.mT)

    fast = traced(function)
    for name in names:
        x = LAYOUTS[name](torch.arange(6.0).view(2, 3))
        for ours, theirs in zip(fast(x), function(x), strict=True):
            assert torch.equal(ours, theirs), name


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


@contextlib.contextmanager
def medium():
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@contextlib.contextmanager
def float64():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SETTINGS = [
    autocast, medium, float64, torch.inference_mode, torch.autograd.detect_anomaly,
    torch.enable_grad, contextlib.nullcontext,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@given(st.lists(st.sampled_from(SETTINGS), min_size=2, max_size=4))
@settings(deadline=None)
def test_record_under_one_setting_is_not_used_under_another(names):
    def function(x):
        gradient = torch.func.grad(lambda y: (y @ y.mT).softmax(0).square().sum())(x)
        return x @ x.mT, gradient, x.double() + torch.ones(2, 2) / 3

    fast = traced(function)
    x = torch.rand(2, 2, generator=torch.Generator().manual_seed(0))
    for setting in names:
        with setting():
            ours = fast(x)
        with contextlib.nullcontext() if setting is torch.inference_mode else setting():
            theirs = function(x)
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b), setting


def test_results_are_not_the_memory_of_the_record_or_of_an_argument():
    def function(x):
        constant = torch.arange(3.0)
        return constant, constant[1:], constant.expand(2, 3), x * 1, (x * 1)[1:], x + constant

    fast, x = traced(function), torch.zeros(3)
    expected = function(x)
    for _ in range(3):
        results = fast(x)
        assert all(map(torch.equal, results, expected))
        for result in results:
            result.fill_(7)
        assert torch.equal(x, torch.zeros(3))


def test_metrics_of_a_split_of_one_batch_may_be_changed():
    model = cnn.build(SMALL)
    tree = vmap.stack([model.init(0)])
    split = random_split(5)
    for _ in range(2):
        metrics = evaluate(model, *tree, split)
        assert metrics.examples.tolist() == [5]
        metrics.examples.fill_(0)


def test_tracing_keeps_no_intermediate_tensor_alive():
    alive = []

    def function(x):
        for _ in range(50):
            x = x + 1
            alive.append(weakref.ref(x.untyped_storage()))
        assert sum(ref() is not None for ref in alive) < 5
        return x

    traced(function)(torch.zeros(3))
