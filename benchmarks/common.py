"""Shared by the benchmark scripts: data, description of the machine, medians, tables."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import fmnist
from fmnist.functional.types import ModelConfig, Split
from fmnist.utils import provenance

NUMBERS = {
    "learning_rate": 0.001,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.0,
}


def prepare(examples: int, device: torch.device) -> Split:
    """Return the first images of the real training set, on the device."""
    train = fmnist.load().train
    return Split(train.images[:examples].to(device), train.labels[:examples].to(device))


def add_network(parser: argparse.ArgumentParser) -> None:
    """Add options that choose the network."""
    parser.add_argument("--channels", type=_numbers, default="12-24", metavar="N-N-...",
                        help="of the blocks of the network")  # fmt: skip
    parser.add_argument("--kernel-size", type=int, default=5)
    parser.add_argument("--padding", type=_padding, default=0, help="a number, or same")


def network(args: argparse.Namespace, **settings: Any) -> ModelConfig:
    """Return the network that the options say."""
    sizes = {"kernel_size": args.kernel_size, "padding": args.padding}
    return ModelConfig(channels=args.channels, **sizes, **settings)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.replace(",", "-").split("-")))


def _padding(text: str) -> int | str:
    return text if text == "same" else int(text)


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that ``run`` takes, including work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def spread(values: Sequence[float]) -> float:
    """Return half the distance between the quartiles over the median; 0 for a single value."""
    if len(values) < 3:
        return (max(values) - min(values)) / 2 / median(values)
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2 / median(values)


def machine(device: torch.device) -> dict[str, str]:
    """Return the machine and date of a measurement."""
    return {
        "machine": provenance.machine(device),
        "threads": str(torch.get_num_threads()),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def write_json(path: str | None, content: dict[str, object]) -> None:
    """Write the results to the file of ``--json``."""
    if path:
        Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table, padded to be readable as plain text."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first, *rest = zip(row, widths, strict=True)
        return f"| {' | '.join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)])} |"

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join(map(line, [cells[0], rule, *cells[1:]]))
