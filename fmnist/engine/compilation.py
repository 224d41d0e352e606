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

from fmnist.functional.kernels import adam_update, norm_relu_pool

_WINOGRAD = ("_arrange_weights", "_convolve_group", "_gradients_of_chunk")
_DIRECT = (
    "_arrange_weights", "_convolve_block", "_merge_blocks", "_pool_block", "_sum_passed",
    "_merge_passed", "_gradients_of_chunk",
)  # fmt: skip

KERNELS: dict[str, dict[str, tuple[str, ...]]] = {
    "blocks": {
        "tasks": _DIRECT,
        "winograd_tasks": _WINOGRAD,
        "jobs": ("_run",),
        "adam": ("_update",),
    },
    "lanes": {
        "channels_last": ("forward", "backward", "forward_given"),
        "jobs": ("_run",),
        "adam": ("_update",),
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
    """Compile the kernels of a variant if they are not, half of them in another process.

    If that process cannot be started or fails, this one compiles the kernel later.

    Args:
        variant: as in :func:`compiled`.

    Returns:
        How many seconds it took.
    """
    began = time.perf_counter()
    if not compiled(variant):
        if variant == "blocks":
            _in_two_processes()
        else:
            _adam()
            _channels_last()
    _here.add(variant)
    return time.perf_counter() - began


def _adam() -> None:
    number = torch.zeros(1, 1)
    scalars, steps = [torch.ones(1, dtype=torch.float64)] * 5, torch.ones(1, dtype=torch.int64)
    adam_update._update([number], [number], number, number, steps, scalars, False)


def _channels_last() -> None:
    images, number = torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16), torch.zeros(1)
    pooled, *results = norm_relu_pool._forward(images, number, number)
    norm_relu_pool._given(images, number, number, *results[:2])
    norm_relu_pool._backward(pooled, images, number, *results)


def _in_two_processes() -> None:
    """Compile the kernels of the blocks, half of them in another process."""
    code = "from fmnist.engine import compilation as c; c._half(1)"
    quiet, other = subprocess.DEVNULL, None
    with contextlib.suppress(OSError):
        other = subprocess.Popen(
            [sys.executable, "-c", code], stdout=quiet, stderr=quiet, start_new_session=True
        )
    try:
        _half(0)
        if other:
            other.wait()
    finally:
        if other:
            other.kill()
            other.wait()
    _half(1)  # loads them, or compiles them if the other process could not


def _half(which: int) -> None:
    """Compile one half of the kernels of the blocks: 0 here, 1 in a process that also imports."""
    from fmnist.functional.kernels.cpu import jobs, tasks, winograd_tasks

    if which == 0:
        _adam()  # and the loop over tasks
    # These have much in common, which is then compiled once.
    direct = (tasks.convolve_block, tasks.pool_block, tasks.gradients_of_chunk)
    for module in (tasks, winograd_tasks):
        for job in vars(module).values():
            if isinstance(job, jobs.Job) and (job in direct) == bool(which):
                job.compile()
