"""Compiles the kernels for the CPU, in two processes at the same time.

Numba compiles a kernel when it is first called, which would be in the middle of training, and one
after the other. The results are kept in a folder, see :mod:`fmnist.utils.runtime`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from fmnist.functional.kernels import adam_update, conv_block, norm_relu_pool

KERNELS = {
    "blocks": {"loops": ("forward", "backward", "forward_given"), "adam": ("update", "weights")},
    "lanes": {
        "channels_last": ("forward", "backward", "forward_given"),
        "adam": ("update", "weights"),
    },
}
"""The functions that Numba keeps, by the variant of the model and the module."""

_here: set[str] = set()


def compiled(variant: str) -> bool:
    """Return whether all kernels of a variant are compiled, by this process or an earlier one.

    Args:
        variant: its name, as :func:`fmnist.engine.autotune.choose` returns it.
    """
    folder = os.environ.get("NUMBA_CACHE_DIR")
    if variant not in KERNELS or variant in _here or folder is None:
        return True
    kept = [path.name for path in Path(folder).rglob("*.nbi")]
    return all(
        any(name.startswith(f"{module}.{function}-") for name in kept)
        for module, functions in KERNELS[variant].items()
        for function in functions
    )


def compile_kernels(variant: str) -> float:
    """Compile the kernels of a variant if they are not, the slowest in another process.

    If that process cannot be started or fails, this one compiles the kernel later.

    Args:
        variant: as in :func:`compiled`.

    Returns:
        How many seconds it took.
    """
    began = time.perf_counter()
    if not compiled(variant):
        _adam()
        _channels_last() if variant == "lanes" else _blocks()
    _here.add(variant)
    return time.perf_counter() - began


def _tensors() -> tuple[torch.Tensor, ...]:
    """Return images, weights and a number of a channel, all zero."""
    images = conv_block.pack(torch.zeros(1, 1, 2, 2))[None]
    return images, torch.zeros(1, 1, 1, 1, 1), torch.zeros(1, 1)


def _adam() -> None:
    number = torch.zeros(1, 1)
    scalars, steps = [torch.ones(1, dtype=torch.float64)] * 5, torch.ones(1, dtype=torch.int64)
    adam_update._update([number], [number], number, number, steps, scalars, False)


def _channels_last() -> None:
    images, number = torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16), torch.zeros(1)
    pooled, *results = norm_relu_pool._forward(images, number, number)
    norm_relu_pool._given(images, number, number, *results[:2])
    norm_relu_pool._backward(pooled, images, number, *results)


def _blocks() -> None:
    """Compile the blocks, the backward pass in another process."""
    code = "from fmnist.engine import compilation as c; c._blocks_backward()"
    quiet, other = subprocess.DEVNULL, None
    with contextlib.suppress(OSError):
        other = subprocess.Popen(
            [sys.executable, "-c", code], stdout=quiet, stderr=quiet, start_new_session=True
        )
    try:
        _blocks_forward()
        if other:
            other.wait()
    finally:
        if other:
            other.kill()
            other.wait()
    _blocks_backward()  # loads it, or compiles it if the other process could not


def _blocks_forward() -> None:
    from fmnist.functional.kernels.cpu import blocks

    images, weight, number = _tensors()
    blocks.forward(images, weight, number, number, 1, 1.0)
    blocks.forward_given(images, weight, number, number, number, number, 1.0)


def _blocks_backward() -> None:
    from fmnist.functional.kernels.cpu import blocks

    images, weight, number = _tensors()
    pooled = torch.zeros(1, *images.shape[1:3], 1, 1, images.shape[-1])
    which = torch.zeros(pooled.shape, dtype=torch.uint8)
    results = (number, number, images, pooled, which)
    blocks.backward(pooled, images, weight, number, *results, 1, 1.0, True)
