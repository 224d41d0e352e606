"""The short form of disk.py: disks that fill up, are read-only or go away."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ALONE = ["unshare", "--mount", "--map-root-user"]
"""A command that allows mounts without rights, invisible to other processes."""


def mounting_works(folder: Path) -> bool:
    command = [*ALONE, "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def test_study_survives_full_and_read_only_disks(tmp_path):
    if not mounting_works(tmp_path):
        pytest.skip("this machine lets nobody mount a disk of memory")
    script = Path(__file__).with_name("disk.py")
    done = subprocess.run(
        [*ALONE, sys.executable, str(script), "--times", "2", "--seed", "1", "--drawn-once"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "survived 7" in done.stdout
