"""The memory of a process that trains many trials of a tiny grid, one after the other.

    python tests/stress/memory.py [--trials 300] [--lanes 1]

Prints the resident memory after trials, and its growth since the first twentieth of them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fmnist.utils import runtime

runtime.prepare()

from slice_study import dataset

from fmnist.config.results import TrialResult
from fmnist.config.study import StudyConfig
from fmnist.data.fashion_mnist import Dataset
from fmnist.functional.types import ModelConfig, Split
from fmnist.reports.terminal import Progress
from fmnist.study.run import run_study


def resident() -> float:
    """Return the resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 2**20


class Curve(Progress):
    """Records the memory at the end of each trial."""

    def __init__(self) -> None:
        self.points: list[float] = []

    def trial(self, result: TrialResult) -> None:
        self.points.append(resident())


def curve(trials: int, lanes: int) -> list[float]:
    """Return the memory in MiB after each trial and its views."""
    whole = dataset()
    small = Dataset(
        Split(whole.train.images[:400], whole.train.labels[:400]),
        Split(whole.test.images[:100], whole.test.labels[:100]),
        "a slice",
    )
    config = StudyConfig(
        name="memory",
        epochs=1,
        holdout=100,
        model=ModelConfig(channels=(3, 4), hidden=(8,)),
        grid={"seed": tuple(range(trials))},
    )
    seen = Curve()
    with tempfile.TemporaryDirectory() as folder:
        run_study(config, folder, dataset=small, max_lanes=lanes, progress=seen)
    return seen.points


def main() -> int:
    """The long run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--lanes", type=int, default=1)
    args = parser.parse_args()
    points = curve(args.trials, args.lanes)
    warm = max(len(points) // 20, 1)
    for number in range(warm, len(points) + 1, warm):
        print(f"{number:4} trials {points[number - 1]:8.1f} MiB")
    print(f"grown by {max(points[warm:]) / points[warm - 1] - 1:.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
