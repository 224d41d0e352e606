"""Checks and measures everything on a GPU. It also runs on a CPU, as a rehearsal.

    python benchmarks/gpu.py [--seconds 420] [--json FILE] [--device cuda|cpu] [--quick]

The phases run in order of importance, each in a separate process with a share of the time. If one
raises, crashes or hangs, its findings are kept and the next one runs. The JSON is written after
each phase. The last lines printed, at most 80, are a summary to paste into a report. The exit
status is 1 if a check failed. Only the package and its dependencies are needed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu_phases import LOST, PHASES, write_json
from gpu_phases.summary import summary

HERE = Path(__file__).resolve().parent
TRIES = 5
"""Maximum number of processes of a phase. Errors of the GPU can make one unusable."""

GRACE = 20.0
"""Seconds beyond its share after which a phase is ended."""


def main() -> int:
    """Run the phases and print the summary. Return 1 if a check failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=420.0, help="default: 420")
    parser.add_argument("--json", type=Path, metavar="FILE", help="written anew after each phase")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: a GPU if any")
    parser.add_argument("--quick", action="store_true", help="only show that everything runs")
    parser.add_argument("--phases", default=",".join(PHASES), help="comma-separated")
    parser.add_argument("--data", metavar="DIR", help="the data set's files, as for fmnist.study")
    parser.add_argument("--fail", default="", help=argparse.SUPPRESS)  # PHASE=raise|crash|hang
    args = parser.parse_args()
    names = args.phases.split(",")
    if unknown := [name for name in names if name not in PHASES]:
        parser.error(f"--phases {unknown[0]!r}: allowed are {', '.join(PHASES)}")
    if args.seconds <= 0:
        parser.error("--seconds must be more than 0")
    if args.json and not args.json.parent.is_dir():
        parser.error(f"--json {args.json}: there is no folder {args.json.parent}")
    device = first_use(args.device, parser)
    found: dict[str, Any] = {
        "command": " ".join(["python benchmarks/gpu.py", *sys.argv[1:]]),
        "device": device,
        "quick": args.quick,
        "seconds": 0.0,
        "phases": {},
    }
    interrupted = False
    try:
        run_all(names, device, args, found)
    except KeyboardInterrupt:
        interrupted = True
    print("\n".join(summary(found)), flush=True)
    if interrupted:
        return 130
    return int(any(phase["status"] != "done" for phase in found["phases"].values()))


def run_all(names: list[str], device: str, args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Run the phases in sequence. Later phases share the time that earlier ones leave."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for place, name in enumerate(names):
            left = max(args.seconds - (time.monotonic() - began), 0.0)
            share = left * PHASES[name].weight / sum(PHASES[n].weight for n in names[place:])
            print(f"{PHASES[name].title} ({share:.0f} s)", file=sys.stderr, flush=True)
            found["phases"][name] = run(name, share, device, args, Path(folder), found)
            found["seconds"] = time.monotonic() - began
            if args.json:
                write_json(args.json, found)


def first_use(wanted: str | None, parser: argparse.ArgumentParser) -> str:
    """Import the common libraries in a process and use the device, as the first time is slow.

    This process does not import torch, so faults of a phase cannot affect it.

    Returns:
        ``"cuda"`` or ``"cpu"``.
    """
    script = (
        "import sys, optree, optuna, torch, fmnist.study.run, fmnist.tuning.scheduler\n"
        "device = sys.argv[1] or ('cuda' if torch.cuda.is_available() else 'cpu')\n"
        "torch.zeros(1, device=device)\n"
        "print(device)"
    )
    asked = subprocess.run(
        [sys.executable, "-c", script, wanted or ""],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if asked.returncode != 0:
        parser.error(f"--device {wanted or 'auto'}: {asked.stderr.strip().splitlines()[-1]}")
    return asked.stdout.split()[-1]


def environment() -> dict[str, str]:
    """Return the environment of the phases, with this folder and the package in their path."""
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def run(
    name: str,
    share: float,
    device: str,
    args: argparse.Namespace,
    folder: Path,
    found: dict[str, Any],
) -> dict[str, Any]:
    """Run a phase. Return its findings, ``status`` (done, failed), ``error`` and ``wall`` seconds.

    If an error of the GPU makes its process unusable, another process continues.
    """
    part, earlier = folder / f"{name}.json", folder / "earlier.json"
    earlier.write_text(json.dumps(found["phases"]), encoding="utf-8")
    began = time.monotonic()
    until = began + share
    command = [sys.executable, "-m", "gpu_phases", name, "--device", device]
    command += ["--until", str(until), "--part", str(part), "--earlier", str(earlier)]
    command += ["--quick"] * args.quick + (["--data", args.data] if args.data else [])
    phase, _, how = args.fail.partition("=")
    command += ["--fail", how] if phase == name else []
    result: dict[str, Any] = {"checks": [], "tables": {}, "values": {}}
    for _ in range(TRIES):
        code, error = end_of(command, until + GRACE)
        if part.exists():
            result |= json.loads(part.read_text(encoding="utf-8"))
        if code != LOST or time.monotonic() > until:
            break
    error = result.get("error") or error or ("" if result.get("done") else "ended without a word")
    failed = error or any(check["status"] == "failed" for check in result["checks"])
    result |= {"status": "failed" if failed else "done", "error": error}
    return result | {"wall": time.monotonic() - began}


def end_of(command: list[str], until: float) -> tuple[int, str]:
    """Run a command with a deadline. Return its exit status, and a reason if it failed."""
    # A separate process group, so that processes started by the phase end with it.
    child = subprocess.Popen(command, env=environment(), stdout=sys.stderr, start_new_session=True)
    try:
        code = child.wait(max(until - time.monotonic(), 0.1))
        return code, f"ended by {signal.Signals(-code).name}" if code < 0 else ""
    except subprocess.TimeoutExpired:
        return 1, f"ended {GRACE:.0f} s after its share of the time"
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


if __name__ == "__main__":
    sys.exit(main())
