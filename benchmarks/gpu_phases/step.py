"""The time of a step: the slowest kernels, launches, and the distance from the limits."""

from __future__ import annotations

import os
from typing import Any

import contenders
import optree
import torch
from limits import flops
from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from fmnist.engine import trainer
from fmnist.engine.lanes import stacked_numbers
from fmnist.functional import batching, vmap
from fmnist.functional.types import ModelConfig
from gpu_phases.part import Part
from gpu_phases.training import group

MOST = 12

os.environ.setdefault("TEARDOWN_CUPTI", "0")  # else a second profile may have no kernels


def run(part: Part) -> None:
    """Profile a few steps of many lanes."""
    count = 2 if part.quick else 64
    for batch in (20,) if part.quick else (100, 1000):
        part.check(f"{count} lanes, batch size {batch}", lambda b=batch: profiled(part, count, b))


def profiled(part: Part, count: int, batch: int) -> str:
    """Report the kernels of some steps by their time, and the distance from the limits."""
    steps = 3 if part.quick else 20
    split = part.images(steps * batch)
    contender = contenders.Lanes(split, batch, count)
    contender.epoch()
    milliseconds = part.median_ms(contender.epoch, 3) / steps
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if part.cuda else [])]
    with profile(activities=kinds) as recorded:
        contender.epoch()
        if part.cuda:
            torch.cuda.synchronize(part.device)
    rows = taken(recorded.key_averages(), part.cuda)
    assert rows, "the profiler saw no kernels"
    total = sum(time for _, _, time in rows)
    what = "kernel" if part.cuda else "operation"
    part.table(
        f"{count} lanes, batch size {batch}: what takes most",
        (what, "share", "microseconds a step", f"{what}s a step"),
        [(name[:60], f"{time / total:.1%}", f"{time / steps:.1f}", f"{calls / steps:.1f}")
         for name, calls, time in rows[:MOST]],
    )  # fmt: skip
    calls = sum(calls for _, calls, _ in rows) / steps
    said = f"{milliseconds:.3f} ms a step, {calls:.0f} {what}s"
    said += f", {total / 1e3 / steps:.3f} ms of them one after the other"
    if part.cuda:
        busy = covered(kernel_times(recorded.events()))
        said += f", some {what} running for {busy / 1e3 / steps:.3f} ms of the profiled step"
    moved, arithmetic = bytes_moved(part, count, batch), flops(ModelConfig()) * batch * count
    part.value(f"bytes_moved_{batch}", moved)
    part.value(f"flops_{batch}", arithmetic)
    copy, products = part.limit("copy_gb_per_second"), part.limit("float32_tflops")
    if copy and products:
        said += (
            f"; {moved / milliseconds / 1e6 / copy:.0%} of the memory's limit"
            f", {arithmetic / milliseconds / 1e9 / products:.0%} of the arithmetic's"
        )
    return said


def taken(events: EventList, cuda: bool) -> list[tuple[str, int, float]]:
    """Return name, calls and own microseconds of kernels on a GPU or operations on a CPU."""
    rows = []
    for event in events:
        if cuda and event.device_type == torch.autograd.DeviceType.CUDA:
            rows.append((event.key, event.count, event.self_device_time_total))
        elif not cuda and event.self_cpu_time_total > 0:
            rows.append((event.key, event.count, event.self_cpu_time_total))
    return sorted(rows, key=lambda row: -row[2])


def kernel_times(events: EventList) -> list[tuple[float, float]]:
    """Return begin and end of each kernel on a GPU, in microseconds."""
    return [
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]


def covered(spans: list[tuple[float, float]]) -> float:
    """Return the time in which at least one of these runs; branches of a graph run in parallel."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total


class Counting(TorchDispatchMode):
    """Adds up the bytes that each operation reads and writes once. Views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            for leaf in optree.tree_leaves((args, kwargs, out), none_is_leaf=True):
                if isinstance(leaf, torch.Tensor):
                    self.bytes += leaf.numel() * leaf.element_size()
        return out


def bytes_moved(part: Part, count: int, batch: int) -> int:
    """Return the bytes of one step, operation by operation, from its trace."""
    own, split = group(count, batch), part.images(batch)
    state = trainer.start(*own, part.device)
    numbers = stacked_numbers(own.lanes, part.device)
    chosen = torch.arange(batch, device=part.device)
    _, model = trainer.variant(*own, split)  # may time variants, which must not be counted
    with Counting() as counted:
        vmap.train_step(
            state,
            batching.gather(split, chosen),
            numbers,
            shared=True,
            model=model,
            optimizer=own.program.optimizer,
        )
    return counted.bytes
