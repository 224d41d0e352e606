"""Compares the whole baseline study with fmnist.reference, as a user runs them.

    python benchmarks/study.py [--epochs N] [--rounds N] [--keep FOLDER] [--json FILE]

The times include start-up, evaluation and views. The two commands take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import machine, median, table, write_json

COMMANDS = {"lanes": "fmnist.study", "reference": "fmnist.reference"}


def main() -> int:
    """Time both commands and compare their results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--keep", metavar="FOLDER", help="leave the runs there")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    accuracy: dict[str, dict[str, float]] = {}
    keep = contextlib.nullcontext(args.keep) if args.keep else tempfile.TemporaryDirectory()
    with keep as folder:
        for turn in range(args.rounds):
            for name, module in COMMANDS.items():
                out = Path(folder) / f"{name}-{turn}"
                command = [sys.executable, "-m", module, "--quiet", "--out", str(out)]
                command += ["--epochs", str(args.epochs), "--device", args.device]
                began = time.perf_counter()
                subprocess.run(command, check=True)
                seconds[name].append(time.perf_counter() - began)
                with (out / "results.csv").open(newline="") as file:
                    accuracy[name] = {
                        f"{row['batch_size']}, {row['learning_rate']}": float(row["test_accuracy"])
                        for row in csv.DictReader(file)
                    }
    ratio = median(seconds["reference"]) / median(seconds["lanes"])
    print(table(["command", "seconds"], [[n, f"{median(s):.1f}"] for n, s in seconds.items()]))
    print(f"\nreference over lanes: {ratio:.2f}\n")
    print(table(
        ["batch size, learning rate", *COMMANDS],
        [[p, *(f"{accuracy[n][p]:.4f}" for n in COMMANDS)] for p in accuracy["lanes"]],
    ))  # fmt: skip
    device = torch.device("cuda" if torch.cuda.is_available() and args.device != "cpu" else "cpu")
    write_json(
        args.json,
        {
            "about": machine(device),
            "epochs": args.epochs,
            "seconds": seconds,
            "reference_over_lanes": ratio,
            "test_accuracy": accuracy,
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
