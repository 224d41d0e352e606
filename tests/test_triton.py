"""The Triton kernels of norm_relu_pool: interpreted on a CPU, compiled without a GPU, run on one.

Triton decides when it is imported whether it interprets, so that happens in a process of its own,
where this file is the script: it does the checks and prints what failed. Interpreting shows that
the arithmetic and the indices are right; speed and what threads do to each other it cannot show.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import traceback
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
EPS = 1e-5


def normal(*shape, seed=0, scale=1.0, shift=0.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale + shift


def numbers(channels, seed=0):
    """Weights of both signs with zeros among them, and biases."""
    weight = normal(channels, seed=seed + 1)
    weight[::3] = 0.0
    return weight, normal(channels, seed=seed + 2)


# The checks, in the interpreting process ------------------------------------------------------


def in_place_of_cpu():
    """These kernels run where the CPU's would: below the operators, autograd and vmap."""
    from fmnist.functional.kernels import cpu, triton_cuda

    names = ("forward", "forward_given", "backward")
    return patch.multiple(cpu, **{name: getattr(triton_cuda, name) for name in names})


def few_values(*shape):
    """So few that the pixels of a square are often equal."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(0)).float()


def check_definition(x):
    """Outputs, statistics and gradients, against the definition in float64 and its autograd."""
    from test_kernels import check_against_definition

    with in_place_of_cpu():
        check_against_definition(x, *numbers(x.shape[1]), seed=5)


def check_same_as_cpu(x):
    """Given the same mean and variance: the same places to the bit, and sums to rounding."""
    from fmnist.functional.kernels import cpu, triton_cuda

    weight, bias = numbers(x.shape[1])
    pooled, mean, var, centred, which = cpu.forward(x, weight, bias, EPS)
    for value in (0.0, math.nan, math.inf):
        poisoned = x.clone()
        poisoned[0, -1, :2, 0] = value  # of two NaNs in a square, the last counts
        args = (poisoned, weight, bias, mean, var, EPS)
        ours, theirs = triton_cuda.forward_given(*args), cpu.forward_given(*args)
        assert [t.stride() for t in ours] == [t.stride() for t in theirs]
        close = partial(torch.testing.assert_close, equal_nan=True)
        close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)  # the CPU contracts product and sum
        close(ours[1:], theirs[1:], rtol=0, atol=0)
    grad = normal(*pooled.shape, seed=9)
    saved = (weight, mean, var, centred, which, EPS)
    for g in (grad, grad.contiguous(memory_format=torch.channels_last)):
        ours, theirs = triton_cuda.backward(g, x, *saved), cpu.backward(grad, x, *saved)
        assert [t.stride() for t in ours] == [t.stride() for t in theirs]
        for mine, its in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-5, atol=2e-6 * its.abs().max().item())


def check_channels_stand_alone():
    """To the bit, though the tiles of 130 channels are others than those of 5."""
    from fmnist.functional.kernels import triton_cuda

    x, (weight, bias) = normal(7, 130, 9, 8), numbers(130)
    together = triton_cuda.forward(x, weight, bias, EPS)
    grad = normal(*together[0].shape, seed=9)
    grads = triton_cuda.backward(grad, x, weight, *together[1:], EPS)
    for own in (slice(0, 5), slice(62, 67), slice(129, 130)):
        solo = triton_cuda.forward(x[:, own], weight[own], bias[own], EPS)
        solo_grads = triton_cuda.backward(grad[:, own], x[:, own], weight[own], *solo[1:], EPS)
        for all_, one in zip(together + grads, solo + solo_grads, strict=True):
            assert torch.equal(all_[:, own] if all_.dim() == 4 else all_[own], one)


def check_parts(batch):
    """More rows than the parts' least size holds, whole parts and not: the cuts are right."""
    from fmnist.functional.kernels import triton_cuda

    weight, bias = numbers(2)
    with patch.object(triton_cuda, "PARTS", 3):
        x = normal(batch, 2, 8, 8, shift=3.0)
        pooled, mean, var, centred, which = triton_cuda.forward(x, weight, bias, EPS)
        exact = torch.var_mean(x.double(), dim=(0, 2, 3), correction=0)
        torch.testing.assert_close(var.double(), exact[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(mean.double(), exact[1], rtol=1e-6, atol=0)
        grad = normal(*pooled.shape, seed=9)
        dbias = triton_cuda.backward(grad, x, weight, mean, var, centred, which, EPS)[2]
        passed = torch.where(which < 4, grad.double(), 0.0).sum((0, 2, 3))
        torch.testing.assert_close(dbias.double(), passed, rtol=1e-5, atol=1e-5)


def check_statistics(shift):
    from fmnist.functional.kernels import triton_cuda

    x = normal(20, 5, 12, 12, shift=shift)
    _, mean, var, *_ = triton_cuda.forward(x, torch.ones(5), torch.zeros(5), EPS)
    exact = torch.var_mean(x.double(), dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(var.double(), exact[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(mean.double(), exact[1], rtol=1e-7, atol=0)


def check_bfloat16():
    """Only rounded on the way in and out."""
    from fmnist.functional.kernels import triton_cuda

    x, (weight, bias) = normal(3, 5, 6, 7).bfloat16(), numbers(5)
    pooled, *saved = triton_cuda.forward(x, weight, bias, EPS)
    exact, *exact_saved = triton_cuda.forward(x.float(), weight, bias, EPS)
    assert pooled.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(saved, exact_saved, strict=True))
    torch.testing.assert_close(pooled.float(), exact, rtol=2**-7, atol=1e-6)
    dx, *rest = triton_cuda.backward(exact.bfloat16(), x, weight, *saved, EPS)
    ours = triton_cuda.backward(exact.bfloat16().float(), x.float(), weight, *saved, EPS)
    assert dx.dtype == torch.bfloat16
    torch.testing.assert_close(dx.float(), ours[0], rtol=2**-7, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(rest, ours[1:], strict=True))


def check_dispatch():
    """What is registered for CUDA hands its arguments on in the right order."""
    from fmnist.functional.kernels import triton_cuda

    def on_cuda(name, *args):
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
        return getattr(torch.ops.fmnist, name).default.redispatch(keys, *args)

    x, (weight, bias) = normal(3, 5, 6, 7), numbers(5)
    pooled, *saved = on_cuda("norm_relu_pool", x, weight, bias)
    args = (pooled, x, weight, *saved)
    given = (x, weight, bias, *saved[:2])
    ours = [pooled, *saved, *on_cuda("norm_relu_pool_grad", *args)]
    theirs = [*triton_cuda.forward(x, weight, bias, EPS), *triton_cuda.backward(*args, EPS)]
    assert all(map(torch.equal, ours, theirs))
    assert torch.equal(on_cuda("norm_relu_pool_given", *given), pooled)


def from_test_kernels(name, **arguments):
    """A test of the CPU's kernels, with these in their place."""
    import test_kernels

    test = getattr(test_kernels, name)
    if hasattr(test, "hypothesis"):
        test = test.hypothesis.inner_test
    with in_place_of_cpu():
        test(**arguments)


SHAPES = [
    (1, 12, 2, 2),
    (3, 12, 9, 7),
    (9, 24, 8, 8),
    (4, 48, 5, 6),
    (2, 130, 5, 4),
    (2, 1, 24, 24),
]
INPUTS = {
    **{f"{shape}": normal(*shape, scale=2.0, shift=1.0) for shape in SHAPES},
    **{f"{shape} with ties": few_values(*shape) for shape in SHAPES[1:4]},
}
POISON = "test_a_poisoned_channel_is_its_own_trouble"
CHECKS = {
    **{f"definition {name}": partial(check_definition, x) for name, x in INPUTS.items()},
    **{f"same as cpu {name}": partial(check_same_as_cpu, x) for name, x in INPUTS.items()},
    **{f"statistics at {shift:g}": partial(check_statistics, shift) for shift in (1e4, -1e4)},
    **{f"parts of {batch} images": partial(check_parts, batch) for batch in (11, 12)},
    "channels stand alone": check_channels_stand_alone,
    "bfloat16": check_bfloat16,
    "dispatch": check_dispatch,
    **{
        f"poison {value}": partial(from_test_kernels, POISON, poison=value)
        for value in (math.nan, math.inf, -math.inf)
    },
    **{
        name: partial(from_test_kernels, name, **arguments)
        for name, arguments in {
            "test_nothing_passes_a_closed_relu": {},
            "test_an_outlier_that_comes_first_does_not_spoil_the_statistics": {},
            "test_lanes_do_not_disturb_each_other": {"lanes": 3, "channels": 5, "seed": 0},
            "test_evaluation_equals_its_definition": {"lanes": 2, "shape": (3, 5, 6, 7), "seed": 0},
            "test_the_operators_keep_torchs_rules": {},
        }.items()
    },
}


def interpret():
    """Do the checks; what failed, by name."""
    from fmnist.functional.kernels import norm_relu_pool  # noqa: F401  registers the operators

    failed = {}
    for name, check in CHECKS.items():
        try:
            check()
        except Exception:
            failed[name] = traceback.format_exc()
    return failed


# The compiler, in another process -------------------------------------------------------------

CONTRACTED_OR_ATOMIC = re.compile(r"^\s*(?:@\S+\s+)?((?:fma|atom|red)\.\S+)", re.MULTILINE)
TYPES = {torch.float32: "*fp32", torch.float64: "*fp64", torch.uint8: "*u8"}


class Recorder:
    """Stands for a kernel and keeps what it is launched with."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        return lambda *inputs, **sizes: self.launches.append((self.kernel, inputs, sizes))


def compile_for_hopper():
    """Compile every launch for sm_90; what the result should not contain, by kernel."""
    from fmnist.functional.kernels import triton_cuda

    launches = []
    for name in ("_statistics", "_merge", "_apply", "_sums", "_coefficients", "_gradient"):
        setattr(triton_cuda, name, Recorder(getattr(triton_cuda, name), launches))
    for shape in [(100, 12, 24, 24), (1, 130, 3, 3)]:
        x, (weight, bias) = torch.empty(shape), numbers(shape[1])
        pooled, *saved = triton_cuda.forward(x, weight, bias, EPS)
        triton_cuda.backward(pooled, x, weight, *saved, EPS)
    return {
        f"{kernel.__name__} {sizes['channels']}": found
        for kernel, inputs, sizes in launches
        if (found := CONTRACTED_OR_ATOMIC.findall(assembly(kernel, inputs, sizes)))
    }


def assembly(kernel, inputs, sizes):
    """What a launch would run, specialised as Triton does it: on ones and multiples of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {name: sizes.pop(name) for name in ("num_warps", "enable_fp_fusion")}
    given, rest = kernel.arg_names[: len(inputs)], kernel.arg_names[len(inputs) :]
    fixed = {n: sizes.get(n, kernel.signature.parameters[n].default) for n in rest}
    signature, aligned = dict.fromkeys(fixed, "constexpr"), {}
    for i, (name, value) in enumerate(zip(given, inputs, strict=True)):
        if isinstance(value, int) and value == 1:
            signature[name], fixed[name] = "constexpr", 1
            continue
        signature[name] = "i32" if isinstance(value, int) else TYPES[value.dtype]
        if not isinstance(value, int) or value % 16 == 0:
            aligned[(i,)] = [["tt.divisibility", 16]]
    signature = {name: signature[name] for name in kernel.arg_names}
    source = ASTSource(kernel, signature, fixed, aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]


# The tests ------------------------------------------------------------------------------------


def run_script(what, **environment):
    package = Path(importlib.util.find_spec("fmnist").origin).parents[1]
    paths = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, __file__, what],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def failures():
    return run_script("interpret", TRITON_INTERPRET="1")


@pytest.mark.parametrize("check", CHECKS)
def test_interpreted(failures, check):
    assert check not in failures, failures[check]


def test_compiles_without_contraction_and_atomics(tmp_path):
    environment = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    assert run_script("compile", **environment) == {}


def test_a_device_without_kernels_takes_the_definition():
    from fmnist.functional.kernels import norm_relu_pool as nrp

    assert not nrp._has_kernel(torch.empty(1, device="meta"))
    assert not nrp._has_kernel(torch.empty(1, dtype=torch.bfloat16))


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def gradients(function, x, weight, bias, upstream):
    def loss(x, weight, bias):
        pooled, mean, var = function(x, weight, bias)
        return (pooled * upstream).sum(), (pooled, mean, var)

    return torch.func.grad_and_value(loss, argnums=(0, 1, 2), has_aux=True)(x, weight, bias)


@cuda
@pytest.mark.parametrize("shape", [(3, 100, 12, 24, 24), (5, 9, 24, 8, 8), (2, 4, 7, 9, 5)])
def test_on_a_gpu(shape):
    """Under vmap and grad: the definition in float64, and each lane alone to the bit."""
    from fmnist.functional.kernels import norm_relu_pool as nrp

    lanes, batch, channels, height, width = shape
    x = normal(*shape, scale=2.0, shift=1.0).cuda()
    weight, bias = (t.view(lanes, channels).cuda() for t in numbers(lanes * channels))
    upstream = normal(lanes, batch, channels, height // 2, width // 2, seed=3).cuda()
    assert nrp._has_kernel(x)
    ours = torch.func.vmap(partial(gradients, nrp.norm_relu_pool))(x, weight, bias, upstream)
    flat = torch.utils._pytree.tree_leaves
    for i in range(lanes):
        args = (x[i], weight[i], bias[i], upstream[i])
        for mine, alone in zip(flat(ours), flat(gradients(nrp.norm_relu_pool, *args)), strict=True):
            if mine.dim() > 1:  # not the sum that stands for a loss: torch adds it up
                assert torch.equal(mine[i], alone)
        exact = gradients(nrp.definition, *(t.double() for t in args))
        for mine, theirs in zip(flat(ours), flat(exact), strict=True):
            atol = 1e-4 * (theirs.abs().max().item() + 1e-6)
            torch.testing.assert_close(mine[i].double(), theirs, rtol=1e-3, atol=atol)
    given = torch.func.vmap(nrp.norm_relu_pool_given)(x, weight, bias, *ours[1][1][1:])
    assert torch.equal(given, ours[1][1][0])


@cuda
def test_in_a_cuda_graph():
    from fmnist.functional.kernels import norm_relu_pool as nrp

    args = [t.cuda() for t in (normal(9, 5, 8, 8), *numbers(5), normal(9, 5, 4, 4, seed=3))]
    expected = gradients(nrp.norm_relu_pool, *args)  # and compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients(nrp.norm_relu_pool, *args)
    graph.replay()
    flat = torch.utils._pytree.tree_leaves
    assert all(map(torch.equal, flat(captured), flat(expected)))


if __name__ == "__main__":
    print(json.dumps({"interpret": interpret, "compile": compile_for_hopper}[sys.argv[1]]()))
