"""The short form of crash.py: a study that is killed ends like an uninterrupted one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_study_survives_six_kills():
    """In a separate process, because forking beside threads is unsafe."""
    script = Path(__file__).with_name("crash.py")
    done = subprocess.run(
        [sys.executable, str(script), "--kills", "6", "--seed", "5", "--drawn-once"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'kills': 6" in done.stdout
