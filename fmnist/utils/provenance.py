"""Where a result comes from: command, machine, versions and commit."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("fmnist", "torch", "torchvision", "optuna", "tensorboard", "numpy")


def facts(
    command: str, device: torch.device, wall_seconds: float | None, source: str
) -> dict[str, str]:
    """The provenance of a run, as the reports show it.

    Args:
        command: the command line, without passwords.
        device: the device of the training.
        wall_seconds: how long the run took; None while it runs.
        source: where the data set was read from.

    Returns:
        Name -> value, without what is not known.
    """
    wall = {} if wall_seconds is None else wall_time(wall_seconds)
    return {
        "Command": command,
        "Machine": machine(device),
        "Device": str(device),
        "Versions": versions(),
        "Commit": commit(),
        "Date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "Data": source,
        **wall,
    }


def wall_time(seconds: float) -> dict[str, str]:
    """The entry that says how long a run took."""
    return {"Wall time": f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"}


def machine(device: torch.device) -> str:
    """The processor, its cores, the memory, the system, and the GPU when ``device`` is one."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    words = f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}"
    if device.type == "cuda":
        words += f", {torch.cuda.get_device_name(device)}"
    return words


def versions() -> str:
    """The versions of Python and of the packages that a result may depend on."""
    parts = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            parts.append(f"{name} {metadata.version(name)}")
    return ", ".join(parts)


def commit() -> str:
    """The commit of the checkout that this package runs from; empty outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        run = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip()


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()
