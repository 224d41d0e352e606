"""Engines: a step of lanes, of the plain loop and of the compiled one, at three batch sizes."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import contenders
import torch

from fmnist.utils.device import cuda_arithmetic
from gpu_phases.part import Part, SkipError

EPOCH = 60_000
COMPILING = 45.0
"""Seconds that torch.compile may take. With less time left it is skipped."""

Build = Callable[[contenders.Split, int, int], contenders.Contender]


class LanesTf32(contenders.Lanes):
    """The lanes with TF32."""

    precision = "tf32"


class LanesBfloat16(contenders.Lanes):
    """The lanes with products in bfloat16."""

    precision = "bfloat16"


def run(part: Part) -> None:
    """Measure each cell of the table, the most important first."""
    lanes = (1, 2) if part.quick else (64, 8, 1, 32, 128)
    batches = (100,) if part.quick else (100, 500, 1000)
    cells: list[tuple[str, Build, int, bool]] = [
        (f"lanes, {lanes[0]}", contenders.Lanes, lanes[0], False),
        ("eager", contenders.Eager, 1, False),
        (f"lanes, {lanes[0]}, TF32", LanesTf32, lanes[0], True),
        ("eager, TF32 (torch's default for convolutions)", contenders.Eager, 1, True),
        (f"lanes, {lanes[0]}, bfloat16", LanesBfloat16, lanes[0], False),
        ("compiled, CUDA graphs", contenders.CompiledGraphs, 1, False),
        *((f"lanes, {n}", contenders.Lanes, n, False) for n in lanes[1:]),
    ]
    rows: dict[str, dict[int, str]] = {}
    seconds: dict[str, dict[int, float]] = {}
    for name, build, count, rounded in cells:
        for batch in batches:

            def measure(name=name, build=build, count=count, rounded=rounded, batch=batch) -> str:  # noqa: ANN001
                with cuda_arithmetic(tf32=rounded):
                    step, spread = measured(part, build, batch, count)
                trial = step / count * EPOCH / batch / 1e3
                rows.setdefault(name, {})[batch] = f"{trial:.3f} ({step:.2f} ms)"
                seconds.setdefault(name, {})[batch] = trial
                keep(part, rows, seconds, batches)
                return f"{step:.3f} ms a step, spread {spread:.0%}; {trial:.3f} s a trial and epoch"

            part.check(f"{name}, batch size {batch}", measure)


def measured(part: Part, build: Build, batch: int, lanes: int) -> tuple[float, float]:
    """Return milliseconds per step: the median of short epochs, and the spread."""
    if build is contenders.CompiledGraphs:
        if not part.cuda:
            raise SkipError("there are no CUDA graphs on a CPU")
        if part.left() < COMPILING:
            raise SkipError("no time to compile")
        torch._dynamo.reset()  # else the second batch size is compiled for dynamic shapes
    steps = steps_of(batch, lanes, part.examples(), quick=part.quick)
    split = part.images(steps * batch)
    contender = build(split, batch, lanes)
    contender.epoch()  # traces, captures, compiles
    times = []
    for _ in range(2 if part.quick else 7):
        times.append(part.milliseconds(contender.epoch) / steps)
        if part.left() <= 0:
            break
    middle = statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4) if len(times) > 2 else (times[0], 0, times[-1])
    return middle, abs(high - low) / 2 / middle


def steps_of(batch: int, lanes: int, examples: int, *, quick: bool) -> int:
    """Return the number of steps of a short epoch, limited by the number of images.

    The fixed costs of an epoch (order, copies, evaluation) count more than in a full one.
    """
    steps = 3 if quick else 100 if lanes == 1 else max(20, 10_000 // batch)
    return min(steps, examples // batch)


def keep(
    part: Part,
    rows: dict[str, dict[int, str]],
    seconds: dict[str, dict[int, float]],
    batches: tuple[int, ...],
) -> None:
    """Return the table so far."""
    part.table(
        "Seconds a trial and epoch of 60,000 images (milliseconds a step)",
        ("engine", *(f"batch size {batch}" for batch in batches)),
        [(name, *(own.get(batch, "-") for batch in batches)) for name, own in rows.items()],
    )
    part.value("seconds_a_trial_and_epoch", seconds)
