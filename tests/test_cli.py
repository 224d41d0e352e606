"""How commands end: a lane that fails, a second try, our own mistakes, a reader that leaves."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys

import optuna


def fmnist(*args, cwd):
    return subprocess.run(
        [sys.executable, "-m", "fmnist.study", *args],
        capture_output=True, text=True, timeout=300, cwd=cwd, check=False,
    )  # fmt: skip


def rows(path):
    with path.open(newline="") as file:
        return {row["learning_rate"]: row for row in csv.DictReader(file)}


def bits(row):
    return {k: v for k, v in row.items() if k not in ("number", "seconds")}


def test_a_lane_that_diverges_is_told_of_and_can_be_tried_again(tmp_path):
    args = ["--epochs", "1", "--set", "batch_size=1000", "--set", "holdout=50000"]
    rates = ["--set", "learning_rate=0.01,1e30,0.001"]
    done = fmnist(*args, *rates, "--out", "run", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    out = tmp_path / "run"
    table = rows(out / "results.csv")
    failed = table["1e+30"]
    assert (failed["state"], failed["test_accuracy"]) == ("FAIL", "")
    assert failed["reason"] == "the loss was not finite in epoch 1"
    for report in ("report.md", "report.html"):
        assert failed["reason"] in (out / report).read_text()
    study = optuna.load_study(study_name="baseline", storage=f"sqlite:///{out}/study.db")
    (trial,) = [trial for trial in study.trials if trial.state.name == "FAIL"]
    assert trial.user_attrs["fmnist:reason"] == failed["reason"]

    again = fmnist(*args, *rates, "--out", "run", cwd=tmp_path)
    assert again.returncode == 1
    assert "nothing to train" in again.stdout
    assert "--retry-failed" in again.stdout
    retried = fmnist(*args, *rates, "--out", "run", "--retry-failed", cwd=tmp_path)
    assert retried.returncode == 1
    assert "group 1/1: 1 trial, 1 epochs" in retried.stdout
    assert rows(out / "results.csv")["1e+30"]["number"] == "3"

    calm = fmnist(*args, "--set", "learning_rate=0.01,0.002,0.001", "--out", "calm", cwd=tmp_path)
    assert calm.returncode == 0
    mates = rows(tmp_path / "calm" / "results.csv")
    for rate in ("0.01", "0.001"):
        assert bits(mates[rate]) == bits(table[rate])


def test_our_own_mistake_is_a_traceback_with_a_line_on_it_and_no_password(tmp_path):
    script = (
        "import sys; from fmnist import cli\n"
        "def main(argv): raise ZeroDivisionError('of postgresql://me:hush-hush@host/db')\n"
        "cli.run(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 70
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError: of postgresql://me:***@host/db" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("your command and the study file.")
    assert "hush" not in done.stderr


def test_a_reader_that_leaves_is_no_mistake(tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "fmnist.study", "--dry-run"],
        stdout=write, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    os.close(write)
    assert "Traceback" not in done.stderr
    assert done.returncode == 128 + signal.SIGPIPE
