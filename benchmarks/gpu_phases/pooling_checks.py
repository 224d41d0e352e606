"""Checks of the Triton kernels of norm_relu_pool, on a GPU or interpreted on a CPU.

Triton decides at import whether to interpret kernels, so interpreting needs a separate process:
``python -m gpu_phases.pooling_checks`` with ``TRITON_INTERPRET=1``. It prints the failed checks. In
it, the operators use Triton's kernels for CPU tensors.
"""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import torch
from torch.func import grad, grad_and_value, vmap

from gpu_phases.draws import normal, numbers
from gpu_phases.pooling_rules import (
    check_derivatives,
    check_layouts,
    check_operators,
    check_refusals,
)

EPS = 1e-5


def few_values(*shape):
    """Return so few different numbers that pixels of a square are often equal."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(-2, 3, shape, generator=generator, device="cpu").float()
    return drawn.to(torch.get_default_device())


def take_cpu_tensors():
    """Use these kernels for CPU tensors, too, so that autograd and vmap use them as on a GPU."""
    from fmnist.functional.kernels import norm_relu_pool as nrp

    for dtype in (torch.float32, torch.bfloat16):
        nrp._KERNELS["cpu", dtype] = nrp._KERNELS["cuda", torch.float32]


# The definition, in plain torch -----------------------------------------------------------------


def squares(x):
    """Return the four pixels of each square, in row-major order."""
    height, width = (size // 2 * 2 for size in x.shape[2:])
    x = x[:, :, :height, :width].unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return x.transpose(3, 4).flatten(4)


def right_forward(x, weight, bias, mean, var):
    """Return the pooled values, the deviation of the largest pixel from the mean, and its position.

    The position is 4 if no pixel is positive. Of equal pixels the first counts, of NaNs the last.
    """
    root = torch.sqrt((var + EPS).double()).float()  # in float64, for correct rounding
    scale = (weight.double() / root.double()).float()
    mean, scale, shift = (t[:, None, None] for t in (mean, scale, bias))
    centred = squares(x - mean)
    value = squares((x - mean) * scale + shift)
    nan = value.isnan()
    first_largest = (value == value.amax(-1, keepdim=True)).int().argmax(-1, keepdim=True)
    last_nan = 3 - nan.flip(-1).int().argmax(-1, keepdim=True)
    place = torch.where(nan.any(-1, keepdim=True), last_nan, first_largest)
    best = value.gather(-1, place)
    which = torch.where(best <= 0, 4, place).to(torch.uint8)
    pooled = torch.where(best <= 0, 0.0, best)
    return tuple(t.squeeze(-1) for t in (pooled, centred.gather(-1, place), which))


def right_backward(grad, x, weight, mean, var, centred, which):
    """In float64: ``scale * (d - mean(d) - h * mean(d * h))`` (Ioffe and Szegedy, section 3)."""
    per_channel = (0, 2, 3)
    passed = torch.where(which < 4, grad.double(), 0.0)
    d = torch.zeros_like(x, dtype=torch.float64)
    for corner in range(4):
        row, column = divmod(corner, 2)
        inner = d[:, :, : d.shape[2] // 2 * 2, : d.shape[3] // 2 * 2]
        inner[:, :, row::2, column::2] = torch.where(which == corner, passed, 0.0)
    deviation = torch.sqrt(var.double() + EPS)[:, None, None]
    normal = (x.double() - mean[:, None, None]) / deviation
    slope = (d * normal).mean(per_channel, keepdim=True)
    dx = (
        weight[:, None, None] / deviation * (d - d.mean(per_channel, keepdim=True) - normal * slope)
    )
    dweight = (passed * centred / deviation).sum(per_channel)
    return dx, dweight, passed.sum(per_channel)


# The checks ------------------------------------------------------------------------------------


def check_definition(x):
    """Compare outputs, statistics and gradients with the definition in float64 and its autograd."""
    from fmnist.functional.kernels import norm_relu_pool as nrp

    inputs = [t.clone().requires_grad_() for t in (x, *numbers(x.shape[1]))]
    pooled, mean, var = nrp.norm_relu_pool(*inputs)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    expected = nrp.definition(*wide)
    for mine, theirs in zip((pooled, mean, var), expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-5)
    upstream = normal(*pooled.shape, seed=5)
    ours = torch.autograd.grad(pooled, inputs, upstream)
    theirs = torch.autograd.grad(expected[0], wide, upstream.double())
    for mine, exact in zip(ours, theirs, strict=True):
        size = exact.abs().max().item() + 1e-6
        torch.testing.assert_close(mine.double(), exact, rtol=1e-3, atol=1e-4 * size)


def check_places(x):
    """With a given mean and variance, outputs are right to the bit and gradients to rounding."""
    from fmnist.functional.kernels.cuda import norm_relu_pool as cuda_kernels

    def channels_last(t):
        strides = torch.empty(t.shape, memory_format=torch.channels_last).stride()
        return t.stride() == strides

    weight, bias = numbers(x.shape[1])
    pooled, mean, var, centred, which = cuda_kernels.forward(x, weight, bias, EPS)
    for value in (0.0, math.nan, math.inf):
        poisoned = x.clone()
        poisoned[0, -1, :2, 0] = value  # of two NaNs in a square, the last counts
        args = (poisoned, weight, bias, mean, var)
        ours = cuda_kernels.forward_given(*args, EPS)
        assert all(map(channels_last, ours))
        for mine, right in zip(ours, right_forward(*args), strict=True):
            torch.testing.assert_close(mine, right, rtol=0, atol=0, equal_nan=True)
    grad = normal(*pooled.shape, seed=9)
    saved = (weight, mean, var, centred, which)
    for g in (grad, grad.contiguous(memory_format=torch.channels_last)):
        ours = cuda_kernels.backward(g, x, *saved, EPS)
        assert channels_last(ours[0])
        for mine, right in zip(ours, right_backward(grad, x, *saved), strict=True):
            atol = 2e-6 * right.abs().max().item()
            torch.testing.assert_close(mine.double(), right, rtol=1e-5, atol=atol)


def check_channels_stand_alone():
    """The results agree to the bit, although 130 channels have other tiles than 5."""
    from fmnist.functional.kernels.cuda import norm_relu_pool as cuda_kernels

    x, (weight, bias) = normal(7, 130, 9, 8), numbers(130)
    together = cuda_kernels.forward(x, weight, bias, EPS)
    grad = normal(*together[0].shape, seed=9)
    grads = cuda_kernels.backward(grad, x, weight, *together[1:], EPS)
    for own in (slice(0, 5), slice(62, 67), slice(129, 130)):
        solo = cuda_kernels.forward(x[:, own], weight[own], bias[own], EPS)
        solo_grads = cuda_kernels.backward(grad[:, own], x[:, own], weight[own], *solo[1:], EPS)
        for all_, one in zip(together + grads, solo + solo_grads, strict=True):
            assert torch.equal(all_[:, own] if all_.dim() == 4 else all_[own], one)


def check_parts(batch):
    """More rows than the minimum size of a part are cut correctly, with and without a remainder."""
    from fmnist.functional.kernels.cuda import norm_relu_pool as cuda_kernels

    weight, bias = numbers(2)
    with patch.object(cuda_kernels, "PARTS", 3):
        x = normal(batch, 2, 8, 8, shift=3.0)
        pooled, mean, var, centred, which = cuda_kernels.forward(x, weight, bias, EPS)
        exact = torch.var_mean(x.double(), dim=(0, 2, 3), correction=0)
        torch.testing.assert_close(var.double(), exact[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(mean.double(), exact[1], rtol=1e-6, atol=0)
        grad = normal(*pooled.shape, seed=9)
        dbias = cuda_kernels.backward(grad, x, weight, mean, var, centred, which, EPS)[2]
        passed = torch.where(which < 4, grad.double(), 0.0).sum((0, 2, 3))
        torch.testing.assert_close(dbias.double(), passed, rtol=1e-5, atol=1e-5)


def check_statistics(shift):
    from fmnist.functional.kernels.cuda import norm_relu_pool as cuda_kernels

    x = normal(20, 5, 12, 12, shift=shift)
    _, mean, var, *_ = cuda_kernels.forward(x, torch.ones(5), torch.zeros(5), EPS)
    exact = torch.var_mean(x.double(), dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(var.double(), exact[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(mean.double(), exact[1], rtol=1e-7, atol=0)


def check_bfloat16():
    """Only inputs and outputs are rounded."""
    from fmnist.functional.kernels.cuda import norm_relu_pool as cuda_kernels

    x, (weight, bias) = normal(3, 5, 6, 7).bfloat16(), numbers(5)
    pooled, *saved = cuda_kernels.forward(x, weight, bias, EPS)
    exact, *exact_saved = cuda_kernels.forward(x.float(), weight, bias, EPS)
    assert pooled.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(saved, exact_saved, strict=True))
    torch.testing.assert_close(pooled.float(), exact, rtol=2**-7, atol=1e-6)
    dx, *rest = cuda_kernels.backward(exact.bfloat16(), x, weight, *saved, EPS)
    ours = cuda_kernels.backward(exact.bfloat16().float(), x.float(), weight, *saved, EPS)
    assert dx.dtype == torch.bfloat16
    torch.testing.assert_close(dx.float(), ours[0], rtol=2**-7, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(rest, ours[1:], strict=True))


def check_dispatch():
    """The functions registered for CUDA pass their arguments in the right order."""
    from fmnist.functional.kernels.cuda import norm_relu_pool as cuda_kernels

    def on_cuda(name, *args):
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
        return getattr(torch.ops.fmnist, name).default.redispatch(keys, *args)

    x, (weight, bias) = normal(3, 5, 6, 7), numbers(5)
    pooled, *saved = on_cuda("norm_relu_pool", x, weight, bias)
    args = (pooled, x, weight, *saved)
    given = (x, weight, bias, *saved[:2])
    ours = [pooled, *saved, *on_cuda("norm_relu_pool_grad", *args)]
    theirs = [*cuda_kernels.forward(x, weight, bias, EPS), *cuda_kernels.backward(*args, EPS)]
    assert all(map(torch.equal, ours, theirs))
    assert torch.equal(on_cuda("norm_relu_pool_given", *given), pooled)


def check_poison(value):
    """NaN or infinity in a channel affects only this channel."""
    from fmnist.functional.kernels import norm_relu_pool as nrp

    x = normal(3, 4, 6, 6, seed=1)
    clean = nrp.norm_relu_pool(x, torch.ones(4), torch.zeros(4))
    x[1, 2, 3, 3] = value
    ours = nrp.norm_relu_pool(x, torch.ones(4), torch.zeros(4))
    expected = nrp.definition(x, torch.ones(4), torch.zeros(4))[0]
    assert torch.equal(ours[0].isnan(), expected.isnan())
    others = [0, 1, 3]
    assert torch.equal(ours[0][:, others], clean[0][:, others])
    for mine, its in zip(ours[1:], clean[1:], strict=True):
        assert torch.equal(mine[others], its[others])
    assert not math.isfinite(ours[2][2])


def check_closed_relu():
    from fmnist.functional.kernels import norm_relu_pool as nrp

    x = normal(2, 3, 4, 4).requires_grad_()
    pooled, *_ = nrp.norm_relu_pool(x, torch.ones(3), torch.full((3,), -100.0))
    assert torch.equal(pooled, torch.zeros_like(pooled))
    (dx,) = torch.autograd.grad(pooled.sum(), x)
    assert torch.equal(dx, torch.zeros_like(dx))


def check_outlier():
    """A first value that is not finite does not spoil the statistics."""
    from fmnist.functional.kernels import norm_relu_pool as nrp

    x = normal(50, 1, 12, 12)
    x[0, 0, 0, 0] = 1e6
    var = nrp.norm_relu_pool(x, torch.ones(1), torch.zeros(1))[2]
    torch.testing.assert_close(var.double(), x.double().var(correction=0)[None], rtol=1e-5, atol=0)


def check_lanes(lanes, shape):
    """Under vmap and grad, each lane has the bits of its solo result."""
    from fmnist.functional.kernels import norm_relu_pool as nrp

    x = normal(lanes, *shape)
    weight, bias = normal(lanes, shape[1], seed=1), normal(lanes, shape[1], seed=2)

    def both(x, weight, bias):
        def total(x, weight, bias):
            outputs = nrp.norm_relu_pool(x, weight, bias)
            places = torch.arange(float(outputs[0].numel())).view(outputs[0].shape)
            return (outputs[0] * places).sum(), outputs

        grads, (_, outputs) = grad_and_value(total, (0, 1, 2), has_aux=True)(x, weight, bias)
        return *grads, *outputs

    together = vmap(both)(x, weight, bias)
    for lane in range(lanes):
        alone = both(x[lane], weight[lane], bias[lane])
        assert all(torch.equal(t[lane], solo) for t, solo in zip(together, alone, strict=True))


def check_evaluation(lanes, *shape):
    """The operator and its gradient equal the definition."""
    from fmnist.functional.kernels import norm_relu_pool as nrp

    x = normal(lanes, *shape)
    rest = [normal(lanes, shape[1], seed=k) for k in range(4)]
    rest[3] = rest[3].square()
    ours = vmap(nrp.norm_relu_pool_given)(x, *rest)
    gradients = partial(grad, argnums=(0, 1, 2, 3, 4))
    mine = vmap(gradients(lambda *inputs: nrp.norm_relu_pool_given(*inputs).sum()))(x, *rest)
    for lane in range(lanes):
        own = [t[lane] for t in (x, *rest)]
        torch.testing.assert_close(ours[lane], nrp.definition_given(*own))
        theirs = gradients(lambda *inputs: nrp.definition_given(*inputs).sum())(*own)
        mine_ = tuple(t[lane] for t in mine)
        torch.testing.assert_close(mine_, theirs, rtol=1e-4, atol=1e-5)


def check_zero_variance():
    """A channel of equal pixels has finite outputs and gradients."""
    from fmnist.functional.kernels import norm_relu_pool as nrp

    x = normal(6, 3, 5, 4)
    x[:, 1] = 0.75
    weight, bias, sound = torch.ones(3), torch.full((3,), 0.5), torch.tensor([0, 2])
    upstream = normal(6, 3, 2, 2, seed=1)

    def through(function, *inputs):
        outputs, pull = torch.func.vjp(lambda *own: function(*own)[0], *inputs)
        return outputs, *pull(upstream.to(outputs.dtype))

    ours = through(nrp.norm_relu_pool, x, weight, bias)
    exact = through(nrp.definition, *(t.double() for t in (x, weight, bias)))
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(ours[1:], exact[1:], strict=True):
        assert mine.isfinite().all()
        # The flat channel's gradient is a difference of large numbers: only finiteness is checked.
        mine, theirs = (t.index_select(min(t.dim() - 1, 1), sound) for t in (mine, theirs))
        size = theirs.abs().max().item()
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-3, atol=1e-4 * size)


SHAPES = [
    (9, 24, 8, 8),
    (3, 12, 9, 7),
    (2, 130, 5, 4),
    (1, 12, 2, 2),
    (4, 48, 5, 6),
    (2, 1, 24, 24),
]
FIRST = 18
"""Number of the most important checks. The others have shapes that studies hardly use."""

QUICK = (
    "definition (3, 12, 9, 7)",
    "places (3, 12, 9, 7)",
    "lanes 3",
    "bfloat16",
    "poison nan",
    "zero variance",
)


def checks(device: torch.device) -> dict[str, Callable[[], None]]:
    """Return all checks on this device, by name; those with shapes of the network come first."""
    found: dict[str, Callable[[], None]] = {}

    spread = partial(normal, scale=2.0, shift=1.0)
    found["lanes 3"] = partial(check_lanes, 3, (3, 5, 6, 5))
    if device.type == "cuda":  # interpreted, this takes minutes
        # As many rows as in the baseline, else the compiler unrolls the loop over them.
        found["lanes 6 of the baseline"] = partial(check_lanes, 6, (500, 12, 24, 24))
    found["lanes 64"] = partial(check_lanes, 64, (3, 3, 6, 5))
    for shape in SHAPES:
        found[f"definition {shape}"] = partial(_made, check_definition, spread, shape)
    found |= {f"poison {p}": partial(check_poison, p) for p in (math.nan, math.inf, -math.inf)}
    found |= {
        "bfloat16": check_bfloat16,
        "zero variance": check_zero_variance,
        "closed relu": check_closed_relu,
        "outlier": check_outlier,
        "channels stand alone": check_channels_stand_alone,
        "evaluation": partial(check_evaluation, 2, 3, 5, 6, 7),
    }
    for shape in SHAPES:
        found[f"places {shape}"] = partial(_made, check_places, spread, shape)
    found |= {f"statistics at {shift:g}": partial(check_statistics, shift) for shift in (1e4, -1e4)}
    for shape in (SHAPES[0], SHAPES[1], SHAPES[4]):
        found[f"definition {shape} with ties"] = partial(_made, check_definition, few_values, shape)
        found[f"places {shape} with ties"] = partial(_made, check_places, few_values, shape)
    found |= {f"parts of {batch} images": partial(check_parts, batch) for batch in (11, 12)}
    found |= {"dispatch": check_dispatch, "operators": check_operators}
    found |= {"layouts": check_layouts, "refusals": check_refusals}
    found["derivatives"] = check_derivatives
    return {name: partial(_on, device, check) for name, check in found.items()}


def _made(check, make, shape):
    check(make(*shape))


def _on(device, check):
    """Run a check with this default device."""
    with torch.device(device):
        check()


def interpret():
    """Run the checks. Return the failures, by name."""
    take_cpu_tensors()
    failed = {}
    for name, check in checks(torch.device("cpu")).items():
        try:
            check()
        except Exception:
            failed[name] = traceback.format_exc()
    return failed


if __name__ == "__main__":
    print(json.dumps(interpret()))
