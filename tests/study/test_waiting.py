"""Trouble that passes: a study waits for a lock or a full disk and ends as an undisturbed one."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from compare_runs import differences, outcome
from optuna.trial import TrialState
from strategies import tiny_data, tiny_study

from fmnist.reports.tensorboard import mirror
from fmnist.reports.terminal import Progress, make_progress
from fmnist.study.run import run_study
from fmnist.tuning.patient_storage import PatientStorage
from fmnist.tuning.progress import Checkpointer
from fmnist.tuning.storage import open_study
from fmnist.utils.errors import UserError
from fmnist.utils.patience import patient

CONFIG = tiny_study("patient", epochs=2, seeds=3)
TINY = tiny_data()
LONG = 3.0
"""Seconds of a lock: more than SQLite and Optuna wait by themselves."""

pytestmark = pytest.mark.usefixtures("drawn_once")


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    run_study(CONFIG, out, dataset=TINY, max_lanes=1)
    return outcome(out)


@contextlib.contextmanager
def locked(database, seconds=LONG):
    """Hold the lock of a database, and release it after some seconds."""
    connection = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
    connection.execute("begin exclusive")
    release = threading.Timer(seconds, connection.rollback)
    release.start()
    try:
        yield
    finally:
        release.cancel()
        release.join()
        connection.close()


class Once(Progress):
    """Does something when a trial has ended for the first time, or an epoch; keeps warnings."""

    def __init__(self, stack, action, at="trial"):
        self.stack, self.action, self.lines = stack, action, []
        setattr(self, at, self.act)

    def act(self, _):
        if self.action:
            action, self.action = self.action, None
            self.stack.enter_context(action())

    def warning(self, text):
        self.lines.append(text)


@pytest.mark.parametrize("at", ["trial", "epoch", "group"])
def test_locked_database_is_waited_for(tmp_path, expected, at):
    out = tmp_path / "run"
    with contextlib.ExitStack() as stack:
        said = Once(stack, lambda: locked(out / "study.db"), at)
        run_study(CONFIG, out, dataset=TINY, progress=said, max_lanes=1)
    assert differences(outcome(out), expected) == []
    begins, ends = said.lines
    assert "database is locked; trying again for up to 600 s" in begins
    assert ends.startswith("that has passed, after ")


def test_database_that_is_locked_at_the_beginning_is_waited_for(tmp_path, expected):
    out = tmp_path / "run"
    with contextlib.ExitStack() as stack:
        interrupt = Once(stack, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_study(CONFIG, out, dataset=TINY, progress=interrupt, max_lanes=1)
    with locked(out / "study.db"):
        run_study(CONFIG, out, dataset=TINY, max_lanes=1)
    assert differences(outcome(out), expected) == []


def test_wait_ends_with_one_line_and_the_study_continues_later(tmp_path, expected):
    out = tmp_path / "run"
    with contextlib.ExitStack() as stack:
        said = Once(stack, lambda: locked(out / "study.db", 60))
        with pytest.raises(UserError, match="database is locked; when that is fixed, give the"):
            run_study(CONFIG, out, dataset=TINY, progress=said, wait=2, max_lanes=1)
    assert len(said.lines) == 1
    assert "for up to 2 s" in said.lines[0]
    run_study(CONFIG, out, dataset=TINY, max_lanes=1)
    assert differences(outcome(out), expected) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_wait_at_once(tmp_path, expected, number):
    out = tmp_path / "run"
    with contextlib.ExitStack() as stack:
        said = Once(stack, lambda: locked(out / "study.db", 60))
        timer = threading.Timer(1.0, os.kill, (os.getpid(), number))
        said.group = lambda event: timer.start() if event.index == 0 else None
        with pytest.raises(BaseException) as raised:  # noqa: PT011  # neither is an Exception
            run_study(CONFIG, out, dataset=TINY, progress=said, max_lanes=1)
        ended = time.monotonic()
    assert type(raised.value).__name__ in ("KeyboardInterrupt", "Terminated")
    assert time.monotonic() - ended < 5
    run_study(CONFIG, out, dataset=TINY, max_lanes=1)
    assert differences(outcome(out), expected) == []


@pytest.mark.parametrize("name", ["1.safetensors", "00000000.json", "results.csv", "curves.png"])
def test_full_disk_is_waited_for(tmp_path, expected, monkeypatch, drawn, name):
    """Each file is written at another time: with a trial, a snapshot, at the end, by matplotlib."""
    drawn.clear()
    full, rename = [True] * 4, Path.replace

    def fails(path, target):
        if Path(target).name == name and full:
            full.pop()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", fails)
    monkeypatch.setitem(Checkpointer.__init__.__kwdefaults__, "every", 0.0)
    out, said = tmp_path / "run", Once(None, None)
    run_study(CONFIG, out, dataset=TINY, progress=said, max_lanes=1)
    assert differences(outcome(out), expected) == []
    assert not full
    assert name in said.lines[0]
    assert "No space left on device; trying again for up to 600 s" in said.lines[0]


def test_a_part_of_an_event_is_removed_before_it_is_written_again(tmp_path, expected, monkeypatch):
    full = [True] * 3

    class Fills:
        """A file on a disk that takes a part of what is written."""

        def __init__(self, file):
            self.file, self.truncate = file, file.truncate

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, content):
            if full:
                full.pop()
                self.file.write(content[:5])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.file.name)
            self.file.write(content)

    class Place(type(Path())):
        def open(self, *args, **kwargs):
            return Fills(super().open(*args, **kwargs))

    monkeypatch.setattr(mirror, "Path", Place)
    out = tmp_path / "run"
    run_study(CONFIG, out, dataset=TINY, max_lanes=1)
    assert not full
    assert differences(outcome(out), expected) == []


def test_quiet_shows_warnings_on_one_line_each(capsys):
    with make_progress(quiet=True) as progress:
        progress.message("nothing")
        progress.warning("storage postgresql://me:hush@host/db\nis locked")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "storage postgresql://me:***@host/db is locked\n")


def test_result_whose_answer_was_lost_is_stored_once(tmp_path):
    """The connection broke after the commit, so the call is repeated."""
    study = open_study(replace(CONFIG, grid={"seed": (0,)}), f"sqlite:///{tmp_path}/study.db")
    storage, trial = study._storage, study.ask()
    assert isinstance(storage, PatientStorage)
    for _ in range(2):
        assert storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [0.5])
    with pytest.raises(RuntimeError):
        storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [0.6])
    with pytest.raises(RuntimeError):
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("get_trial_id_from_study_id_trial_number", (1, 0)),
        ("get_best_trial", (1,)),
        ("get_trial_params", (1,)),
        ("get_n_trials", (1,)),
        ("set_trial_user_attr", (2, "note", "mine")),
    ],
)
def test_every_call_waits_also_where_the_cache_is_empty(tmp_path, name, args):
    file = tmp_path / "study.db"
    study = open_study(CONFIG, f"sqlite:///{file}")
    study.tell(study.ask(), 0.5)
    study.ask()
    storage = open_study(CONFIG, f"sqlite:///{file}")._storage
    expected = getattr(storage, name)(*args)
    storage = open_study(CONFIG, f"sqlite:///{file}")._storage
    storage._studies.clear()
    storage._trial_id_to_study_id_and_number.clear()
    storage._study_id_and_number_to_trial_id.clear()
    with patient(60, lambda: None), locked(file, 2.0):
        assert getattr(storage, name)(*args) == expected
