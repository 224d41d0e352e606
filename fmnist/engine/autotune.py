"""Which way of convolving lanes is the fastest: a table says, or it is timed once in a run."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from fmnist.engine.cuda_graph import capture_cuda
from fmnist.functional import cnn
from fmnist.functional.kernels import conv
from fmnist.functional.types import ModelConfig

ROUNDS = 5

Clock = Callable[[Callable[[], None]], float]
"""Runs a function on the device and says how long that took."""


def convolution(
    config: ModelConfig, batch_size: int, lanes: int, device: torch.device, shared: bool
) -> str:
    """The back end of ``conv2d`` to train such lanes with.

    What is forced or in ``conv.MEASURED`` is taken; elsewhere all that memory allows are timed,
    forward and backward, on the network's own shapes. That takes a fraction of a second and is
    remembered.
    """
    if conv.is_settled(device):
        return conv.backend(device)
    return timed(config, batch_size, lanes, device, shared)


@functools.cache
def timed(
    config: ModelConfig,
    batch_size: int,
    lanes: int,
    device: torch.device,
    shared: bool,
    clock: Clock | None = None,
) -> str:
    """The back end that takes the least time by this clock, that of the device by default."""
    clock = clock or _gpu_milliseconds
    candidates = [how for how in conv.BACKENDS if how != "blocks"]  # blocks are for CPUs
    runs = {how: _layers(how, config, batch_size, lanes, device, shared) for how in candidates}
    times = {how: _time(run, clock) for how, run in runs.items()}
    return min(times, key=lambda how: times[how])


def _time(run: Callable[[], None], clock: Clock) -> float:
    """Infinity where there is not enough memory to try."""
    try:
        run()  # libraries choose algorithms when they first see a shape
        return clock(run)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return math.inf


def _layers(
    how: str,
    config: ModelConfig,
    batch_size: int,
    lanes: int,
    device: torch.device,
    shared: bool,
) -> Callable[[], None]:
    """Every convolution of the network and its gradients, on zeros of the right shapes."""
    side, inputs, k = cnn.IMAGE_SIZE, 1, config.kernel_size
    dtype = cnn.compute_dtype(config) or torch.float32
    layers = []
    for i, outputs in enumerate(config.channels):
        own = () if i == 0 and shared else (lanes,)
        x = torch.zeros(*own, batch_size, inputs, side, side, device=device, dtype=dtype)
        weight = torch.zeros(lanes, outputs, inputs, k, k, device=device, dtype=dtype)
        layers.append((x, weight, i > 0))
        side, inputs = (side - k + 1) // 2, outputs

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return conv.conv2d(x, weight, weight.new_zeros(weight.shape[0])).sum()

    def run() -> None:
        with conv.forced(how):
            for x, weight, for_x in layers:
                gradient = torch.func.grad(loss, argnums=(0, 1) if for_x else 1)
                dims = (0 if x.dim() == 5 else None, 0)
                torch.func.vmap(gradient, in_dims=dims)(x, weight)

    return run


def _gpu_milliseconds(run: Callable[[], None]) -> float:
    """The least of a few replays: steps are replayed too, so what Python takes does not count."""
    replay = capture_cuda(run, torch.device("cuda", torch.cuda.current_device()))
    times = []
    for _ in range(ROUNDS):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        replay()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended))
    return min(times)
