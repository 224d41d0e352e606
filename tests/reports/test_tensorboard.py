"""The mirror in TensorBoard, asked of the real server over HTTP."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_results import history, results_of
from hypothesis import given
from hypothesis import strategies as st
from real_tensorboard import served
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

from fmnist.config.results import TrialResult
from fmnist.config.study import StudyConfig
from fmnist.reports.tensorboard import mirror as tensorboard
from fmnist.reports.tensorboard import runs
from fmnist.reports.tensorboard.mirror import TensorBoardMirror
from fmnist.reports.tensorboard.runs import NAME_BYTES, point_name
from fmnist.reports.words import TEST_WAS_SEEN

STUDY = StudyConfig(
    name="views",
    epochs=3,
    grid={"learning_rate": (0.01, 0.001), "hidden": ("120-60", "120"), "batch_size": (100, 500)},
)


def named(result, study=STUDY, mark=""):
    return runs.run_name(study, result.number, result.point, mark)


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A written root and a real TensorBoard of it."""
    root = tmp_path_factory.mktemp("views") / "tensorboard"
    good, bad, going = results_of(STUDY, fail=(1,))[:3]
    with TensorBoardMirror(root, STUDY) as mirror:
        mirror.start(0, good.point)
        mirror.epoch(0, 1, good.history[0])
        mirror.start(1, bad.point)
        mirror.epoch(1, 1, bad.history[0]._replace(train_loss=math.nan, validation_loss=math.inf))
        mirror.finish(bad)
    with TensorBoardMirror(root, STUDY) as mirror:  # the study is continued
        mirror.start(0, good.point, good.history[:2])
        mirror.epoch(0, 3, good.history[2])
        mirror.start(2, going.point)
        mirror.epoch(2, 1, going.history[0])
        mirror.finish(good)
    assert len(list(root.glob("*tfevents*"))) == 1
    with served(root) as ask:
        ask.wait(lambda ask: len(ask("plugin/scalars/tags")) >= 3)
        yield ask, (good, bad, going)


def test_tensorboard_shows_typed_hparams_metrics_and_status(board):
    ask, (good, bad, going) = board
    experiment = ask("plugin/hparams/experiment", {"experimentName": ""})
    axes = {axis["name"]: (axis["type"], axis["differs"]) for axis in experiment["hparamInfos"]}
    assert axes == {
        "learning_rate": ("DATA_TYPE_FLOAT64", False),  # so far
        "hidden": ("DATA_TYPE_STRING", True),
        "batch_size": ("DATA_TYPE_FLOAT64", True),
    }
    rows = ask.groups()
    assert set(rows) == {named(good), named(bad), named(going)}
    assert rows[named(good)]["hparams"] == dict(good.point)
    status = {name: row["sessions"][0]["status"] for name, row in rows.items()}
    assert status == {
        named(good): "STATUS_SUCCESS", named(bad): "STATUS_FAILURE", named(going): "STATUS_UNKNOWN",
    }  # fmt: skip
    values = {v["name"]["tag"]: v["value"] for v in rows[named(good)]["metricValues"]}
    assert values["accuracy/validation"] == pytest.approx(good.final.validation_accuracy)
    assert values["accuracy/test"] == pytest.approx(0.875)
    assert values["loss/test"] == pytest.approx(0.25)
    assert len(values) == 6


def test_tensorboard_shows_each_epoch_once_and_survives_nan(board):
    ask, (good, bad, _) = board
    for tag, field in (("loss/train", "train_loss"), ("accuracy/train", "train_accuracy"),
                       ("loss/validation", "validation_loss"),
                       ("accuracy/validation", "validation_accuracy")):  # fmt: skip
        points = ask("plugin/scalars/scalars", run=named(good), tag=tag)
        assert [step for _, step, _ in points] == [1, 2, 3]
        expected = [getattr(metrics, field) for metrics in good.history]
        assert [value for *_, value in points] == pytest.approx(expected)
    (point,) = ask("plugin/scalars/scalars", run=named(bad), tag="loss/train")
    assert point[2] == "NaN"
    tags = ask("plugin/scalars/tags")
    assert "accuracy/test" in tags[named(good)]
    assert "accuracy/test" not in tags[named(bad)]


