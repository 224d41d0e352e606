"""The caller's settings of torch: training neither depends on them nor changes them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

import torch

T = TypeVar("T")
Result = TypeVar("Result")

CPU = torch.device("cpu")


class _ProcessWide:
    """A context in which the settings that all threads share have torch's defaults.

    They are restored when the last thread has left it. One that restored them earlier would change
    the numbers of another that still computes.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._stack = threading.Lock(), 0, contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                _set_process_wide(self._stack)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._stack.close()


def _set_process_wide(stack: contextlib.ExitStack) -> None:
    if (dtype := torch.get_default_dtype()) != torch.float32:
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
    if torch.is_anomaly_enabled():
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
    onednn: Any = torch.backends.mkldnn
    for part in (onednn.matmul, onednn.conv):
        if part.fp32_precision not in ("none", "ieee"):
            stack.enter_context(fp32_precision(part, "ieee"))


_process_wide = _ProcessWide()


@contextlib.contextmanager
def torch_defaults() -> Iterator[None]:
    """Compute within the block as if nobody had changed torch's settings.

    These are the default dtype and device, autocast, inference mode, grad mode, anomaly mode and
    the precision of float32 on a CPU. They are restored at the end of the block. The number of
    threads and the deterministic mode remain, as they change no numbers of a CPU. The context is
    also a decorator. Several threads may be in it.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_process_wide)
        if torch.get_default_device() != CPU:
            stack.enter_context(CPU)
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        yield


@contextlib.contextmanager
def fp32_precision(part: Any, value: str) -> Iterator[None]:
    """Set the precision of float32 in a part of a library within the block.

    Args:
        part: such as ``torch.backends.cuda.matmul``.
        value: ``"ieee"``, ``"tf32"`` or ``"bf16"``.
    """
    before = part.fp32_precision
    part.fp32_precision = value
    try:
        yield
    finally:
        part.fp32_precision = "none"  # what was inherited from torch.backends is so again
        if part.fp32_precision != before:
            part.fp32_precision = before


def isolated(steps: Generator[T, None, Result]) -> Generator[T, None, Result]:
    """Run each step of a generator in :func:`torch_defaults`; between steps, nothing is changed."""
    with contextlib.closing(steps):
        while True:
            try:
                with torch_defaults():
                    item = next(steps)
            except StopIteration as end:
                result: Result = end.value
                return result
            yield item
