"""The benchmark scripts run, with networks of any shape."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
SHAPE = ["--channels", "2,3", "--kernel-size", "3", "--padding", "same"]
ENGINES = "eager channels last on a core each,lanes"


@pytest.mark.parametrize(
    ("script", "options"),
    [
        (
            "engines.py",
            [*SHAPE, "--lanes", "2", "--batch-sizes", "50", "--images", "100", "--rounds", "1",
             "--budget", "1", "--engines", ENGINES],
        ),
        ("features.py", ["--channels", "2,3", "--images", "100", "--rounds", "1"]),
        ("limits.py", [*SHAPE, "--batch-sizes", "50", "--images", "100", "--rounds", "1"]),
        (
            "neighbours.py",
            ["--batch-sizes", "50", "--images", "100", "--rounds", "1", "--seconds", "0.1"],
        ),
    ],
)  # fmt: skip
def test_script_prints_a_table_and_writes_it(script, options, tmp_path):
    path = tmp_path / "found.json"
    command = [sys.executable, str(SCRIPTS / script), *options, "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "| ---" in done.stdout
    assert json.loads(path.read_text())["rows"]
