"""Measures the limits of this machine, and the fraction of them that the engine reaches.

    python benchmarks/limits.py [--json FILE]
    python benchmarks/limits.py --channels 64-128 --batch-sizes 500

The floor is the time of all floating-point operations of a training step at the rate of
multiply-adds in the registers of all cores (on a GPU, at that of large matrix products, TF32 off).
Products, convolutions and memory explain the difference. Limits and engine take turns. The result
is the median of the fractions of the turns.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from typing import NamedTuple

from fmnist.utils import runtime

runtime.prepare()  # before torch, as the commands do it

import contenders
import torch
from common import (
    add_network,
    machine,
    median,
    network,
    prepare,
    spread,
    table,
    timed,
    write_json,
)
from multiply_adds import multiply_add_rate

from fmnist.functional.cnn import feature_count, frame
from fmnist.functional.types import ModelConfig

EPOCH = 60_000


class Turn(NamedTuple):
    """What was measured in a turn: operations or bytes a second, and seconds a trial-epoch."""

    batch_size: int
    rate: float
    product: float
    copied: float
    convolutions: float
    engine: float


def flops(config: ModelConfig) -> int:
    """Return the floating-point operations of training on one image, two for each multiply-add.

    The backward pass counts twice, but once in the first layer, whose input needs no gradient.
    Normalisation, pooling and the optimizer are not counted, so this is a lower bound.
    """
    side, inputs, total = 28, 1, 0
    for i, outputs in enumerate(config.channels):
        side = side + sum(frame(config)) - config.kernel_size + 1
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
    parser.add_argument("--batch-sizes", default="100,500,1000")
    add_network(parser)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    device = torch.device(args.device)
    model = network(args)
    split = prepare(args.images, device)
    scale = EPOCH / args.images / args.lanes
    a = torch.rand(2048, 2048, device=device)
    big = torch.rand(64 << 20, device=device)
    out = torch.empty_like(big)
    sizes = tuple(map(int, args.batch_sizes.split(",")))
    engines = [contenders.Lanes(split, size, args.lanes, model) for size in sizes]
    turns: list[Turn] = []
    for engine in engines:
        engine.epoch()
    for _ in range(args.rounds):
        copied = 2 * big.numel() * 4 / timed(lambda: out.copy_(big), device)
        for size, engine in zip(sizes, engines, strict=True):
            # The limits at this moment: the load of a shared machine changes within seconds.
            product = 2 * 2048**3 / min(timed(lambda: a @ a, device) for _ in range(3))
            rate = multiply_add_rate() if device.type == "cpu" else product
            convolutions = convolution_seconds(size, args.lanes, device, model)
            time.sleep(0.1)
            own = timed(engine.epoch, device) * scale
            turns.append(Turn(size, rate, product, copied, convolutions, own))
    work = flops(model) * EPOCH
    rows = []
    for size in sizes:
        of = [turn for turn in turns if turn.batch_size == size]
        fractions = [work / turn.rate / turn.engine for turn in of]
        rows.append({
            "batch_size": size,
            "floor": median([work / turn.rate for turn in of]),
            "products": median([work / turn.product for turn in of]),
            "convolutions": median([turn.convolutions for turn in of]),
            "engine": median([turn.engine for turn in of]),
            "fraction": median(fractions),
            "spread": spread(fractions),
        })  # fmt: skip
    rate, product, copied = (
        median([getattr(turn, name) for turn in turns]) / 1e9
        for name in ("rate", "product", "copied")
    )
    print(
        f"multiply-adds {rate:.0f} GFLOP/s, matrix products {product:.0f} GFLOP/s, "
        f"copying {copied:.0f} GB/s"
    )
    print(table(
        ["batch size", "floor (s)", "at the speed of products (s)", "oneDNN's convolutions (s)",
         f"engine, {args.lanes} lanes (s)", "of the floor"],
        [
            [row["batch_size"],
             *(f"{row[name]:.2f}" for name in ("floor", "products", "convolutions", "engine")),
             f"{row['fraction']:.2f} ±{100 * row['spread']:.0f} %"]
            for row in rows
        ],
    ))  # fmt: skip
    write_json(
        args.json,
        {
            "about": machine(device),
            "channels": args.channels,
            "kernel_size": args.kernel_size,
            "multiply_add_gflops": rate,
            "gemm_gflops": product,
            "copy_gb_per_second": copied,
            "lanes": args.lanes,
            "rows": rows,
        },
    )
    return 0


def convolution_seconds(batch: int, lanes: int, device: torch.device, model: ModelConfig) -> float:
    """Return the time of torch's convolutions per trial and epoch, forward and backward.

    They are called once for all lanes with channels last, the fastest way on a CPU.
    """
    last = torch.channels_last
    padding = model.kernel_size // 2 if model.padding == "same" else int(model.padding)
    plain = ([1, 1], [padding, padding], [1, 1], False, [0, 0])

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, device=device).contiguous(memory_format=last)

    k, side, inputs, layers = model.kernel_size, 28, 1, []
    for i, outputs in enumerate(model.channels):
        groups = lanes if i else 1  # all lanes see the same images
        x = rand(batch, inputs * groups, side, side)
        layers.append((x, rand(outputs * lanes, inputs, k, k), groups, i > 0))
        side, inputs = (side + 2 * padding - k + 1) // 2, outputs

    def run() -> None:
        for x, weight, groups, wants_input in layers:
            y = torch.ops.aten.convolution(x, weight, weight.new_zeros(len(weight)), *plain, groups)
            torch.ops.aten.convolution_backward(
                y, x, weight, [len(weight)], *plain, groups, [wants_input, True, True]
            )

    run()
    return min(timed(run, device) for _ in range(3)) / lanes * EPOCH / batch


if __name__ == "__main__":
    sys.exit(main())
