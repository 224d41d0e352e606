"""A study without --out: the same settings have the same folder, and others never do."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import call

from fmnist.config import loading
from fmnist.config.study import StudyConfig
from fmnist.rundir.folder import opened
from fmnist.rundir.places import Place, place
from fmnist.utils.errors import UserError

BASE = StudyConfig()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def begin(found: Place, reference=False):
    """What a run leaves when it is killed at once."""
    found.out.mkdir(parents=True, exist_ok=True)
    file = "reference.toml" if reference else "study.toml"
    (found.out / file).write_text(found.config.to_toml())
    return found


STUDIES = st.builds(
    lambda name, epochs, reference: (replace(BASE, name=name, epochs=epochs), reference),
    st.sampled_from(["baseline", "baseline-2", "a", "a" * 64, "a" * 63, "a-reference"]),
    st.integers(1, 4),
    st.booleans(),
)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(STUDIES, st.sampled_from(["begins", "is only planned", "is deleted"])),
        max_size=12,
    )
)
def test_each_study_keeps_its_own_folder(steps):
    """Whatever studies come in whatever order, and whichever folders are deleted between."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        holds = {}
        for (config, reference), then in steps:
            found = place(config, reference=reference)
            assert not loading.differences(replace(found.config, name=config.name), config)
            plain = Path("runs", f"{config.name}-reference" if reference else config.name)
            assert (found.note == "") == (found.out == plain)
            assert holds.get(found.out, (found.config, reference)) == (found.config, reference)
            known = [
                out for out, (held, kind) in holds.items()
                if kind == reference and held == replace(config, name=held.name)
                and held.name == config.name
            ]  # fmt: skip
            assert found.out in known or not known
            if then == "begins":
                begin(found, reference)
                holds[found.out] = (found.config, reference)
                assert place(config, reference=reference) == found
            elif then == "is deleted" and found.out in holds:
                shutil.rmtree(found.out)
                del holds[found.out]


def test_other_settings_get_a_number_and_the_reason_is_said():
    assert place(BASE) == Place(BASE, Path("runs/baseline"), "")
    begin(place(BASE))
    short = replace(BASE, epochs=1)
    found = place(short)
    assert found.config == replace(short, name="baseline-2")
    assert found.out == Path("runs/baseline-2")
    assert found.note == (
        "runs/baseline holds another study (epochs: 25 there, 1 here); "
        "this one is study baseline-2, in runs/baseline-2"
    )
    begin(found)
    assert place(short) == found
    assert place(BASE).out == Path("runs/baseline")
    third = begin(place(replace(BASE, epochs=2)))
    assert third.out == Path("runs/baseline-3")
    shutil.rmtree("runs/baseline-2")
    assert place(replace(BASE, epochs=2)) == third, "a gap does not matter"
    assert place(replace(BASE, epochs=3)).out == Path("runs/baseline-2")
    changed = place(replace(BASE, epochs=4, holdout=1000, seed=1, metric="validation_loss"))
    assert changed.note.count(" there, ") == 3
    assert "...); this one is" in changed.note


def test_a_number_does_not_make_a_name_too_long():
    long = replace(BASE, name="n" * 64)
    begin(place(long))
    found = place(replace(long, epochs=1))
    assert found.config.name == "n" * 62 + "-2"
    assert begin(found) == place(replace(long, epochs=1))


def test_a_folder_that_only_was_locked_or_is_empty_is_free():
    Path("runs/baseline").mkdir(parents=True)
    for name in (".lock", "study.db", "notes.txt"):
        Path("runs/baseline", name).touch()
        assert place(BASE).out == Path("runs/baseline")


@pytest.mark.parametrize("name", ["results.csv", "reference.toml", "figures"])
def test_files_of_others_are_left_alone(name):
    Path("runs/baseline").mkdir(parents=True)
    Path("runs/baseline", name).touch()
    found = place(BASE)
    assert found.out == Path("runs/baseline-2")
    assert found.note.startswith("runs/baseline holds other files; this one is study baseline-2")


@pytest.mark.parametrize("content", [b"nonsense", b"\xff", b"[study]\nepochs = 0\n", None])
def test_a_folder_whose_study_cannot_be_told_is_refused_when_it_is_opened(content):
    """It may be this very study, so a new folder would be wrong; it is not run either."""
    Path("runs/baseline").mkdir(parents=True)
    file = Path("runs/baseline/study.toml")
    if content is None:
        file.symlink_to("nowhere")
    else:
        file.write_bytes(content)
    done = call("study", "--epochs", "1")
    assert place(replace(BASE, epochs=1)).out == Path("runs/baseline")
    assert done.returncode == 2
    assert "runs/baseline/study.toml" in done.stderr
    begin(place(replace(BASE, name="baseline-2", epochs=1)))
    assert place(replace(BASE, epochs=1)).out == Path("runs/baseline-2"), "it is there, undamaged"


