"""Every kernel against its definition: forward and backward, odd sizes, NaN, infinity, constants.

On a CPU, Triton's kernels are interpreted. This checks arithmetic and indices, but not races
between threads; the summary says so.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from fmnist.functional import optim
from fmnist.functional.kernels import conv, conv_block, product
from fmnist.utils.device import cuda_arithmetic
from gpu_phases.part import Part, SkipError

Named = tuple[str, Callable[[], None]]


def run(part: Part) -> None:
    """Check the kernels of the device and the convolutions."""
    first, rest = pooling(part)
    for name, check in first:
        part.check(name, check)
    with cuda_arithmetic(tf32=False):
        for name, check in convolutions(part).items():
            part.check(f"convolution, {name}", check)
        part.check("linear layer of lanes, forward and backward", lambda: linear(part.device))
        part.check("Adam, its fused form", lambda: adam(part.device))
    part.check("convolution block of the CPU", lambda: block(part))
    for name, check in rest:
        part.check(name, check)


def pooling(part: Part) -> tuple[list[Named], list[Named]]:
    """Return checks of batch norm, ReLU and pooling by Triton, compiled on a GPU, else interpreted.

    Returns:
        The most important checks, and the others.
    """
    title = "Triton norm_relu_pool, {}: {}"
    if importlib.util.find_spec("triton") is None:
        part.skip(title.format("compiled", "all"), "Triton is not installed")
        return [], []
    how = "compiled" if part.cuda else "interpreted"
    if not part.cuda:
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it at import
        part.skip(title.format("compiled", "all"), "not a CUDA device; interpreted below")
    from gpu_phases import pooling_checks

    if not part.cuda:
        pooling_checks.take_cpu_tensors()
    checks = pooling_checks.checks(part.device)
    if part.quick:
        checks = {name: checks[name] for name in pooling_checks.QUICK}
    named = [(title.format(how, name), check) for name, check in checks.items()]
    return named[: pooling_checks.FIRST], named[pooling_checks.FIRST :]


def convolutions(part: Part) -> dict[str, partial[str]]:
    """Check the back ends by dtype, number of lanes, shapes and shared images."""
    found = {}
    types = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float64: 1e-10}
    counts = (1, 2) if part.quick else (1, 64)
    for how, lanes, (dtype, bar), shared in itertools.product(
        conv.BACKENDS, counts, types.items(), (True, False)
    ):
        if part.quick and (dtype == torch.float64 or (lanes == 1 and shared)):
            continue
        name = f"{how}, {str(dtype).removeprefix('torch.')}, {lanes} lanes"
        name += ", shared images" if shared else ""
        found[name] = partial(convolution, part.device, how, lanes, dtype, bar, shared)
    return found


def convolution(
    device: torch.device, how: str, lanes: int, dtype: torch.dtype, bar: float, shared: bool
) -> str:
    """Compare each lane with torch in float64, for odd sizes, forward and backward."""
    batch, inputs, outputs, side, kernel = 5, 3, 7, 9, 4
    images = random(device, *(() if shared else (lanes,)), batch, inputs, side, side + 2, seed=0)
    weight = random(device, lanes, outputs, inputs, kernel, kernel, seed=1)
    bias = random(device, lanes, outputs, seed=2)
    upstream = random(device, lanes, batch, outputs, side - kernel + 1, side - kernel + 3, seed=3)
    inputs_of_all = [t.to(dtype) for t in (images, weight, bias)]

    def through(function, x, w, b, up):  # noqa: ANN001
        out, pull = torch.func.vjp(function, x, w, b)
        return out, *pull(up)

    ours = torch.func.vmap(
        partial(through, partial(conv.conv2d, backend=how)), (None if shared else 0, 0, 0, 0)
    )(*inputs_of_all, upstream.to(dtype))
    worst = 0.0
    for lane in range(lanes):
        own = [t if t is images and shared else t[lane] for t in (images, weight, bias)]
        own.append(upstream[lane])
        exact = through(F.conv2d, *(t.to(dtype).double() for t in own))
        for mine, right in zip(ours, exact, strict=True):
            worst = max(worst, relative(mine[lane], right))
    assert worst <= bar, f"relative difference {worst:.1e}, at most {bar:.0e} is right"
    return f"relative difference {worst:.0e}"


def linear(device: torch.device) -> str:
    """Compare a hidden layer of 64 lanes and of one lane with float64."""
    worst = 0.0
    for lanes in (1, 64):
        x, weight = random(device, lanes, 37, 61, seed=0), random(device, lanes, 13, 61, seed=1)
        upstream = random(device, lanes, 37, 13, seed=2)

        def through(function, x, weight, upstream):  # noqa: ANN001
            out, pull = torch.func.vjp(function, x, weight)
            return out, *pull(upstream)

        ours = through(torch.func.vmap(product.linear), x, weight, upstream)
        exact = through(lambda x, w: x @ w.mT, *(t.double() for t in (x, weight, upstream)))
        worst = max(worst, *(relative(a, b) for a, b in zip(ours, exact, strict=True)))
    assert worst <= 1e-5, f"relative difference {worst:.1e}"
    return f"relative difference {worst:.0e}"


def adam(device: torch.device) -> str:
    """Compare ten steps of three lanes with torch.optim.AdamW in float64."""
    rates = torch.tensor([0.1, 0.01, 0.001], dtype=torch.float64, device=device)
    numbers = {"learning_rate": rates, "weight_decay": torch.full_like(rates, 0.02)}
    start = random(device, 3, 7, 5, seed=0)
    grads = random(device, 10, 3, 7, 5, seed=1)

    def one(numbers, params, grads):  # noqa: ANN001
        optimizer = optim.adamw(**numbers)
        state = optimizer.init(params)
        for grad in grads:
            updates, state = optimizer.update({"a": {"b": grad}}, state, params)
            params = optim.apply_updates(params, updates)
        return params["a"]["b"]

    ours = torch.func.vmap(one, (0, 0, 1))(numbers, {"a": {"b": start}}, grads)
    worst = 0.0
    for lane, rate in enumerate(rates.tolist()):
        parameter = torch.nn.Parameter(start[lane].double())
        theirs = torch.optim.AdamW([parameter], lr=rate, weight_decay=0.02)
        for grad in grads[:, lane]:
            parameter.grad = grad.double()
            theirs.step()
        worst = max(worst, relative(ours[lane], parameter.detach()))
    assert worst <= 1e-5, f"relative difference {worst:.1e}"
    return f"relative difference {worst:.0e}"


def block(part: Part) -> str:
    """Compare the fused convolution block with float64, forward and backward."""
    if part.cuda:
        raise SkipError("it is for CPUs")
    device = part.device
    x, weight = random(device, 19, 2, 9, 8, seed=0), random(device, 5, 2, 3, 3, seed=1)
    gamma, beta = random(device, 5, seed=2), random(device, 5, seed=3)
    upstream = random(device, 19, 5, 3, 3, seed=4)

    def through(function, dtype):  # noqa: ANN001
        def images(x, *rest):  # noqa: ANN001
            pooled = function(conv_block.pack(x), *rest, len(x))[0]
            return conv_block.unpack(pooled, len(x))

        out, pull = torch.func.vjp(images, *(t.to(dtype) for t in (x, weight, gamma, beta)))
        return out, *pull(upstream.to(dtype))

    ours = through(conv_block.conv_block, torch.float32)
    exact = through(conv_block.definition, torch.float64)
    worst = max(relative(a, b) for a, b in zip(ours, exact, strict=True))
    assert worst <= 1e-3, f"relative difference {worst:.1e}"
    return f"relative difference {worst:.0e}"


def random(device: torch.device, *shape: int, seed: int) -> torch.Tensor:
    """Return normal random numbers, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def relative(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the largest difference relative to the largest number."""
    difference = (ours.double() - exact).abs().max() / exact.abs().max()
    return difference.item() if torch.isfinite(difference) else float("inf")
