"""The command of the plain loop: whose folder it writes to, and what it says when it is stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
from in_process import call
from strategies import random_split

from fmnist.functional.types import ModelConfig
from fmnist.reference import fit_reference

SMALL = ["--epochs", "1", "--set", "batch_size=500", "--set", "holdout=500"]


def reference(*args, cwd):
    return call("reference", *SMALL, *args, cwd=cwd)


@pytest.mark.usefixtures("sliced")
def test_only_results_of_the_same_study_are_overwritten(tmp_path):
    out = tmp_path / "run"
    one = ["--set", "learning_rate=0.01", "--out", "run"]
    assert reference(*one, cwd=tmp_path).returncode == 0
    assert reference(*one, cwd=tmp_path).returncode == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for lost in (False, True):
        if lost:
            (out / "reference.toml").unlink()
        done = reference("--set", "learning_rate=0.02", "--out", "run", cwd=tmp_path)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        said = "results.csv, which a study" if lost else "another study (learning_rate"
        assert line.startswith(f"error: --out run holds {said}")
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {p: c for p, c in before.items() if p.name not in ("reference.toml", ".lock")} == {
        p: c for p, c in after.items() if p.name != ".lock"
    }


@pytest.mark.usefixtures("sliced")
def test_precision_that_it_does_not_compute_in_is_refused(tmp_path):
    for value in ("bfloat16", "float32,bfloat16"):
        done = reference("--set", f"precision={value}", "--out", "run", cwd=tmp_path)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("error:")
        assert "bfloat16" in line
        assert not (tmp_path / "run").exists()
    numbers = {"learning_rate": 0.01, "weight_decay": 0.0, "momentum": 0.0}
    epochs = fit_reference(
        ModelConfig(precision="bfloat16"), "sgd", numbers, random_split(4), random_split(4),
        batch_size=2, seed=0, epochs=1,
    )  # fmt: skip
    with pytest.raises(ValueError, match="bfloat16"):
        next(epochs)


def test_interrupted_command_only_says_that_it_stopped(tmp_path):
    command = [sys.executable, "-m", "fmnist.reference", "--out", "run"]
    child = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip  # a shell's background job ignores it
    try:
        until = time.monotonic() + 60
        while not (tmp_path / "run" / "reference.toml").exists():
            assert time.monotonic() < until
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
    finally:
        child.kill()
    assert (child.returncode, said) == (130, "\nstopped\n")
