"""A folder and its study in the storage: if either is lost or foreign, nothing is overwritten."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace

import optuna
import pytest
from strategies import tiny_data, tiny_study

from fmnist.study.run import run_study
from fmnist.tuning import storage_url
from fmnist.utils.errors import UserError

CONFIG = tiny_study("claimed")
TINY = tiny_data()


pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished study. Tests must not change it."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run_study(CONFIG, out, dataset=TINY)
    return out


@pytest.fixture
def run(whole, tmp_path):
    """A copy of the finished study."""
    return shutil.copytree(whole, tmp_path / "run")


def content(out):
    return {
        path.relative_to(out): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name not in (".lock", "study.db")
    }


def change(database, *commands):
    with closing(sqlite3.connect(database)) as connection, connection:
        for command in commands:
            connection.execute(command)


def emptied(run):
    (run / "study.db").write_bytes(b"")


def without_trials(run):
    change(run / "study.db", *(f"delete from {t}" for t in ("trials", "trial_values")))


LOSSES = {
    "gone": lambda run: (run / "study.db").unlink(),
    "emptied": emptied,
    "renamed": lambda run: change(run / "study.db", "update studies set study_name = 'other'"),
    "deleted": lambda run: optuna.delete_study(
        study_name=CONFIG.name, storage=storage_url.of_run(run)
    ),
    "without trials": without_trials,
    "without its last trial": lambda run: change(
        run / "study.db", "delete from trials where number = 1"
    ),
}


@pytest.mark.parametrize("left", ["everything", "parameters alone", "only the mark"])
@pytest.mark.parametrize("loss", LOSSES)
def test_lost_study_does_not_overwrite_its_results(run, loss, left):
    if left != "everything":
        (run / "results.csv").unlink()
        (run / "checksums.sha256").unlink()
    if left == "parameters alone":
        (run / ".run").unlink()
    if left == "only the mark":
        if loss.startswith("without"):
            return
        shutil.rmtree(run / "parameters")
    LOSSES[loss](run)
    before = content(run)
    for _ in range(2):
        with pytest.raises(UserError, match=r"restore .* or choose another --out"):
            run_study(CONFIG, run, dataset=TINY)
    assert content(run) == before
    assert (run / "study.db").exists() == (loss != "gone")


def test_missing_trial_is_detected(run):
    change(run / "study.db", "delete from trials where number = 0")
    before = content(run)
    with pytest.raises(UserError, match=r"damaged.*a trial is missing"):
        run_study(CONFIG, run, dataset=TINY)
    assert content(run) == before


def test_restored_study_continues(run, whole):
    (run / "study.db").unlink()
    with pytest.raises(UserError, match="restore it"):
        run_study(CONFIG, run, dataset=TINY)
    shutil.copy(whole / "study.db", run)
    assert len(run_study(CONFIG, run, dataset=TINY)) == 2


@pytest.mark.parametrize("lost", [["study.toml"], ["study.toml", ".run"]])
def test_folder_without_its_study_file_is_not_used_for_another_study(run, lost):
    for name in lost:
        (run / name).unlink()
    before = content(run)
    with pytest.raises(UserError, match="holds none of the name 'other'"):
        run_study(replace(CONFIG, name="other"), run, dataset=TINY)
    assert content(run) == before
    assert optuna.get_all_study_names(storage_url.of_run(run)) == [CONFIG.name]
    run_study(CONFIG, run, dataset=TINY)
    assert (run / "study.toml").read_text() == CONFIG.to_toml()
    assert (run / ".run").exists()


def test_two_folders_do_not_share_a_study(tmp_path):
    shared = {"storage": f"sqlite:///{tmp_path}/shared.db", "dataset": TINY}
    results = run_study(CONFIG, tmp_path / "first", **shared)
    with pytest.raises(UserError, match=r"belongs to another folder than .*second"):
        run_study(CONFIG, tmp_path / "second", **shared)
    (tmp_path / "first").rename(tmp_path / "moved")
    assert run_study(CONFIG, tmp_path / "moved", **shared) == results
    other = run_study(replace(CONFIG, name="other"), tmp_path / "third", **shared)
    assert [result.history for result in other] == [result.history for result in results]


def test_lost_identity_of_a_folder_can_be_written_by_hand(tmp_path):
    shared = {"storage": f"sqlite:///{tmp_path}/shared.db", "dataset": TINY}
    results = run_study(CONFIG, tmp_path / "run", **shared)
    mark = tmp_path / "run" / ".run"
    identity = mark.read_text()
    mark.write_text("")
    with pytest.raises(UserError, match=rf"which holds {identity} in its file \.run"):
        run_study(CONFIG, tmp_path / "run", **shared)
    mark.write_text(f"{identity}\n")
    assert run_study(CONFIG, tmp_path / "run", **shared) == results


def test_a_folder_of_a_shared_storage_needs_it(tmp_path):
    url = f"sqlite:///{tmp_path}/shared.db"
    run_study(CONFIG, tmp_path / "run", storage=url, dataset=TINY)
    with pytest.raises(UserError, match="give --storage as before"):
        run_study(CONFIG, tmp_path / "run", dataset=TINY)
    assert not (tmp_path / "run" / "study.db").exists()


def test_the_folders_own_storage_may_be_given(run):
    before = content(run)
    assert len(run_study(CONFIG, run, storage=storage_url.of_run(run), dataset=TINY)) == 2
    assert content(run) == before


def test_one_of_two_simultaneous_folders_owns_the_study(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/shared.db"

    def load(data):
        """A second folder takes the study at the same time."""
        study = optuna.load_study(study_name=CONFIG.name, storage=url)
        study.set_user_attr("fmnist:run", "another")
        return TINY

    monkeypatch.setattr("fmnist.data.fashion_mnist.load", load)
    with pytest.raises(UserError, match="belongs to another folder"):
        run_study(CONFIG, tmp_path / "first", storage=url)
    assert not (tmp_path / "first" / "parameters").exists()


def test_trials_without_an_owner_are_refused(tmp_path):
    url = f"sqlite:///{tmp_path}/shared.db"
    run_study(CONFIG, tmp_path / "first", storage=url, dataset=TINY)
    change(tmp_path / "shared.db", "delete from study_user_attributes where key = 'fmnist:run'")
    for name in ("first", "second"):
        with pytest.raises(UserError, match=r"is not the one that .* was begun with"):
            run_study(CONFIG, tmp_path / name, storage=url, dataset=TINY)


NAMES = ["results.csv", "checksums.sha256", "figures", "best", "checkpoints"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("beside", ["nothing", "an empty study.db"])
def test_files_of_others_are_not_overwritten(name, beside, tmp_path):
    (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).write_text("mine")
    if beside != "nothing":
        (tmp_path / "study.db").touch()
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=f"holds {name}, which a study would write over, but no"):
        run_study(CONFIG, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} - {".lock"} == before


def test_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    def none(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", none)
    with pytest.raises(UserError, match=r"cannot be locked \(No locks available\); choose"):
        run_study(CONFIG, tmp_path, dataset=TINY)


@pytest.mark.parametrize("target", ["study.toml", "nowhere"])
def test_dangling_link_as_study_file_is_refused(run, target):
    (run / "study.toml").unlink()
    (run / "study.toml").symlink_to(target)
    with pytest.raises(UserError, match=r"study\.toml"):
        run_study(CONFIG, run, dataset=TINY)
    assert (run / "study.toml").is_symlink()
