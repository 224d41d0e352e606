"""Damaged or lost files of a finished study are written again, or refused in one line."""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import sqlite3
import subprocess
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slice_study import dataset
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from fmnist.config.results import winner
from fmnist.config.study import StudyConfig
from fmnist.data.fashion_mnist import Dataset
from fmnist.functional.types import ModelConfig, Split
from fmnist.reports.tensorboard import mirror as tensorboard
from fmnist.reports.terminal import Progress
from fmnist.rundir import files, manifest, models
from fmnist.study.run import run_study
from fmnist.tuning import grid, storage_errors, storage_url
from fmnist.tuning.storage import open_study
from fmnist.utils.errors import UserError

CONFIG = StudyConfig(
    name="damaged",
    epochs=2,
    holdout=100,
    model=ModelConfig(channels=(3, 4), hidden=(8,)),
    grid={"seed": (0, 1, 2)},
)

BEST = [f"best/{name}" for name in ("params.safetensors", "config.json", "features.safetensors")]

pytestmark = pytest.mark.usefixtures("drawn_once")


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
    """A finished study. Tests must not change it."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run_study(CONFIG, out, dataset=small)
    return out


@pytest.fixture
def run(whole, tmp_path):
    """A copy of the finished study."""
    return shutil.copytree(whole, tmp_path / "run")


def again(out, small):
    """Run the study again. Return its messages and results."""
    said = Said()
    return run_study(CONFIG, out, dataset=small, progress=said), "\n".join(said.lines)


def points(folder):
    """Return the scalars of a run in TensorBoard."""
    found = []
    for path in sorted(folder.glob("*tfevents*")):
        for event in EventFileLoader(str(path)).Load():
            found += [
                (value.tag, event.step, value.tensor.float_val[:])
                for value in event.summary.value
                if value.tag.partition("/")[0] in ("loss", "accuracy")
            ]
    return sorted(found, key=repr)


def test_manifest_has_the_format_of_sha256sum(run):
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", manifest.NAME],
        cwd=run, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    head, *lines = (run / manifest.NAME).read_text().splitlines()
    named = {line.split("  ")[1] for line in lines}
    assert head == f"# fmnist, files: {len(named)}"
    assert {"results.csv", "report.md", "report.html", "best/params.safetensors"} <= named
    assert {f"parameters/{number}.safetensors" for number in range(3)} <= named


def test_undamaged_study_is_unchanged(run, small):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}
    _, said = again(run, small)
    assert "nothing to train" in said
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}
    assert after == before


@pytest.mark.parametrize(
    "lost",
    ["results.csv", "history.csv", "report.html", "figures", "best", *BEST[1:]],
)
@pytest.mark.parametrize("how", ["gone", "torn"])
def test_damaged_files_are_written_again(run, whole, small, lost, how):
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
    for name in ("results.csv", "history.csv", *BEST):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    assert manifest.damaged_files(run) == []


@pytest.mark.parametrize(
    ("how", "noted"), [("gone", True), ("torn", True), ("changed", True), ("torn", False)]
)
def test_artifacts_are_written_again(run, small, how, noted):
    folder = run / "artifacts"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(before) > 5
    if not noted:
        (run / manifest.NAME).unlink()
    if how == "gone":
        shutil.rmtree(folder)
    else:
        for path in folder.iterdir():
            content = path.read_bytes()
            path.write_bytes(content[:-9] if how == "torn" else b"x" + content[1:])
    _, said = again(run, small)
    assert ("missing or damaged, and made anew: artifacts/" in said) == noted
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert again(run, small)[1].endswith("nothing to train")


def test_restored_report_has_the_provenance_of_the_training(run, whole, small, monkeypatch):
    before = (run / "report.md").read_text().replace(str(whole), str(run))
    monkeypatch.setattr("fmnist.utils.provenance.commit", lambda: "of another day")
    (run / "report.md").unlink()
    again(run, small)
    assert (run / "report.md").read_text() == before


def test_truncated_or_missing_event_files_are_written_again(run, whole, small):
    folders = sorted(path for path in (run / "tensorboard").iterdir() if path.name[:5] == "trial")
    assert len(folders) == 3
    (event,) = folders[0].glob("*tfevents*")
    event.write_bytes(event.read_bytes()[:-7])
    shutil.rmtree(folders[1])
    (described,) = (run / "tensorboard").glob("*tfevents*")
    described.write_bytes(described.read_bytes()[:-7])
    again(run, small)
    tags = [tensorboard._tags(root / "tensorboard") for root in (run, whole)]
    assert tags[0] == tags[1] != set()
    for folder in folders:
        expected = points(whole / "tensorboard" / folder.name)
        assert len(expected) == 2 * 4 + 2
        assert points(folder) == expected


def torn(path):
    """Change a bit of the last number in a file. The file stays readable."""
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def parameters(run):
    """Return the parameter files of the winner and of another trial."""
    results = grid.results(open_study(CONFIG, storage_url.of_run(run)), CONFIG)
    best = winner(results, CONFIG.metric)
    other = next(result for result in results if result.number != best.number)
    return [models.model_path(run, result.number) for result in (best, other)]


@pytest.mark.parametrize("how", [torn, Path.unlink])
def test_parameters_of_the_winner_are_restored_from_best(run, whole, small, how):
    path, _ = parameters(run)
    how(path)
    _, said = again(run, small)
    assert f"{path} was missing or damaged, and is restored from {run}/best/" in said
    assert "made anew" not in said
    assert path.read_bytes() == (whole / path.relative_to(run)).read_bytes()
    assert again(run, small)[1].endswith("nothing to train")


def test_lost_parameters_of_the_winner_are_refused(run, small):
    path, _ = parameters(run)
    torn(path)
    torn(run / "best" / "params.safetensors")
    before = (run / manifest.NAME).read_bytes()
    for _ in range(2):
        with pytest.raises(UserError, match=f"{path.name} is missing or damaged.*another --out"):
            again(run, small)
    assert (run / manifest.NAME).read_bytes() == before


@pytest.mark.parametrize("how", [torn, Path.unlink])
def test_lost_parameters_of_another_trial_are_reported_at_each_run(run, small, how):
    _, path = parameters(run)
    how(path)
    for lost in (None, "results.csv", None):
        if lost:
            (run / lost).unlink()
        _, said = again(run, small)
        assert said.count(f"{path} is missing or damaged; only training in another --out") == 1
        assert ("made anew: results.csv" if lost else "nothing to train") in said
        assert ("made anew" in said) == (lost is not None)
    assert manifest.damaged_files(run) == [f"parameters/{path.name}"]


def test_retry_does_not_publish_a_winner_without_parameters(small, tmp_path):
    config = replace(CONFIG, grid={"learning_rate": (0.001, 1e30)})
    out = tmp_path / "run"
    results = run_study(config, out, dataset=small)
    best = winner(results, CONFIG.metric)
    assert [result.state for result in results if result.number != best.number] == ["FAIL"]
    for path in (models.model_path(out, best.number), out / "best" / "params.safetensors"):
        torn(path)
    before = (out / "results.csv").read_bytes()
    with pytest.raises(UserError, match="is the winner's so far; choose another --out"):
        run_study(config, out, dataset=small, retry_failed=True)
    assert (out / "results.csv").read_bytes() == before


def test_parameters_that_are_damaged_while_others_train_are_not_published(small, tmp_path):
    done = []

    class Damages(Said):
        def trial(self, result):
            done.append(result)
            if len(done) == 3:
                torn(models.model_path(tmp_path, winner(done, CONFIG.metric).number))

    for _ in range(2):
        with pytest.raises(UserError, match="is the winner's so far; choose another --out"):
            run_study(CONFIG, tmp_path, dataset=small, progress=Damages(), max_lanes=1)
    assert len(done) == 3
    assert not (tmp_path / "results.csv").exists()
    assert not (tmp_path / "best").exists()


def test_unfinished_study_without_its_best_parameters_is_refused_before_training(small, tmp_path):
    trained = []

    class Stops(Said):
        def trial(self, result):
            trained.append(result.number)
            if len(trained) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(CONFIG, tmp_path, dataset=small, progress=Stops(), max_lanes=1)
    torn(models.model_path(tmp_path, trained[0]))
    with pytest.raises(UserError, match="is the winner's so far; choose another --out"):
        run_study(CONFIG, tmp_path, dataset=small, progress=Stops(), max_lanes=1)
    assert len(trained) == 2


def test_missing_or_truncated_manifest_is_written_again(run, whole, small):
    content = (run / manifest.NAME).read_bytes()
    lines = content.splitlines(keepends=True)
    for left in (None, b"", content[:-9], b"".join(lines[:-2]), b"\xff" * 99):
        if left is None:
            (run / manifest.NAME).unlink()
        else:
            (run / manifest.NAME).write_bytes(left)
        assert manifest.damaged_files(run) is None
        (run / "results.csv").unlink(missing_ok=True)
        again(run, small)
        assert (run / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
        assert manifest.damaged_files(run) == []


def test_files_of_the_user_are_unchanged(run, small):
    names = ["notes.md", "figures/mine.png", "tensorboard/mine.txt", "best/why\nthis.txt"]
    for name in names:
        (run / name).write_text("mine")
    (run / "history.csv").unlink()
    again(run, small)
    assert not [name for name in names if name in (run / manifest.NAME).read_text()]
    for name in names:
        (run / name).unlink()
    assert again(run, small)[1].endswith("nothing to train")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kind=st.sampled_from(["bits", "zeros", "cut", "text"]), seed=st.integers(0, 2**32 - 1))
def test_damaged_database_is_refused_or_harmless(whole, small, tmp_path_factory, kind, seed):
    """A digest of each result detects changes."""
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
    url, found, again = storage_url.of_run(out), None, []
    with contextlib.suppress(UserError), storage_errors.translated(out, url):
        opened = open_study(CONFIG, url)
        results = grid.results(opened, CONFIG)
        again = [trial.point for trial in grid.pending(opened, CONFIG)]
        found = results
    shutil.rmtree(out)
    if found is not None:
        original = grid.results(open_study(CONFIG, storage_url.of_run(whole)), CONFIG)
        assert [result for result in found if result not in original] == []
        assert [r for r in original if r not in found and r.point not in again] == []


def test_file_that_is_no_database_gives_one_line(run, small):
    (run / "study.db").write_bytes(b"this is no database" * 1000)
    with pytest.raises(UserError, match=r"study\.db cannot be used: file is not a database"):
        again(run, small)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "trial_user_attributes set value_json = 0.987 where key = 'test_accuracy'",
            "not as it was written",
        ),
        ("trial_params set param_value = 1 - param_value", "not as it was written"),
        ("trial_system_attributes set key = 'x' where key = 'fmnist:history'", "has no history"),
        ("trial_system_attributes set key = 'x' where key = 'fmnist:sha256'", "has no checksum"),
        (
            "trial_system_attributes set key = 'x' where key = 'fmnist:parameters_sha256'",
            "not as it was written",
        ),
        ("trials set state = 'FAIL'", "not as it was written"),
        ("trials set state = 'RUNNING'", "RUNNING, which it was not"),
        ("trials set state = 'PRUNED'", "PRUNED"),
        ("trials set datetime_complete = null", "COMPLETE, which it was not"),
        ("trial_values set value = value + 1e-9", "not as it was written"),
        (
            "trial_intermediate_values set intermediate_value = 0.5 where step = 1",
            "not as it was written",
        ),
        ("trial_intermediate_values set step = 7 where step = 2", "not as it was written"),
        (
            "trial_system_attributes set value_json = '2' where key = 'grid_id'",
            "not as it was written",
        ),
        ("study_directions set direction = 'MINIMIZE'", "its direction is minimize"),
        ("study_system_attributes set value_json = char(0) || value_json", "Expecting value"),
        *(
            (f"{owner}_system_attributes set value_json = {value} where key like 'artifacts:%'", "")
            for owner in ("study", "trial")
            for value in (
                "7",
                "null",
                "replace(value_json, 'artifact_id', 'artifact_i,')",
                "replace(value_json, 'filename', 'file')",
                "json_quote(json_object('filename', 'x.png', 'artifact_id', '/etc/hostname'))",
                "json_quote(json_object('filename', 'x.png', 'artifact_id', '../x'))",
            )
        ),
        ("study_system_attributes set value_json = 7 where key like '%note_str%'", "no part of a"),
        ("study_system_attributes set value_json = '\"x\"' where key like '%note_ver'", "no part"),
    ],
)
def test_changed_database_is_refused(run, small, change, said):
    with contextlib.closing(sqlite3.connect(run / "study.db")) as database, database:
        database.execute(  # an artifact of a trial, as people and an earlier version add
            "insert into trial_system_attributes (trial_id, key, value_json) select 1, key, "
            "value_json from study_system_attributes where key like 'artifacts:%' limit 1"
        )
        database.execute(f"update {change}")
    with pytest.raises(UserError, match=rf"damaged.*(trial \d (is )?|\(.*){said}"):
        again(run, small)


def a_folder(path):
    path.unlink(missing_ok=True)
    path.mkdir()


def a_full_folder(path):
    a_folder(path)
    (path / "theirs").write_text("mine")


def a_file(path):
    shutil.rmtree(path)
    path.write_text("mine")


def a_link_to_nothing(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to("nowhere/at/all")


def a_link_to_itself(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(path.name)


FOLDERS = ["artifacts", "parameters", "best", "figures", "tensorboard", "tensorboard/_winner"]
SINGLE = [
    "results.csv", "report.html", "checksums.sha256", "best/params.safetensors",
    "parameters/0.safetensors", "figures/curves.png", ".run", "study.db",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "becomes"),
    [(name, how) for name in FOLDERS for how in (a_file, a_link_to_nothing, a_link_to_itself)]
    + [
        (name, how)
        for name in SINGLE
        for how in (a_folder, a_full_folder, a_link_to_nothing, a_link_to_itself)
    ],
)
def test_paths_of_another_kind_are_written_again_or_give_one_line(run, small, name, becomes):
    """A folder in place of a file, a file in place of a folder, a dangling link."""
    becomes(run / name)
    (run / "history.csv").unlink()
    said = ""
    try:
        again(run, small)
    except UserError as error:
        said = str(error)
    assert Path(name).parts[0] in said if said else (run / "history.csv").is_file()
    if becomes in (a_full_folder, a_file) and name != "tensorboard/_winner":
        mine = run / name / "theirs" if becomes is a_full_folder else run / name
        assert mine.read_text() == "mine"


@pytest.mark.parametrize("value", ["null", "[1]", '"x"', "3", '{"a": "b"}', '{"a": [2]}', "{}"])
def test_note_of_another_type_is_left_out(run, whole, small, value):
    names = ["fmnist:provenance", "fmnist:seconds_by_phase"]
    command = "update study_user_attributes set value_json = ? where key = ?"
    with contextlib.closing(sqlite3.connect(run / "study.db")) as database, database:
        database.executemany(command, [(value, name) for name in names])
    (run / "results.csv").unlink()
    again(run, small)
    assert (run / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def test_folder_with_a_name_that_is_not_utf8_is_refused(small, tmp_path):
    with pytest.raises(UserError, match="its name is not UTF-8"):
        run_study(CONFIG, tmp_path / "a\udcff", dataset=small)
    assert not list(tmp_path.iterdir())


def test_study_deleted_during_training_gives_one_line(small, tmp_path):
    class Deletes(Said):
        def epoch(self, *args):
            with contextlib.suppress(KeyError):  # already deleted after the first time
                optuna.delete_study(study_name=CONFIG.name, storage=storage_url.of_run(tmp_path))

    with pytest.raises(UserError, match=r"deleted from the storage; .* give the same command"):
        run_study(CONFIG, tmp_path, dataset=small, progress=Deletes())
    with pytest.raises(UserError, match=r"\.run is of a study, .* restore it, .* another --out"):
        run_study(CONFIG, tmp_path, dataset=small)


def test_a_folder_may_have_any_name(small, tmp_path):
    out = tmp_path / "100% {sure}? #1 é &c"
    run_study(replace(CONFIG, grid={"seed": (0,)}), out, dataset=small)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert (out / "study.db").is_file()
    stored = optuna.load_study(study_name=CONFIG.name, storage=storage_url.of_run(out))
    assert len(stored.trials) == 1


def test_temporary_files_of_a_killed_run_are_removed(tmp_path):
    with files.scratch_folder(tmp_path) as folder:
        (folder / "picture.png").write_bytes(b"half")
        kept = shutil.copytree(folder, tmp_path / ".killed.fmnist-part")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / ".curves.png.x.fmnist-part").touch()
    (tmp_path / ".theirs.part").touch()
    files.sweep(tmp_path)
    assert not kept.exists()
    assert sorted(p.name for p in tmp_path.rglob("*")) == [".theirs.part", "figures"]


def test_removed_folder_is_not_created_again(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.write_text(tmp_path / "gone" / "figures" / "x.png", "")
    assert not list(Path(tmp_path).iterdir())
