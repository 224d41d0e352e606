"""How commands end: a failed lane, a retry, a bug, a closed pipe."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from in_process import call


def fmnist(*args, cwd):
    return call("study", *args, cwd=cwd)


def rows(path):
    with path.open(newline="") as file:
        return {row["learning_rate"]: row for row in csv.DictReader(file)}


def bits(row):
    return {k: v for k, v in row.items() if k not in ("number", "seconds")}


@pytest.mark.usefixtures("sliced")
def test_diverging_lane_is_reported_and_can_be_retried(tmp_path):
    args = ["--epochs", "1", "--set", "batch_size=100", "--set", "holdout=500"]
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


def test_bug_gives_a_traceback_with_a_hint_and_no_password(tmp_path):
    script = (
        "import sys; from fmnist.utils import command_line\n"
        "def main(argv): raise ZeroDivisionError('of postgresql://me:hush-hush@host/db')\n"
        "command_line.run(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 70
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError: of postgresql://me:***@host/db" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("your command and the study file.")
    assert "hush" not in done.stderr


SMALL = ["--epochs", "1", "--set", "holdout=50000", "--set", "batch_size=2000",
         "--set", "learning_rate=0.001"]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "unbuffered"),
    [
        (["--dry-run"], False),
        (["--dry-run"], True),
        (["--help"], False),
        ([*SMALL, "--out", "run"], False),
        ([*SMALL, "--out", "run"], True),
    ],
)
def test_output_that_cannot_be_written_gives_one_line(tmp_path, args, unbuffered):
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    env |= {"PYTHONUNBUFFERED": "1"} if unbuffered else {}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fmnist.study", *args],
            stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False, env=env,
        )  # fmt: skip
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: standard output: No space left on device")
    assert done.returncode == 2


NOWHERE = """
import os, sys, tempfile
os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)  # torch sets it in the process that runs the tests
tempfile._candidate_tempdir_list = list
tempfile.tempdir = None
from fmnist.study import command as study
from fmnist.utils import command_line
from fmnist.view import command as view
command_line.run({"study": study.main, "view": view.main}[sys.argv.pop(1)])
"""


@pytest.mark.usefixtures("sliced")
def test_missing_folder_for_temporary_files_gives_one_line(tmp_path):
    """Python, torch and the servers need such a folder."""
    small = ["--epochs", "1", "--set", "holdout=500", "--set", "batch_size=1000"]
    one = ["--set", "learning_rate=0.001", "--out", "run"]
    assert fmnist(*small, *one, cwd=tmp_path).returncode == 0
    for arguments in (["study", *SMALL, "--out", "other"], ["view", "run"]):
        done = subprocess.run(
            [sys.executable, "-c", NOWHERE, *arguments],
            capture_output=True, text=True, cwd=tmp_path, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: there is no folder for temporary files; name one in the en")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        ("MemoryError()", 2, "error: there is not enough memory\n"),
        ("RuntimeError(\"DefaultCPUAllocator: can't allocate memory\")", 2,
         "error: there is not enough memory\n"),
        ("OSError(28, 'No space left on device', 'x.png')", 2,
         "error: x.png: No space left on device\n"),
        ("SystemExit(3)", 3, ""),
    ],
)  # fmt: skip
def test_system_errors_give_one_line(error, status, said):
    script = (
        "import torch; from fmnist.utils import command_line\n"
        f"def main(argv): raise {error}\ncommand_line.run(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (status, said)


def test_closed_pipe_gives_no_error(tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "fmnist.study", "--dry-run"],
        stdout=write, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    os.close(write)
    assert "Traceback" not in done.stderr
    assert done.returncode == 128 + signal.SIGPIPE


def test_exit_status_with_closed_streams(tmp_path):
    for closed, args, status in (("1>&-", "--dry-run", 0), ("2>&-", "--device x", 2)):
        done = subprocess.run(
            ["sh", "-c", f"exec {sys.executable} -m fmnist.study {args} {closed}"],
            capture_output=True, text=True, cwd=tmp_path, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (status, "", "")