def test_training_and_validation_are_overlaid_for_every_run(board):
    ask, (good, bad, _) = board
    (category,) = ask("plugin/custom_scalars/layout")["category"]
    assert category["title"] == "training and validation"
    titles = [chart["title"] for chart in category["chart"]]
    assert titles == ["loss: training and validation", "accuracy: training and validation"]
    for chart, kind in zip(category["chart"], ("loss", "accuracy"), strict=True):
        regex = "|".join(f"({tag})" for tag in chart["multiline"]["tag"])  # as the page asks
        for result in (good, bad):
            answer = ask("plugin/custom_scalars/scalars", run=named(result), tag=regex)
            assert answer["regex_valid"]
            assert set(answer["tag_to_events"]) == {f"{kind}/train", f"{kind}/validation"}


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Three studies in one folder, with axes of their own, and a TensorBoard of all of them."""
    runs = tmp_path_factory.mktemp("runs")
    grids = {
        "a": {"learning_rate": (0.01, 0.001)},
        "b": {"learning_rate": (0.01,), "weight_decay": (0.0, 0.1), "beta1": (0.9, 0.8)},
        "c": {"hidden": ("120", "60")},
        "single": {},
    }
    known = {}
    for number, (name, grid) in enumerate(grids.items()):
        study = dataclasses.replace(STUDY, name=name, grid=grid)
        (runs / name).mkdir()
        with TensorBoardMirror(runs / name / "tensorboard", study) as mirror:
            for result in results_of(study):
                last = result.history[-1]._replace(validation_accuracy=0.5 + number / 10)
                mirror.finish(dataclasses.replace(result, history=(*result.history[:-1], last)))
                known[f"{name}/tensorboard/{named(result, study)}"] = (
                    result.point,
                    0.5 + number / 10,
                )
    with served(runs) as ask:
        assert ask.wait(lambda ask: len(ask.groups()) == len(known))
        yield ask, known


def test_several_studies_have_the_columns_of_all(studies):
    ask, _ = studies
    experiment = ask("plugin/hparams/experiment", {"experimentName": ""})
    columns = {axis["name"] for axis in experiment["hparamInfos"]}
    assert columns == {"learning_rate", "weight_decay", "beta1", "hidden", "study"}
    metrics = {info["name"]["tag"] for info in experiment["metricInfos"]}
    splits = ("train", "validation", "test")
    assert metrics == {f"{kind}/{split}" for kind in ("accuracy", "loss") for split in splits}


def test_several_studies_have_a_row_for_each_trial(studies):
    """Also where two studies have the same point: they are not averaged."""
    ask, known = studies
    rows = ask.groups()
    assert set(rows) == set(known)
    for name, (point, accuracy) in known.items():
        assert rows[name]["hparams"] == dict(point or {"study": "single"})
        (session,) = rows[name]["sessions"]
        assert session["status"] == "STATUS_SUCCESS"
        values = {v["name"]["tag"]: v["value"] for v in rows[name]["metricValues"]}
        assert values["accuracy/validation"] == pytest.approx(accuracy)
        assert len(values) == 6


def test_several_studies_have_one_layout(studies):
    ask, known = studies
    (category,) = ask("plugin/custom_scalars/layout")["category"]
    regex = "|".join(f"({tag})" for tag in category["chart"][0]["multiline"]["tag"])
    for name in known:
        answer = ask("plugin/custom_scalars/scalars", run=name, tag=regex)
        assert set(answer["tag_to_events"]) == {"loss/train", "loss/validation"}


def test_columns_that_an_earlier_version_listed_are_removed(tmp_path):
    old = tmp_path / "events.out.tfevents.1.host.1.000001.experiment-0123456789abcdef"
    old.touch()
    TensorBoardMirror(tmp_path, STUDY).close()
    assert not old.exists()


def test_layout_and_rows_say_when_the_test_set_was_seen(tmp_path):
    result = results_of(STUDY)[0]
    with TensorBoardMirror(tmp_path, dataclasses.replace(STUDY, holdout=0)) as mirror:
        mirror.finish(result)
    with served(tmp_path) as ask:
        layout = ask.wait(lambda ask: ask("plugin/custom_scalars/layout"))
        rows = ask.wait(lambda ask: ask.groups())
    assert rows[named(result)]["hparams"] == {"note": TEST_WAS_SEEN, **result.point}
    (category,) = layout["category"]
    assert category["title"] == f"training and test ({TEST_WAS_SEEN})"
    assert category["chart"][0]["title"] == "loss: training and test"


@pytest.mark.parametrize("fast", ["true", "false"], ids=["fast loader", "slow loader"])
def test_a_status_once_read_is_kept_so_running_is_not_written(tmp_path, fast, monkeypatch):
    """Why a trial that runs has no status; when this fails, it may have one."""
    result = results_of(STUDY)[0]

    def status(ask):
        groups = ask.groups() if ask("plugin/scalars/tags") else {}
        return groups and groups[named(result)]["sessions"][0]["status"]

    def seen(ask):
        return "accuracy/test" in ask("plugin/scalars/tags").get(named(result), ())

    for first in (None, api_pb2.STATUS_RUNNING):
        root = tmp_path / str(first)
        with (
            TensorBoardMirror(root, STUDY) as mirror,
            served(root, "--load_fast", fast, "--reload_interval", "1") as ask,
        ):
            mirror.start(0, result.point)
            if first:
                info = plugin_data_pb2.SessionEndInfo(status=first)
                data = plugin_data_pb2.HParamsPluginData(session_end_info=info)
                tag = metadata.SESSION_END_INFO_TAG
                mirror._running[0].append(Event(summary=tensorboard._hparams_summary(tag, data)))
            mirror.epoch(0, 1, result.history[0])
            running = "STATUS_RUNNING" if first else "STATUS_UNKNOWN"
            assert ask.wait(lambda ask: status(ask) == running), status(ask)  # noqa: B023
            mirror.finish(result)
            assert ask.wait(seen)
            assert status(ask) == ("STATUS_RUNNING" if first else "STATUS_SUCCESS")


def test_600_trials_are_listed_with_typed_values(tmp_path):
    grid = {
        "learning_rate": tuple(0.0001 * i for i in range(1, 11)),
        "batch_size": (100, 500, 1000),
        "hidden": ("120", "120-60"),
        "nesterov": (True, False),
        "seed": tuple(range(5)),
    }
    study = SimpleNamespace(
        name="many",
        grid=grid,
        size=600,
        epochs=25,
        validation_is_test=False,
        validation_is_trained=False,
        test=True,
        keep="last",
        metric_window=1,
    )
    results = results_of(study, fail=(7,))
    began = time.perf_counter()
    with TensorBoardMirror(tmp_path, study) as mirror:
        for result in results:
            mirror.finish(result)
    written = time.perf_counter() - began
    with served(tmp_path) as ask:
        began = time.perf_counter()
        rows = ask.wait(lambda ask: len(rows := ask.groups()) == 600 and rows, 60)
        listed = time.perf_counter() - began
        layout = ask("plugin/custom_scalars/layout")
    assert set(rows) == {named(result, study) for result in results}
    for result in results:
        assert rows[named(result, study)]["hparams"] == dict(result.point)
        (session,) = rows[named(result, study)]["sessions"]
        values = {v["name"]["tag"]: v["value"] for v in session["metricValues"]}
        if result.state == "COMPLETE":
            assert session["status"] == "STATUS_SUCCESS"
            assert values["accuracy/validation"] == pytest.approx(result.final.validation_accuracy)
            assert values["accuracy/test"] == pytest.approx(0.875)
        else:
            assert session["status"] == "STATUS_FAILURE"
            assert "accuracy/test" not in values
    assert layout["category"]
    print(f"600 trials: written in {written:.1f} s, listed after {listed:.1f} s")
    # A busy machine is slow; a cost that grows with the square of the trials would be minutes.
    assert written < 30
    assert listed < 60


def open_files():
    return len(list(Path("/dev/fd").iterdir()))


def test_hundreds_of_runs_hold_no_thread_and_no_file(tmp_path):
    grid = {"seed": tuple(range(300))}
    study = StudyConfig(name="many", epochs=1, grid=grid)
    before = threading.active_count(), open_files()
    mirror = TensorBoardMirror(tmp_path, study)
    for number in range(300):
        mirror.start(number, {"seed": number})
        mirror.epoch(number, 1, history(1)[0])
    assert (threading.active_count(), open_files()) == before
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 300
    mirror.close()


def test_the_layout_is_written_anew_only_when_it_changed(tmp_path):
    def files():
        return {path.name: path.read_bytes() for path in tmp_path.glob("*tfevents*")}

    TensorBoardMirror(tmp_path, STUDY).close()
    first = files()
    TensorBoardMirror(tmp_path, STUDY).close()
    assert files() == first
    TensorBoardMirror(tmp_path, dataclasses.replace(STUDY, holdout=0)).close()
    assert len(files()) == 1
    assert files() != first


def test_odd_axes_are_written(tmp_path):
    study = SimpleNamespace(
        name="odd", grid={"a": (1, 0.5), "b": (True, False), "c": ("x", 1)}, size=8,
        validation_is_test=True, validation_is_trained=False,
    )  # fmt: skip
    with TensorBoardMirror(tmp_path, study) as mirror:
        mirror.finish(TrialResult(0, {"a": 1, "b": True, "c": 1}, "COMPLETE", history(2), 0.1, 0.9))
    assert TEST_WAS_SEEN.encode() in next(tmp_path.glob("*tfevents*")).read_bytes()
    with TensorBoardMirror(
        tmp_path / "none", SimpleNamespace(**{**vars(study), "grid": {}, "size": 1})
    ) as m:
        m.start(0, {})
    assert (tmp_path / "none" / "trial 0 single").is_dir()


@given(st.dictionaries(st.text(max_size=40), st.text(max_size=200), max_size=4))
def test_run_names_are_folder_names(point):
    name = point_name(point)
    assert 0 < len(name.encode()) < NAME_BYTES
    assert name.isprintable()
    assert not set(name) & set('/\\:*?"<>|')
    assert name not in (".", "..")


def test_run_names_tell_long_points_apart():
    long = [{"key": "x" * 300 + end} for end in "ab"]
    assert point_name(long[0]) != point_name(long[1])
    assert point_name({"a/b": 1}) != point_name({"a_b": 1})


def test_names_differ_in_twenty_characters_and_have_the_order_of_the_grid():
    grid = {"learning_rate": (0.01, 0.001), "weight_decay": (0.0, 0.1), "seed": tuple(range(5))}
    study = dataclasses.replace(STUDY, grid=grid)
    results = results_of(study, fail=(3,))
    names = [named(result, study) for result in results]
    assert names == sorted(names)
    assert names[7] == "trial 07 learning_rate=0.01,weight_decay=0.1,seed=2"
    for marked in (names, [named(result, study, "(winner) ") for result in results]):
        assert len({name[:20] for name in marked}) == len(results)


def test_nothing_wins_where_nothing_was_held_out(tmp_path):
    study = StudyConfig(epochs=1, holdout=0, validation="train", grid={"seed": (0, 1)})
    results = results_of(study)
    for result in results:
        (tmp_path / named(result, study)).mkdir()
    names = [folder.name for folder in runs.mark(tmp_path, study, results, results[0])]
    assert names == [named(result, study) for result in results]


def test_the_winner_and_failed_trials_are_marked_and_the_reason_is_read(tmp_path):
    results = results_of(STUDY, fail=(1,))
    with TensorBoardMirror(tmp_path, STUDY) as mirror:
        for result in results:
            mirror.finish(result)
    marks = {0: "", 1: "(failed) ", 7: "(winner) "}
    for best in (6, 7):  # a trial that is tried again changes the winner
        paths = runs.mark(tmp_path, STUDY, results, results[best])
    assert [paths[n].name for n in marks] == [named(results[n], mark=m) for n, m in marks.items()]
    assert sorted(path.name for path in tmp_path.glob("*/")) == sorted(path.name for path in paths)
    with TensorBoardMirror(tmp_path, STUDY) as mirror:  # nothing is written again
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        for result in results:
            mirror.repair(result)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with served(tmp_path) as ask:
        rows = ask.wait(lambda ask: len(rows := ask.groups()) == 8 and rows)
        failed = named(results[1], mark="(failed) ")
        assert "trial 7 (winner) learning_rate=0.001,hidden=120,batch_size=500" in rows
        assert rows[failed]["sessions"][0]["status"] == "STATUS_FAILURE"
        tags = ask.wait(lambda ask: ask("plugin/text/tags"))
        assert tags == {failed: ["failed/text_summary"]}
        (said,) = ask("plugin/text/text", run=failed, tag="failed/text_summary")
        assert "the loss was | NaN" in said["text"]


def test_runs_of_an_earlier_version_and_of_a_failed_trial_are_replaced(tmp_path):
    first, second, third = results_of(STUDY)[:3]
    for name in (first.label, named(second, mark="(failed) "), third.label, "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "events.out.tfevents.1").touch()
    (tmp_path / third.label / "mine.txt").touch()
    again = dataclasses.replace(second, number=8)
    with TensorBoardMirror(tmp_path, STUDY) as mirror:
        mirror.repair(first)
        mirror.start(again.number, again.point)
        mirror.repair(third)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/")} == {
        named(first), named(again), named(third), third.label, "mine",
    }  # fmt: skip
    assert [path.name for path in (tmp_path / third.label).iterdir()] == ["mine.txt"]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["events.out.tfevents.1"]
