"""What this machine can do at most, and what fraction of it the engine reaches.

    python benchmarks/limits.py [--json FILE]

The floor is the time of all floating-point operations of a training step at the speed of the
machine's largest matrix products. Convolution and memory limits say what stands in between.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time

from fmnist import process

process.prepare()  # before torch, as the commands do it

import contenders
import torch
from common import machine, median, prepare, table, timed, write_json

from fmnist.functional.model import feature_count
from fmnist.functional.types import ModelConfig

EPOCH = 60_000


def flops(config: ModelConfig) -> int:
    """Floating-point operations of training on one image, two a multiply-add.

    Forward once and backward twice, but for the first layer, whose input needs no gradient.
    Normalisation, pooling and the optimizer are not counted: the floor is a floor.
    """
    side, inputs, total = 28, 1, 0
    for i, outputs in enumerate(config.channels):
        side = side - config.kernel_size + 1
        forward = 2 * outputs * side * side * inputs * config.kernel_size**2
        total += forward * (2 if i == 0 else 3)
        side, inputs = side // 2, outputs
    widths = [feature_count(config), *config.hidden, 10]
    return total + sum(6 * a * b for a, b in itertools.pairwise(widths))


def best_of(run, device, times=20):  # noqa: ANN001, ANN201
    """The shortest of several runs: what the machine can do when nothing disturbs it."""
    run()
    return min(timed(run, device) for _ in range(times))


def main() -> int:
    """Measure the limits and the engine, and print what fraction is reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    device = torch.device(args.device)
    split = prepare(12_000, device)
    a = torch.rand(2048, 2048, device=device)
    gemm = 2 * 2048**3 / best_of(lambda: a @ a, device) / 1e9
    big = torch.rand(64 << 20, device=device)
    out = torch.empty_like(big)
    bandwidth = 2 * big.numel() * 4 / best_of(lambda: out.copy_(big), device) / 1e9
    floor = flops(ModelConfig()) * EPOCH / (gemm * 1e9)
    rows = []
    for size in (100, 500, 1000):
        convolutions = convolution_seconds(size, args.lanes, device)
        engine = contenders.Lanes(split, size, args.lanes)
        engine.epoch()
        times = []
        for _ in range(5):
            times.append(timed(engine.epoch, device) / args.lanes * EPOCH / len(split.labels))
            time.sleep(0.1)
        rows.append((size, floor, convolutions, median(times), floor / median(times)))
    print(f"matrix products {gemm:.0f} GFLOP/s, copying {bandwidth:.0f} GB/s")
    print(table(
        ["batch size", "floor (s)", "oneDNN's convolutions (s)", "engine (s)", "of the floor"],
        [[size, f"{f:.2f}", f"{c:.2f}", f"{e:.2f}", f"{r:.2f}"] for size, f, c, e, r in rows],
    ))  # fmt: skip
    names = ("batch_size", "floor", "convolutions", "engine", "fraction")
    write_json(
        args.json,
        {
            "about": machine(device),
            "gemm_gflops": gemm,
            "copy_gb_per_second": bandwidth,
            "lanes": args.lanes,
            "rows": [dict(zip(names, row, strict=True)) for row in rows],
        },
    )
    return 0


def convolution_seconds(batch: int, lanes: int, device: torch.device) -> float:
    """What torch's own convolutions take of an epoch a trial, forward and backward, no more.

    Called once for all lanes, channels last: the fastest way there is to call them on a CPU.
    """
    last = torch.channels_last
    plain = ([1, 1], [0, 0], [1, 1], False, [0, 0])

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, device=device).contiguous(memory_format=last)

    layers = [
        (
            rand(batch, 28, 28, 1).permute(0, 3, 1, 2),
            rand(12 * lanes, 5, 5, 1).permute(0, 3, 1, 2),
            1,
        ),
        (rand(batch, 12 * lanes, 12, 12), rand(24 * lanes, 12, 5, 5), lanes),
    ]

    def run() -> None:
        for x, weight, groups in layers:
            y = torch.ops.aten.convolution(x, weight, weight.new_zeros(len(weight)), *plain, groups)
            torch.ops.aten.convolution_backward(
                y,
                x,
                weight,
                [len(weight)],
                *plain,
                groups,
                [groups > 1 or x.shape[1] > 1, True, True],
            )

    run()
    times = [timed(run, device) for _ in range(15)]
    return median(times) / lanes * EPOCH / batch


if __name__ == "__main__":
    sys.exit(main())
