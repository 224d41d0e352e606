"""What the benchmark scripts share: the data, the machine's description, medians, tables."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import fmnist
from fmnist.functional.types import Split
from fmnist.utils import provenance

NUMBERS = {
    "learning_rate": 0.001,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.0,
}


def prepare(examples: int, device: torch.device) -> Split:
    """The first images of the real training set, on the device."""
    train = fmnist.load().train
    return Split(train.images[:examples].to(device), train.labels[:examples].to(device))


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds that ``run`` takes, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def spread(values: Sequence[float]) -> float:
    """Half the distance between the quartiles, over the median; 0 for a single value."""
    if len(values) < 3:
        return (max(values) - min(values)) / 2 / median(values)
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2 / median(values)


def machine(device: torch.device) -> dict[str, str]:
    """Where and when a table was measured."""
    return {
        "machine": provenance.machine(device),
        "threads": str(torch.get_num_threads()),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def write_json(path: str | None, content: dict[str, object]) -> None:
    """Write the results where ``--json`` says."""
    if path:
        Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, padded so that it reads as plain text too."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first, *rest = zip(row, widths, strict=True)
        return f"| {' | '.join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)])} |"

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join(map(line, [cells[0], rule, *cells[1:]]))
