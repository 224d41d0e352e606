"""The job script of docs/servers.md, with a replacement for SLURM's scontrol."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

ROOT = Path(__file__).parents[2]
(SCRIPT,) = re.findall("```bash\n(.*?)```", (ROOT / "docs" / "servers.md").read_text(), re.DOTALL)
STUDY = """\
[study]
name = "decay"
epochs = 6
holdout = 500
batch_size = 50
[model]
channels = [2, 2]
hidden = [4]
[grid]
learning_rate = [0.01, 0.001]
"""


@pytest.fixture
def job(tmp_path):
    """A function that starts the script. ``python`` trains on the slice; scontrol notes the job."""
    programs = tmp_path / "programs"
    programs.mkdir()
    command = f'{sys.executable} {ROOT}/tests/slice_command.py --no-views "$@"'
    for name, line in {
        "python": f"shift 2; exec {command}",
        "scontrol": f'echo "$@" >> {tmp_path}/requeued',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(programs)
    (tmp_path / "decay.toml").write_text(STUDY)
    (tmp_path / "job.sh").write_text(SCRIPT)
    env = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    return lambda: subprocess.Popen(
        ["bash", "job.sh"], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True
    )


def test_job_that_is_stopped_is_queued_again_and_continues(tmp_path, job):
    with job() as stopped:
        while not list(tmp_path.glob("runs/decay/tensorboard/*/*")):
            assert stopped.poll() is None, stopped.stderr.read()
            time.sleep(0.05)
        stopped.send_signal(signal.SIGTERM)
        said = stopped.stderr.read()
    assert stopped.returncode == 143, said
    assert "the same command continues where it was" in said
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"
    with job() as again:
        said = again.stderr.read()
    assert (again.returncode, said) == (0, "")
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"
    url = f"sqlite:///{tmp_path}/runs/decay/study.db"
    trials = optuna.load_study(study_name="decay", storage=url).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 2


def test_job_that_fails_is_not_queued_again(tmp_path, job):
    (tmp_path / "decay.toml").write_text("[study]\nepochs = 0\n")
    with job() as failed:
        said = failed.stderr.read()
    assert failed.returncode == 2
    assert said.startswith("error: decay.toml: epochs = 0")
    assert not (tmp_path / "requeued").exists()
