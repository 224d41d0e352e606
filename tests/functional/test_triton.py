"""The Triton kernels of norm_relu_pool: interpreted on a CPU, compiled without a GPU, run on one.

Interpreting checks the arithmetic and the indices, but neither speed nor races between threads. The
checks are in benchmarks/gpu_phases/pooling_checks.py, which benchmarks/gpu.py runs on a GPU, and in
triton_compile.py.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from gpu_phases.pooling_checks import checks, numbers
from strategies import normal

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


CPU = torch.device("cpu")


def run_script(*command, **environment):
    package = Path(importlib.util.find_spec("fmnist").origin).parents[1]
    folders = [package, Path(__file__).parents[2] / "benchmarks", os.environ.get("PYTHONPATH", "")]
    paths = os.pathsep.join(map(str, folders))
    run = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def failures():
    return run_script("-m", "gpu_phases.pooling_checks", TRITON_INTERPRET="1")


@pytest.mark.parametrize("check", checks(CPU))
def test_interpreted_kernels_pass_the_check(failures, check):
    assert check not in failures, failures[check]


def test_compiled_kernels_have_no_fma_and_no_atomics(tmp_path):
    environment = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    assert run_script(Path(__file__).with_name("triton_compile.py"), **environment) == {}


def test_definition_is_used_without_a_kernel():
    from fmnist.functional.kernels import norm_relu_pool as nrp

    for others in (torch.empty(1), torch.empty(1, device="meta"), torch.empty(1).half()):
        assert not nrp._has_kernel(others, torch.empty(1))
    assert not nrp._has_kernel(torch.empty(1).bfloat16(), torch.empty(1).double())
    inputs = normal(3, 5, 6, 7), *numbers(5)
    ours, theirs = nrp.norm_relu_pool(*inputs), nrp.definition(*inputs)
    assert all(map(torch.equal, ours, theirs))
    given = nrp.norm_relu_pool_given(*inputs, *ours[1:])
    assert torch.equal(given, nrp.definition_given(*inputs, *ours[1:]))


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def gradients(function, x, weight, bias, upstream):
    def loss(x, weight, bias):
        pooled, mean, var = function(x, weight, bias)
        return (pooled * upstream).sum(), (pooled, mean, var)

    return torch.func.grad_and_value(loss, argnums=(0, 1, 2), has_aux=True)(x, weight, bias)


@cuda
@pytest.mark.parametrize("shape", [(3, 100, 12, 24, 24), (5, 9, 24, 8, 8), (2, 4, 7, 9, 5)])
def test_kernels_on_a_gpu_equal_the_definition(shape):
    """Under vmap and grad: close to float64, and each lane bit for bit as alone."""
    from fmnist.functional.kernels import norm_relu_pool as nrp

    lanes, batch, channels, height, width = shape
    x = normal(*shape, scale=2.0, shift=1.0).cuda()
    weight, bias = (t.view(lanes, channels).cuda() for t in numbers(lanes * channels))
    upstream = normal(lanes, batch, channels, height // 2, width // 2, seed=3).cuda()
    assert nrp._has_kernel(x, weight)
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
def test_kernels_in_a_cuda_graph_equal_the_eager_kernels():
    from fmnist.functional.kernels import norm_relu_pool as nrp

    args = [t.cuda() for t in (normal(9, 5, 8, 8), *numbers(5), normal(9, 5, 4, 4, seed=3))]
    expected = gradients(nrp.norm_relu_pool, *args)  # and compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients(nrp.norm_relu_pool, *args)
    graph.replay()
    flat = torch.utils._pytree.tree_leaves
    assert all(map(torch.equal, flat(captured), flat(expected)))
