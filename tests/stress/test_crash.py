"""The short form of crash.py: a study that is killed a few times ends like one that is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_study_survives_six_kills():
    """In a process of its own: it forks, which goes badly beside threads."""
    script = Path(__file__).with_name("crash.py")
    done = subprocess.run(
        [sys.executable, str(script), "--kills", "6", "--seed", "5"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'kills': 6" in done.stdout
