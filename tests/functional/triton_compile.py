"""Compile norm_relu_pool's Triton kernels without a GPU; test_triton.py runs this as a script."""

from __future__ import annotations

import json
import re

import torch
from gpu_phases.pooling_checks import EPS, numbers

CONTRACTED_OR_ATOMIC = re.compile(r"^\s*(?:@\S+\s+)?((?:fma|atom|red)\.\S+)", re.MULTILINE)
TYPES = {torch.float32: "*fp32", torch.float64: "*fp64", torch.uint8: "*u8"}


class Recorder:
    """Replaces a kernel and records the arguments of its launches."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        return lambda *inputs, **sizes: self.launches.append((self.kernel, inputs, sizes))


def compile_for_hopper():
    """Compile every launch for sm_90. Return forbidden instructions by kernel."""
    from fmnist.functional.kernels.cuda import norm_relu_pool as cuda_kernels

    launches = []
    for name in ("_statistics", "_merge", "_apply", "_sums", "_coefficients", "_gradient"):
        setattr(cuda_kernels, name, Recorder(getattr(cuda_kernels, name), launches))
    for shape in [(100, 12, 24, 24), (1, 130, 3, 3)]:
        x, (weight, bias) = torch.empty(shape), numbers(shape[1])
        pooled, *saved = cuda_kernels.forward(x, weight, bias, EPS)
        cuda_kernels.backward(pooled, x, weight, *saved, EPS)
    return {
        f"{kernel.__name__} {sizes['channels']}": found
        for kernel, inputs, sizes in launches
        if (found := CONTRACTED_OR_ATOMIC.findall(assembly(kernel, inputs, sizes)))
    }


def assembly(kernel, inputs, sizes):
    """The PTX of a launch, specialised as in Triton: on ones and multiples of 16."""
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


if __name__ == "__main__":
    print(json.dumps(compile_for_hopper()))
