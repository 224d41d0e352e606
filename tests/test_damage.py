"""What a finished study left is damaged or lost: made anew, or refused in one line; never wrong."""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slice_study import dataset
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from fmnist import checksums, files, grid, trouble
from fmnist.config import StudyConfig
from fmnist.data import Dataset
from fmnist.errors import UserError
from fmnist.functional.types import ModelConfig, Split
from fmnist.results import winner
from fmnist.run import run_study
from fmnist.views.progress import Progress

CONFIG = StudyConfig(
    name="damaged",
    epochs=2,
    holdout=100,
    model=ModelConfig(channels=(3, 4), hidden=(8,)),
    grid={"seed": (0, 1, 2)},
)


class Said(Progress):
    """Keeps the messages."""

    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)


@pytest.fixture(scope="module")
def small():
    whole = dataset()
    return Dataset(
        Split(whole.train.images[:400], whole.train.labels[:400]),
        Split(whole.test.images[:100], whole.test.labels[:100]),
        "a slice",
    )


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """A finished study that nobody touches."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run_study(CONFIG, out, dataset=small)
    return out


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it."""
    return shutil.copytree(whole, tmp_path / "run")


def again(out, small):
    """The same study again: what it said, and its results."""
    said = Said()
    return run_study(CONFIG, out, dataset=small, progress=said), "\n".join(said.lines)


def points(folder):
    """Every scalar of a run of TensorBoard."""
    found = []
    for path in sorted(folder.glob("*tfevents*")):
        for event in EventFileLoader(str(path)).Load():
            found += [
                (value.tag, event.step, value.tensor.float_val[:])
                for value in event.summary.value
                if value.tag.partition("/")[0] in ("loss", "accuracy")
            ]
    return sorted(found, key=repr)


def test_what_was_left_is_noted_in_the_format_of_sha256sum(run):
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", checksums.NAME],
        cwd=run, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    named = {line.split("  ")[1] for line in (run / checksums.NAME).read_text().splitlines()}
    assert {"results.csv", "report.md", "report.html", "best/params.safetensors"} <= named
    assert {f"parameters/{number}.safetensors" for number in range(3)} <= named


def test_a_whole_study_is_left_alone(run, small):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}
    _, said = again(run, small)
    assert "nothing to train" in said
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}
    assert after == before


