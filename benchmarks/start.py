"""Measures the time from the command `python -m fmnist.study` to the end of its first step.

    python benchmarks/start.py [--runs N]

A first run, which is not counted, caches the data and compiles the kernels.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time

from common import median, spread

FIRST_STEP = """
import os, sys, time
from fmnist.utils import runtime
runtime.prepare()  # as the command begins
from fmnist.engine import cuda_graph
def call(self, carry, inputs, times):
    self._step(carry, inputs)
    print(time.time() - float(sys.argv[1]), flush=True)
    os._exit(0)
cuda_graph._Looped.__call__ = call
from fmnist.study.command import main
main(["--quiet", "--device", "cpu", "--out", sys.argv[2]])
"""


def main() -> int:
    """Measure, and print the median."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    seconds = []
    for run in range(args.runs + 1):
        with tempfile.TemporaryDirectory() as out:
            child = subprocess.run(
                [sys.executable, "-c", FIRST_STEP, str(time.time()), out],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
        if run > 0:
            seconds.append(float(child.stdout))
    print(f"{median(seconds):.1f} s to the first training step (spread {spread(seconds):.0%})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
