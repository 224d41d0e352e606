"""Runs one phase: ``python -m gpu_phases PHASE``. gpu.py calls it."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
import traceback
from pathlib import Path

from fmnist.utils import runtime

runtime.prepare()  # before torch, as the commands do it

import optuna
import torch

from gpu_phases import PHASES
from gpu_phases.part import Part, describe_error


def main() -> int:
    """Run the phase. Its findings are in the file ``--part``, even if it raises."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("phase", choices=PHASES)
    parser.add_argument("--device", required=True)
    parser.add_argument("--until", type=float, required=True, help="by the monotonic clock")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data")
    parser.add_argument("--part", type=Path, required=True)
    parser.add_argument("--earlier", type=Path, required=True)
    parser.add_argument("--fail", choices=("raise", "crash", "hang"))
    args = parser.parse_args()
    earlier = json.loads(args.earlier.read_text(encoding="utf-8"))
    part = Part(
        args.part,
        torch.device("cuda", 0) if args.device == "cuda" else torch.device(args.device),
        quick=args.quick,
        until=args.until,
        earlier=earlier,
        data=args.data,
    )
    try:
        if args.fail:
            fail_on_purpose(args.fail)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # Output of the package goes to stderr, as stdout is for the summary.
        with contextlib.redirect_stdout(sys.stderr):
            importlib.import_module(f"gpu_phases.{args.phase}").run(part)
    except Exception as error:
        traceback.print_exc()
        part.save(error=describe_error(error))
        return 1
    part.save(done=True)
    return 0


def fail_on_purpose(how: str) -> None:
    """Fail as a phase may: by an exception, a crash or a hang."""
    if how == "crash":
        os.abort()
    while how == "hang":
        pass
    raise RuntimeError("failed on purpose")


if __name__ == "__main__":
    sys.exit(main())
