"""Convolutions: each back end by shape and lanes, forward and backward.

As in training, they are captured in a graph on a GPU, and called on a CPU.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch

from fmnist.engine.cuda_graph import capture_cuda
from fmnist.functional.kernels import conv
from fmnist.utils.device import cuda_arithmetic
from gpu_phases.part import Part


class Layer(NamedTuple):
    """A convolution of the network. In the first layer, lanes may share their images."""

    name: str
    inputs: int
    outputs: int
    side: int
    shared: bool


LAYERS = (
    Layer("1 to 12, shared images", 1, 12, 28, True),
    Layer("12 to 24", 12, 24, 12, False),
    Layer("1 to 12, own images", 1, 12, 28, False),
    Layer("32 to 64", 32, 64, 12, False),
)
NETWORKS = {"one seed": (0, 1), "seeds of their own": (2, 1)}
"""The two layers of the baseline, with and without shared images."""


def run(part: Part) -> None:
    """Measure, and report the fastest back end for the baseline's network."""
    backends = list(conv.BACKENDS)
    lanes = (2,) if part.quick else (64, 8)  # for a single lane all back ends are the same
    batches = (20,) if part.quick else (100, 1000)
    types = (torch.float32,) if part.quick else (torch.float32, torch.bfloat16)
    times: dict[tuple[object, ...], dict[str, tuple[float, float]]] = {}
    for dtype, count, batch, (place, layer) in itertools.product(
        types, lanes, batches, enumerate(LAYERS)
    ):
        kind = f"{str(dtype).removeprefix('torch.')}, {count} lanes, batch size {batch}"

        def measure(key=(dtype, count, batch, place), layer=layer) -> str:  # noqa: ANN001
            dtype, count, batch, _ = key
            # With shared images, lanes are one wide convolution in every back end.
            different = backends[:1] if layer.shared else backends
            found = {how: timed(part, layer, how, count, batch, dtype) for how in different}
            times[key] = dict.fromkeys(backends, found[backends[0]]) | found
            keep(part, times, backends)
            if layer.shared:
                return f"{sum(found[backends[0]]):.3f} ms"
            best = min(found, key=lambda how: sum(found[how]))
            return f"{best} is the fastest"

        part.check(f"{layer.name}, {kind}", measure)


def timed(
    part: Part, layer: Layer, how: str, lanes: int, batch: int, dtype: torch.dtype
) -> tuple[float, float]:
    """Return milliseconds forward and backward; infinity if memory runs out."""
    kernel = 5
    own = () if layer.shared else (lanes,)
    out = layer.side - kernel + 1

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(shape, device=part.device).to(dtype)

    try:
        x = rand(*own, batch, layer.inputs, layer.side, layer.side)
        weight = rand(lanes, layer.outputs, layer.inputs, kernel, kernel)
        bias, upstream = rand(lanes, layer.outputs), rand(lanes, batch, layer.outputs, out, out)

        convolve = functools.partial(conv.conv2d, backend=how)

        def forward() -> torch.Tensor:
            return torch.func.vmap(convolve, (None if layer.shared else 0, 0, 0))(x, weight, bias)

        def both() -> object:
            def one(x, weight, bias, upstream):  # noqa: ANN001
                if layer.inputs == 1:  # the gradient of the images is not needed
                    return torch.func.vjp(lambda w: convolve(x, w, bias), weight)[1](upstream)
                return torch.func.vjp(lambda x, w: convolve(x, w, bias), x, weight)[1](upstream)

            return torch.func.vmap(one, (None if layer.shared else 0, 0, 0, 0))(
                x, weight, bias, upstream
            )

        with cuda_arithmetic(tf32=False):
            first, whole = (part.median_ms(repeated(part, f), 5) for f in (forward, both))
        return first, max(whole - first, 0.0)
    except (torch.OutOfMemoryError, NotImplementedError):  # too large, or refused by a library
        torch.cuda.empty_cache()
        return float("inf"), float("inf")


def repeated(part: Part, run: Callable[[], object]) -> Callable[[], object]:
    """Return a function that repeats the work; on a GPU as a graph, without the time of Python."""
    if not part.cuda:
        return run
    return capture_cuda(lambda: void(run()), part.device)


def void(_: object) -> None:
    """Discard a value, because a graph requires functions that return None."""


def keep(
    part: Part, times: dict[tuple[object, ...], dict[str, tuple[float, float]]], backends: list[str]
) -> None:
    """Return the table of the times so far, and the sums over the baseline's network."""
    rows = [
        (LAYERS[place].name, str(dtype).removeprefix("torch."), lanes, batch,
         *(f"{own[how][0]:.3f} + {own[how][1]:.3f}" for how in backends))
        for (dtype, lanes, batch, place), own in times.items()
    ]  # fmt: skip
    header = ("layer", "type", "lanes", "batch size", *backends)
    part.table("Milliseconds forward + backward", header, rows)
    sums, wins = [], Counter[str]()
    for dtype, lanes, batch in dict.fromkeys(key[:3] for key in times):
        for images, places in NETWORKS.items():
            keys = [(dtype, lanes, batch, place) for place in places]
            if all(key in times for key in keys):
                total = {how: sum(sum(times[key][how]) for key in keys) for how in backends}
                best = min(total, key=lambda how: total[how])
                wins[best] += 1
                sums.append((f"{str(dtype).removeprefix('torch.')}, {images}", lanes, batch,
                             *(f"{total[how]:.3f}" for how in backends), best))  # fmt: skip
    header = ("the baseline's convolutions", "lanes", "batch size", *backends, "fastest")
    part.table("Milliseconds of a step's convolutions", header, sums)
    part.value("fastest", dict(wins.most_common()))