SMALL = ["--set", "batch_size=1000", "--set", "holdout=500", "--set", "learning_rate=0.01",
         "--set", "channels=2-2", "--set", "hidden=4"]  # fmt: skip


@pytest.mark.usefixtures("sliced", "undrawn")
def test_a_study_after_the_first_runs_beside_it_and_is_continued(tmp_path):
    """In one storage, where both need names."""
    url = f"sqlite:///{tmp_path}/all.db"
    said = [call("study", *SMALL, "--storage", url, "--epochs", n) for n in "1212"]
    assert [done.returncode for done in said] == [0, 0, 0, 0], said
    assert "holds another study (epochs: 1 there, 2 here); this one is" in said[1].stdout
    for again in said[2:]:
        assert "nothing to train" in again.stdout
    assert "this one is" not in said[0].stdout + said[2].stdout
    names = ["baseline", "baseline-2"]
    assert [loading.load_study(f"runs/{name}/study.toml").epochs for name in names] == [1, 2]
    assert sorted(os.listdir("runs")) == optuna.get_all_study_names(url) == names  # noqa: PTH208
    before = {path: path.read_bytes() for path in Path("runs").rglob("*.csv")}
    done = call("study", *SMALL, "--epochs", "2", "--out", "runs/baseline")
    assert done.returncode == 2
    assert done.stderr == (
        "error: --out runs/baseline holds another study (epochs: 1 there, 2 here); "
        "give this one its own, as with --out runs/baseline-3, or delete that folder\n"
    )
    assert {path: path.read_bytes() for path in before} == before


def killed(*_, **__):
    raise RuntimeError


@pytest.mark.usefixtures("sliced", "undrawn")
def test_a_study_that_was_killed_before_its_file_was_written_is_not_mixed(monkeypatch):
    """Its folder has only the storage. The same settings continue there; others are refused."""
    with monkeypatch.context() as patch:
        patch.setattr("fmnist.rundir.folder.RunFolder.take", killed)
        assert call("study", *SMALL, "--epochs", "1").returncode == 70
    assert sorted(os.listdir("runs/baseline")) == [".lock", "study.db"]  # noqa: PTH208
    done = call("study", *SMALL, "--epochs", "2")
    assert done.returncode == 2
    assert (
        "is already there and differs: epochs: 1 there, 2 here; give this one another name"
        in done.stderr
    )
    assert call("study", *SMALL, "--epochs", "1").returncode == 0
    assert call("study", *SMALL, "--epochs", "2").returncode == 0
    assert sorted(os.listdir("runs")) == ["baseline", "baseline-2"]  # noqa: PTH208


def test_two_that_start_together_do_not_share_a_folder():
    """Both found it free. The second one waits for nothing, and begins nothing."""
    first, second = place(BASE), place(replace(BASE, epochs=1))
    assert first.out == second.out
    with (
        opened(first.out, first.config),
        pytest.raises(UserError, match=r"working .* another --out"),
        opened(second.out, second.config),
    ):
        pass
    begin(first)
    with pytest.raises(UserError, match="holds another study"), opened(second.out, second.config):
        pass


@pytest.mark.parametrize("package", ["study", "reference"])
def test_a_dry_run_says_where_it_would_go_and_writes_nothing(package):
    done = call(package, "--dry-run", "--epochs", "1")
    assert (done.returncode, os.listdir()) == (0, [])  # noqa: PTH208
    begin(place(BASE, reference=package == "reference"), package == "reference")
    done = call(package, "--dry-run", "--epochs", "1")
    assert "; this one is study baseline-2, in runs/baseline-2" in done.stdout.splitlines()[0]
    assert len(os.listdir("runs")) == 1  # noqa: PTH208


@pytest.mark.parametrize("content", ["", "[grid]\n", "[optimizer]\n"])
@pytest.mark.parametrize("package", ["study", "reference"])
def test_a_study_without_a_grid_says_that_it_is_one_trial(package, content):
    Path("s.toml").write_text(content)
    done = call(package, "s.toml", "--dry-run", "--set", "learning_rate=0.1")
    said = "there is no grid: one trial, with learning_rate = 0.1, batch_size = 100, seed = 0"
    assert done.stdout.splitlines()[0] == said
    done = call(package, "s.toml", "--dry-run", "--set", "learning_rate=0.1,0.2")
    assert "there is no grid" not in done.stdout
    assert loading.load_study("s.toml").size == 1
