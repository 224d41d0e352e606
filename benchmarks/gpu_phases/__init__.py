"""What gpu.py runs: the phases, most valuable first, each in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

LOST = 3
"""The exit status of a phase's process that cannot use the GPU any more."""


class Phase(NamedTuple):
    """One phase of gpu.py; its module has a function ``run(part)``.

    Attributes:
        title: what the summary calls it.
        weight: its share of the time, as a part of the sum of all weights.
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
"""Module -> what it is, in the order in which they run."""


def write_json(path: Path, content: object) -> None:
    """Write a JSON file that is whole at any moment."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    new.replace(path)
