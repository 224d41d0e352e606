"""The command of a study on the small slice of the data: ``slice_command.py [FLAGS] ...``.

For tests that need a real process and do not care what it trains on. With ``--whole`` it trains on
all data; with ``--no-views`` it draws nothing when it has trained.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

from slice_study import dataset  # first: it prepares the process for torch

from fmnist.data import fashion_mnist
from fmnist.study.command import main
from fmnist.utils import command_line

if __name__ == "__main__":
    if "--whole" in sys.argv:
        sys.argv.remove("--whole")
    else:
        fashion_mnist.load = lambda folder=None: dataset()
    if "--no-views" in sys.argv:
        sys.argv.remove("--no-views")
        # In the place of the module, which loads much.
        sys.modules["fmnist.reports.publish"] = SimpleNamespace(publish=lambda *_, **__: [])
    command_line.run(main, stopped="stopped; the same command continues where it was")
