"""The phases of gpu.py, the most important first. Each runs in a separate process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

LOST = 3
"""Exit status of a process that can no longer use the GPU."""


class Phase(NamedTuple):
    """A phase of gpu.py. Its module has a function ``run(part)``.

    Attributes:
        title: its title in the summary.
        weight: its share of the time, relative to the sum of all weights.
    """

    title: str
    weight: float


PHASES = {
    "machine": Phase("Machine", 1),
    "kernels": Phase("Right: kernels against their definitions", 6),
    "training": Phase("Right: training", 4),
    "interruptions": Phase("Right: memory that runs out, and Ctrl-C", 3),
    "job": Phase("The main job", 5),
    "engines": Phase("Engines", 5),
    "convolutions": Phase("Convolutions", 3),
    "step": Phase("Where a step goes", 2),
}
"""The phases by module, in the order in which they run."""


def write_json(path: Path, content: object) -> None:
    """Write a JSON file atomically."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    new.replace(path)
