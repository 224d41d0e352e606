"""Applies a pure step many times over. On a GPU the step is captured once and replayed.

A step of a small network is a few hundred tiny kernels; launching them from Python takes longer
than running them. A CUDA graph launches them all at once. Capture wants tensors that stay where
they are, so the carry is copied into buffers of our own, and the step's last act is to copy its
result over its input: the one place where something is overwritten, and nobody else sees it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import optree
import torch

Step = Callable[[Any, Any], Any]
"""(carry, inputs) -> carry, trees of tensors; pure."""

Capture = Callable[[Callable[[], None], torch.device, Callable[[], None]], Callable[[], None]]
"""(run, device, reset) -> replay: records what ``run`` does to fixed buffers, to do it again.

It may call ``run`` a few times first, each time after ``reset``.
"""


def repeater(step: Step, device: torch.device) -> Callable[[Any, Any, int], Any]:
    """A function (carry, inputs, times) -> carry that applies ``step`` so many times."""
    return Replayed(step, capture_cuda) if device.type == "cuda" else _Looped(step)


class _Looped:
    def __init__(self, step: Step) -> None:
        self._step = step

    def __call__(self, carry: Any, inputs: Any, times: int) -> Any:
        for _ in range(times):
            carry = self._step(carry, inputs)
        return carry


class Replayed:
    """Captures the step on first use; the shapes must then stay the same.

    Args:
        step: what to repeat.
        capture: :func:`capture_cuda`, or what stands for it in a test.
    """

    def __init__(self, step: Step, capture: Capture) -> None:
        self._step, self._capture = step, capture
        self._replay: Callable[[], None] | None = None
        self._carry: Any = None
        self._inputs: Any = None

    def __call__(self, carry: Any, inputs: Any, times: int) -> Any:
        if self._replay is None:
            self._carry, self._inputs = optree.tree_map(torch.clone, (carry, inputs))
            device = optree.tree_leaves(carry)[0].device
            # A run advances the carry: without the reset, the next could pass the epoch's end.
            reset = functools.partial(_overwrite, self._carry, carry)
            self._replay = self._capture(self._step_in_place, device, reset)
        _overwrite((self._carry, self._inputs), (carry, inputs))
        for _ in range(times):
            self._replay()
        return optree.tree_map(torch.clone, self._carry)

    def _step_in_place(self) -> None:
        _overwrite(self._carry, self._step(self._carry, self._inputs))


def capture_cuda(
    run: Callable[[], None], device: torch.device, reset: Callable[[], None] = lambda: None
) -> Callable[[], None]:
    """Capture what ``run`` launches, after three runs on a side stream, as torch asks for."""
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                reset()
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    replay: Callable[[], None] = graph.replay
    return replay


def _overwrite(targets: Any, sources: Any) -> None:
    pairs = zip(optree.tree_leaves(targets), optree.tree_leaves(sources), strict=True)
    for target, source in pairs:
        target.copy_(source)
