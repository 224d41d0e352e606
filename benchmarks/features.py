"""Measures how much longer a step takes with each training feature. The features take turns.

python benchmarks/features.py --channels 32-64 --precision bfloat16 --json features.json
"""

from __future__ import annotations

import argparse
import sys
import time

from fmnist.utils import runtime

runtime.prepare()  # before torch, as the commands do it

import torch
from common import add_network, machine, median, network, prepare, spread, table, write_json

import fmnist

FEATURES: dict[str, tuple[dict[str, str], dict[str, float]]] = {
    "none": ({}, {}),
    "flip": ({"flip": "random"}, {}),
    "alternating flip and shift": ({"flip": "alternating"}, {"shift": 2}),
    "erasing": ({}, {"erasing": 0.5}),
    "label smoothing": ({}, {"label_smoothing": 0.1}),
    "clipping": ({}, {"clip_norm": 1.0}),
    "average of parameters": ({}, {"ema_decay": 0.99}),
    "one-cycle": ({"schedule": "one-cycle"}, {"warmup": 0.3}),
}
"""The words and the numbers of each feature."""


def main() -> int:
    """Measure, print a table, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add_network(parser)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch-sizes", default="100,500")
    parser.add_argument("--images", type=int, default=2_000, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=5, help="turns each feature takes")
    parser.add_argument("--seeds", default="0,0", help="of the lanes")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    device = torch.device(args.device)
    split = prepare(args.images, device)
    model = fmnist.cnn(**vars(network(args, precision=args.precision)))
    seeds = [int(seed) for seed in args.seeds.split(",")]
    rows = []
    for batch_size in map(int, args.batch_sizes.split(",")):
        rows += measure(model, split, batch_size, seeds, args.rounds)
    print(table(
        ["feature", "batch size", "over none", "spread"],
        [[r["feature"], r["batch_size"], f"{r['ratio']:.3f}", f"{r['spread']:.1%}"] for r in rows],
    ))  # fmt: skip
    about = machine(device) | {
        name: vars(args)[name] for name in ("channels", "precision", "seeds")
    }
    write_json(args.json, {"about": about, "rows": rows})
    return 0


def measure(
    model: fmnist.Model, split: fmnist.Split, batch_size: int, seeds: list[int], rounds: int
) -> list[dict[str, object]]:
    """Measure one batch size. In each round, every feature has a turn."""
    probe = fmnist.Split(split.images[:1], split.labels[:1])  # evaluation should take no time
    lanes = {"learning_rate": [0.01, 0.001] * (len(seeds) // 2) + [0.01] * (len(seeds) % 2)}
    field = {
        name: fmnist.fit(
            model, fmnist.adam, split, probe, lanes=lanes | {"seed": seeds} | numbers,
            batch_size=batch_size, epochs=1000, **words,
        )
        for name, (words, numbers) in FEATURES.items()
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in field}
    for epochs in field.values():
        next(epochs)  # compiles, traces, fills caches
    for _ in range(rounds):
        for name, epochs in field.items():
            began = time.perf_counter()
            next(epochs).train.loss.tolist()
            seconds[name].append(time.perf_counter() - began)
    plain = median(seconds["none"])
    return [
        {
            "feature": name,
            "batch_size": batch_size,
            "seconds": median(times),
            "ratio": median(times) / plain,
            "spread": spread(times),
        }
        for name, times in seconds.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