@pytest.mark.parametrize(
    "lost",
    ["results.csv", "history.csv", "report.html", "figures", "best", "best/config.json"],
)
@pytest.mark.parametrize("how", ["gone", "torn"])
def test_what_can_be_made_anew_is(run, whole, small, lost, how):
    path = run / lost
    if how == "torn":
        for file in [path, *path.rglob("*")]:
            if file.is_file():
                file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    results, said = again(run, small)
    assert "nothing to train" in said
    assert "missing or damaged, and made anew" in said
    assert lost in said
    assert len(results) == 3
    for name in ("results.csv", "history.csv", "best/params.safetensors", "best/config.json"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    assert checksums.wrong(run) == []


def test_a_report_that_is_made_anew_says_who_trained_it(run, whole, small, monkeypatch):
    before = (run / "report.md").read_text().replace(str(whole), str(run))
    monkeypatch.setattr("fmnist.provenance.commit", lambda: "of another day")
    (run / "report.md").unlink()
    again(run, small)
    assert (run / "report.md").read_text() == before


def test_events_that_are_torn_or_lost_are_written_again(run, whole, small):
    folders = sorted(path for path in (run / "tensorboard").iterdir() if path.name[:4] == "seed")
    assert len(folders) == 3
    (event,) = folders[0].glob("*tfevents*")
    event.write_bytes(event.read_bytes()[:-7])
    shutil.rmtree(folders[1])
    again(run, small)
    for folder in folders:
        expected = points(whole / "tensorboard" / folder.name)
        assert len(expected) == 2 * 4 + 2
        assert points(folder) == expected


def test_a_winner_whose_parameters_are_damaged_is_refused(run, small):
    best = winner(grid.results(grid.open_study(CONFIG, f"sqlite:///{run}/study.db"), CONFIG),
                  CONFIG.metric)  # fmt: skip
    path = run / "parameters" / f"{best.number}.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # a bit of a weight: it can still be read
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path.name} is missing or damaged.*another --out"):
        again(run, small)
    other = run / "parameters" / f"{(best.number + 1) % 3}.safetensors"
    path.write_bytes(bytes(content[:-3]) + bytes([content[-3] ^ 1]) + bytes(content[-2:]))
    other.unlink()
    _, said = again(run, small)
    assert f"{other} is missing or damaged, and only training brings it back" in said
    assert "made anew" not in said


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kind=st.sampled_from(["bits", "zeros", "cut", "text"]), seed=st.integers(0, 2**32 - 1))
def test_a_damaged_database_is_refused_or_harmless(whole, small, tmp_path_factory, kind, seed):
    """Results that come back are those that were told: each has a digest."""
    out = tmp_path_factory.mktemp("damaged") / "run"
    out.mkdir()
    chance, content = random.Random(seed), bytearray((whole / "study.db").read_bytes())
    place = chance.randrange(len(content))
    if kind == "bits":
        for _ in range(chance.choice((1, 50))):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif kind == "zeros":
        size = chance.randint(1, 5000)
        content[place : place + size] = bytes(len(content[place : place + size]))
    elif kind == "cut":
        content = content[:place]
    else:
        words = [found.start() for found in re.finditer(rb"[ -~]{8,}", bytes(content))]
        content[chance.choice(words) + chance.randrange(8)] = chance.choice(b'0123456789{}[],":az')
    (out / "study.db").write_bytes(content)
    url, results = f"sqlite:///{out}/study.db", {}
    with contextlib.suppress(UserError), trouble.told(out, url):
        opened = grid.open_study(CONFIG, url)
        results = {result.number: result for result in grid.results(opened, CONFIG)}
    shutil.rmtree(out)
    told = grid.results(grid.open_study(CONFIG, f"sqlite:///{whole}/study.db"), CONFIG)
    assert set(results) <= {result.number for result in told}
    for result in told:
        assert results.get(result.number, result) == result


def test_a_database_that_is_none_is_one_line(run, small):
    (run / "study.db").write_bytes(b"this is no database" * 1000)
    with pytest.raises(UserError, match=r"study\.db cannot be used: file is not a database"):
        again(run, small)


def test_a_result_that_was_changed_in_the_database_is_refused(run, small):
    import sqlite3

    with sqlite3.connect(run / "study.db") as database:
        ((key, value),) = database.execute(
            "select trial_user_attribute_id, value_json from trial_user_attributes "
            "where key = 'test_accuracy' limit 1"
        )
        changed = json.dumps(json.loads(value) + 0.01)
        database.execute(
            "update trial_user_attributes set value_json = ? where trial_user_attribute_id = ?",
            (changed, key),
        )
    database.close()
    with pytest.raises(UserError, match=r"damaged.*trial \d is not as it was written"):
        again(run, small)


def test_leftovers_of_a_kill_are_swept(tmp_path):
    with files.scratch_folder(tmp_path) as folder:
        (folder / "picture.png").write_bytes(b"half")
        kept = shutil.copytree(folder, tmp_path / ".killed.fmnist-part")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / ".curves.png.x.fmnist-part").touch()
    (tmp_path / ".theirs.part").touch()
    files.sweep(tmp_path)
    assert not kept.exists()
    assert sorted(p.name for p in tmp_path.rglob("*")) == [".theirs.part", "figures"]


def test_a_lost_folder_is_not_made_again(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.write_text(tmp_path / "gone" / "figures" / "x.png", "")
    assert not list(Path(tmp_path).iterdir())
