"""How commands end: a failed lane, a retry, a bug, a closed pipe."""

from __future__ import annotations

import csv
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import forked
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


@pytest.mark.usefixtures("sliced", "undrawn")
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
    assert "group 1/1: 1 trial, 1 epoch\n" in retried.stdout
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
SLICE = str(Path(__file__).parents[1] / "slice_command.py")


@pytest.mark.parametrize(
    ("args", "unbuffered"),
    [
        (["-m", "fmnist.study", "--dry-run"], False),
        (["-m", "fmnist.study", "--dry-run"], True),
        (["-m", "fmnist.study", "--help"], False),
        ([SLICE, "--no-views", "--set", "holdout=500", *SMALL[:2], *SMALL[4:]], False),
        ([SLICE, "--no-views", "--set", "holdout=500", *SMALL[:2], *SMALL[4:]], True),
    ],
)
def test_output_that_cannot_be_written_gives_one_line(tmp_path, args, unbuffered):
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    env |= {"PYTHONUNBUFFERED": "1"} if unbuffered else {}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, *args],
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


@pytest.mark.usefixtures("sliced", "undrawn")
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


@pytest.mark.usefixtures("sliced", "undrawn")
@pytest.mark.parametrize("package", ["study", "reference"])
def test_home_folder_is_expanded_in_options(tmp_path, monkeypatch, package):
    """A shell does not, in ``--out=~/x``."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    args = ["--epochs", "1", "--set", "learning_rate=0.01", "--set", "batch_size=1000"]
    given = [*args, "--set", "holdout=500", "--out=~/x", "--data=~/no", "--quiet"]
    done = call(package, *given, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "home" / "x" / "results.csv").exists()
    assert not (tmp_path / "~").exists()
    if package == "study":
        refused = call("view", "~/y", cwd=tmp_path)
        assert f"{tmp_path}/home/y: there is no run" in refused.stderr
        nobody = call(package, "--out=~nobody-of-this-name/x", cwd=tmp_path)
        assert (nobody.returncode, "no such home folder" in nobody.stderr) == (2, True)


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


GOES_ON = """
import os, sys, time
from fmnist.utils import command_line
def main(argv):
    command_line.outlive_output("the study")
    for number in range(int(argv[0])):
        print("line", number, flush=True)
        time.sleep(0.002)
    open("done", "w").close()
    return int(argv[1])
command_line.run(main)
"""


@pytest.mark.parametrize("status", [0, 1])
@pytest.mark.parametrize("lines", [1, 500])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_command_outlives_the_reader_of_its_output(tmp_path, status, lines, unbuffered):
    command = [sys.executable, "-c", GOES_ON, str(lines), str(status)]
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": env, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, **pipes) as child:
        child.stdout.close()
        said = child.stderr.read()
    assert said == "the reader of the output has left; the study goes on\n"
    assert child.returncode == status
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("status", "then"), [(0, 2), (1, 1)])
def test_command_outlives_a_full_output_file(tmp_path, status, then, unbuffered):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", GOES_ON, "500", str(status)],
            stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    said = "error: standard output: No space left on device; the study goes on\n"
    assert (done.returncode, done.stderr) == (then, said)
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("what", ["pipe", "full"])
def test_stderr_that_cannot_be_written_changes_no_status(tmp_path, what):
    read, write = os.pipe()
    os.close(read)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fmnist.study", "--device", "x"],
            stdout=subprocess.PIPE, stderr=write if what == "pipe" else full, cwd=tmp_path,
            check=False,
        )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stdout) == (2, b"")


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    script = (
        "from fmnist.utils import command_line\n"
        "def main(argv): print(open('file', 'w').fileno() > 2, file=open('said', 'w'))\n"
        "command_line.run(main)"
    )
    command = ["sh", "-c", f'exec {sys.executable} -c "$0" <&- >&- 2>&-', script]
    subprocess.run(command, cwd=tmp_path, check=False)
    assert (tmp_path / "said").read_text() == "True\n"


@pytest.fixture
def small_study(tmp_path):
    """The command of a study in a process; its folder is ``run``."""
    return [
        sys.executable, SLICE, "--no-views", "--epochs", "6", "--set", "holdout=500", "--set",
        "batch_size=50", "--set", "learning_rate=0.01,0.001", "--set", "channels=2-2", "--set",
        "hidden=4", "--out", str(tmp_path / "run"),
    ]  # fmt: skip


def states(out):
    study = optuna.load_study(study_name="baseline", storage=f"sqlite:///{out}/study.db")
    return [trial.state.name for trial in study.trials]


@pytest.mark.parametrize("closed", ["stdout", "both"])
def test_study_goes_on_when_its_reader_leaves(tmp_path, small_study, closed):
    """As in ``| head -2``, and with stderr in the same pipe."""
    stderr = subprocess.PIPE if closed == "stdout" else subprocess.STDOUT
    with forked.Popen(small_study, stdout=subprocess.PIPE, stderr=stderr, text=True) as child:
        assert [child.stdout.readline() for _ in range(2)]
        child.stdout.close()
        said = child.stderr.read() if child.stderr else ""
        assert child.wait(300) == 0
    if closed == "stdout":
        assert said == "the reader of the output has left; the study goes on\n"
    assert states(tmp_path / "run") == ["COMPLETE"] * 2


def test_study_under_nohup_goes_on_when_its_terminal_disappears(tmp_path, small_study):
    """nohup makes a process ignore SIGHUP. What it prints to the terminal fails from then on."""
    terminal, side = pty.openpty()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        child = subprocess.Popen(
            small_study, stdin=side, stdout=side, stderr=side, start_new_session=True
        )
    finally:
        signal.signal(signal.SIGHUP, before)
    os.close(side)
    seen = b""
    while b"epoch" not in seen:
        seen += os.read(terminal, 1000)
    os.close(terminal)
    child.send_signal(signal.SIGHUP)
    assert child.wait(300) == 0
    assert states(tmp_path / "run") == ["COMPLETE"] * 2


LIBRARIES = """
import logging, sys, warnings
import numpy as np
from fmnist.utils import command_line
def main(argv):
    np.float32(3e38) * np.float32(10)
    warnings.warn("a setting is deprecated", FutureWarning)
    warnings.warn("this is experimental", UserWarning)
    logging.getLogger("matplotlib.font_manager").warning("no such font")
    logging.getLogger("fmnist.data").warning("the disk is full")
    from fmnist.utils import runtime
    warnings.warn(f"{runtime._PRODUCTS} may differ", RuntimeWarning)
    return 0
command_line.run(main)
"""


@pytest.mark.parametrize(("options", "shown"), [([], False), (["-W", "default"], True)])
def test_no_warning_of_a_library_reaches_the_terminal(options, shown):
    done = subprocess.run(
        [sys.executable, *options, "-c", LIBRARIES], capture_output=True, text=True, check=True
    )
    for text in ("overflow", "deprecated", "experimental"):
        assert (text in done.stderr) == shown
    assert "no such font" not in done.stderr
    for text in ("the disk is full", "the last bits of a lane may differ"):
        assert done.stderr.count(text) == 1
