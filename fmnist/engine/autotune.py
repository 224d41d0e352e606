"""Which variant of a model is the fastest: known, or timed once in a process."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import optree
import torch

from fmnist.engine.cuda_graph import capture_cuda
from fmnist.functional import losses, vmap
from fmnist.functional.types import Model, Params, State
from fmnist.utils.device import cuda_arithmetic

ROUNDS = 5

Clock = Callable[[Callable[[], None]], float]
"""Runs a function on the device and says how long that took."""


def choose(
    model: Model,
    batch_size: int,
    lanes: int,
    device: torch.device,
    *,
    shared: bool,
    shape: tuple[int, ...],
) -> tuple[str, Model]:
    """The variant of a model to train such lanes with, and its name.

    Where there are several, all that memory allows are timed, forward and backward, on inputs of
    this shape. That takes a fraction of a second and is remembered.

    Args:
        model: what trains.
        batch_size: examples a step.
        lanes: how many there are.
        device: where they train.
        shared: whether they see the same examples.
        shape: of an example.

    Returns:
        The name, empty where the model has no variants, and the variant.
    """
    variants = model.variants(device) if model.variants else {"": model}
    if len(variants) == 1:
        return next(iter(variants.items()))
    name = timed(model, batch_size, lanes, device, shared, shape)
    return name, variants[name]


@functools.lru_cache(maxsize=256)
def timed(
    model: Model,
    batch_size: int,
    lanes: int,
    device: torch.device,
    shared: bool,
    shape: tuple[int, ...],
) -> str:
    """The name of the variant that takes the least time on zeros of these shapes."""
    assert model.variants is not None
    own = () if shared else (lanes,)
    inputs = torch.zeros(*own, batch_size, *shape, device=device)
    params, state = optree.tree_map(
        lambda leaf: leaf.to(device), vmap.stack([model.init(0)] * lanes)
    )
    noise = tuple(
        torch.zeros(*own, batch_size, width, device=device) for width in model.noise_widths
    )
    dims = (0, 0, *[None if shared else 0] * 2)
    times = {}
    for name, variant in model.variants(device).items():
        gradient = torch.func.vmap(_gradient(variant), in_dims=dims)
        run = functools.partial(_void, gradient, params, state, inputs, noise)
        with cuda_arithmetic(tf32=model.tf32):
            times[name] = _time(run)
    return min(times, key=lambda name: times[name])


def _gradient(model: Model) -> Callable[..., Params]:
    def loss(params: Params, state: State, inputs: torch.Tensor, noise: object) -> torch.Tensor:
        logits, _ = model.apply(params, state, inputs, train=True, noise=noise)
        labels = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        return losses.cross_entropy(logits, labels).mean()

    return torch.func.grad(loss)


def _void(function: Callable[..., object], *args: object) -> None:
    function(*args)


def _time(run: Callable[[], None]) -> float:
    """Infinity where there is not enough memory to try, or a library has no such operation."""
    try:
        run()  # libraries choose algorithms when they first see a shape
        return _gpu_milliseconds(run)
    except (torch.OutOfMemoryError, NotImplementedError):
        torch.cuda.empty_cache()
        return math.inf


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
