"""Compiles the kernels for the CPU, in two processes at the same time.

Numba compiles a kernel when it is first called, which would be in the middle of training, and one
after the other. The results are kept in a folder, see :mod:`fmnist.utils.runtime`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from fmnist.functional.kernels import adam_update, conv_block

KERNELS = {"loops": ("forward", "backward", "forward_given"), "adam": ("update", "weights")}
"""The functions that Numba keeps, by module."""

_here = False


def compiled() -> bool:
    """Return whether all kernels are compiled, by this process or an earlier one."""
    folder = os.environ.get("NUMBA_CACHE_DIR")
    if _here or folder is None:
        return True
    kept = [path.name for path in Path(folder).rglob("*.nbi")]
    return all(
        any(name.startswith(f"{module}.{function}-") for name in kept)
        for module, functions in KERNELS.items()
        for function in functions
    )


def compile_kernels() -> float:
    """Compile the kernels if they are not, the backward pass in another process.

    If that process cannot be started or fails, this one compiles the kernel later.

    Returns:
        How many seconds it took.
    """
    global _here
    began = time.perf_counter()
    if not compiled():
        command = [
            sys.executable,
            "-c",
            "from fmnist.engine import compilation as c; c._backward()",
        ]
        quiet = subprocess.DEVNULL
        try:
            other = subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)
        except OSError:
            other = None
        try:
            _others()
            if other:
                other.wait()
        finally:
            if other:
                other.kill()
                other.wait()
        _backward()  # loads it, or compiles it if the other process could not
    _here = True
    return time.perf_counter() - began


def _tensors() -> tuple[torch.Tensor, ...]:
    """Return images, weights and a number of a channel, all zero."""
    images = conv_block.pack(torch.zeros(1, 1, 2, 2))[None]
    return images, torch.zeros(1, 1, 1, 1, 1), torch.zeros(1, 1)


def _others() -> None:
    from fmnist.functional.kernels.cpu import blocks

    images, weight, number = _tensors()
    blocks.forward(images, weight, number, number, 1, 1.0)
    blocks.forward_given(images, weight, number, number, number, number, 1.0)
    scalars, steps = [torch.ones(1, dtype=torch.float64)] * 5, torch.ones(1, dtype=torch.int64)
    adam_update._update([number], [number], number, number, steps, scalars, False)


def _backward() -> None:
    from fmnist.functional.kernels.cpu import blocks

    images, weight, number = _tensors()
    pooled = torch.zeros(1, *images.shape[1:3], 1, 1, images.shape[-1])
    which = torch.zeros(pooled.shape, dtype=torch.uint8)
    results = (number, number, images, pooled, which)
    blocks.backward(pooled, images, weight, number, *results, 1, 1.0, True)
