"""Measures the limits of this machine, and the fraction of them that the engine reaches.

    python benchmarks/limits.py [--json FILE]

The floor is the time of all floating-point operations of a training step at the speed of large
matrix products. The limits of convolutions and memory explain the difference. Products and engine
take turns. The result is the median of the fractions of the turns.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time

from fmnist.utils import runtime

runtime.prepare()  # before torch, as the commands do it

import contenders
import torch
from common import machine, median, prepare, spread, table, timed, write_json

from fmnist.functional.cnn import feature_count
from fmnist.functional.types import ModelConfig

EPOCH = 60_000


def flops(config: ModelConfig) -> int:
    """Return the floating-point operations of training on one image, two for each multiply-add.

    The backward pass counts twice, but once in the first layer, whose input needs no gradient.
    Normalisation, pooling and the optimizer are not counted, so this is a lower bound.
    """
    side, inputs, total = 28, 1, 0
    for i, outputs in enumerate(config.channels):
        side = side - config.kernel_size + 1
        forward = 2 * outputs * side * side * inputs * config.kernel_size**2
        total += forward * (2 if i == 0 else 3)
        side, inputs = side // 2, outputs
    widths = [feature_count(config), *config.hidden, 10]
    return total + sum(6 * a * b for a, b in itertools.pairwise(widths))


def main() -> int:
    """Measure the limits and the engine in turns, and print the fraction."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=6000, help="an epoch of the engine")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    device = torch.device(args.device)
    split = prepare(args.images, device)
    scale = EPOCH / args.images / args.lanes
    a = torch.rand(2048, 2048, device=device)
    big = torch.rand(64 << 20, device=device)
    out = torch.empty_like(big)
    sizes = (100, 500, 1000)
    engines = [contenders.Lanes(split, size, args.lanes) for size in sizes]
    speeds, copies, rounds = [], [], []
    for engine in engines:
        engine.epoch()
    for _ in range(args.rounds):
        copies.append(2 * big.numel() * 4 / timed(lambda: out.copy_(big), device) / 1e9)
        rounds.append([])
        for size, engine in zip(sizes, engines, strict=True):
            # The limits at this moment: the load of a shared machine changes within seconds.
            speeds.append(2 * 2048**3 / min(timed(lambda: a @ a, device) for _ in range(3)))
            convolutions = convolution_seconds(size, args.lanes, device)
            floor = flops(ModelConfig()) * EPOCH / speeds[-1]
            time.sleep(0.1)
            rounds[-1].append((floor, convolutions, timed(engine.epoch, device) * scale))
    rows = []
    for size, turns in zip(sizes, zip(*rounds, strict=True), strict=True):
        floors, convolutions, times = zip(*turns, strict=True)
        fractions = [floor / own for floor, _, own in turns]
        columns = [*map(median, (floors, convolutions, times, fractions)), spread(fractions)]
        rows.append((size, *columns))
    gemm = median(speeds) / 1e9
    print(f"matrix products {gemm:.0f} GFLOP/s, copying {median(copies):.0f} GB/s")
    print(table(
        ["batch size", "floor (s)", "oneDNN's convolutions (s)", "engine (s)", "of the floor"],
        [
            [size, f"{f:.2f}", f"{c:.2f}", f"{e:.2f}", f"{r:.2f} ±{100 * w:.0f} %"]
            for size, f, c, e, r, w in rows
        ],
    ))  # fmt: skip
    names = ("batch_size", "floor", "convolutions", "engine", "fraction", "spread")
    write_json(
        args.json,
        {
            "about": machine(device),
            "gemm_gflops": gemm,
            "copy_gb_per_second": median(copies),
            "lanes": args.lanes,
            "rows": [dict(zip(names, row, strict=True)) for row in rows],
        },
    )
    return 0


def convolution_seconds(batch: int, lanes: int, device: torch.device) -> float:
    """Return the time of torch's convolutions per trial and epoch, forward and backward.

    They are called once for all lanes with channels last, the fastest way on a CPU.
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
    return min(timed(run, device) for _ in range(3)) / lanes * EPOCH / batch


if __name__ == "__main__":
    sys.exit(main())
