"""Repeated application of a pure step. On a GPU, the step is captured as a CUDA graph and replayed.

A step of a small network launches a few hundred short kernels. Launching them from Python takes
longer than running them; a CUDA graph launches all of them at once. A graph uses fixed addresses.
The carry is therefore copied into private buffers, and each step ends by copying its result over
its input. This is the only place where tensors are overwritten.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import optree
import torch

Step = Callable[[Any, Any], Any]
"""A pure function ``(carry, inputs) -> carry`` of trees of tensors."""

Capture = Callable[[Callable[[], None], torch.device, Callable[[], None]], Callable[[], None]]
"""A function ``(run, device, reset) -> replay``. ``replay()`` repeats the operations of ``run()``.

``run`` reads and writes fixed buffers. ``Capture`` may call it a few times before it records, each
time after ``reset()``.
"""


def repeater(step: Step, device: torch.device) -> Callable[[Any, Any, int], Any]:
    """Return a function ``(carry, inputs, times) -> carry`` that applies ``step`` several times.

    Args:
        step: the step.
        device: the device of its tensors. On a CUDA device the step is captured and replayed.
    """
    return Replayed(step, capture_cuda) if device.type == "cuda" else _Looped(step)


class _Looped:
    def __init__(self, step: Step) -> None:
        self._step = step

    def __call__(self, carry: Any, inputs: Any, times: int) -> Any:
        for _ in range(times):
            carry = self._step(carry, inputs)
        return carry


class Replayed:
    """Captures a step on the first call and replays it. The shapes must stay the same.

    Args:
        step: the step.
        capture: :func:`capture_cuda`, or a substitute in a test.
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
            # Each run advances the carry. Without the reset, it could pass the end of the epoch.
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
    """Capture the kernels that ``run`` launches as a CUDA graph.

    Source: the PyTorch documentation of CUDA graphs, which prescribes warm-up runs on a side
    stream; here there are three.

    Args:
        run: launches kernels on fixed buffers, without synchronising.
        device: the CUDA device.
        reset: called before each warm-up run.

    Returns:
        A function that replays the graph.
    """
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
