"""The mirror in TensorBoard, asked of the real server over HTTP."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import history, results_of

from fmnist.config import StudyConfig
from fmnist.results import TrialResult
from fmnist.views.tensorboard import NAME_BYTES, TensorBoardMirror, run_name
from fmnist.views.words import TEST_WAS_SEEN

STUDY = StudyConfig(
    name="views",
    epochs=3,
    grid={"learning_rate": (0.01, 0.001), "hidden": ("120-60", "120"), "batch_size": (100, 500)},
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A written root and a real TensorBoard on a free loopback port, asked through a function."""
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
    command = ["-m", "tensorboard.main", "--logdir", str(root), "--host", "127.0.0.1"]
    server = subprocess.Popen(
        [sys.executable, *command, "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    try:
        lines = iter(server.stderr.readline, "")
        address = next(m[0] for line in lines if (m := re.search(r"http://127[\d.:]+", line)))
        threading.Thread(target=server.stderr.read, daemon=True).start()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def ask(path, body=None, **query):
            url = f"{address}/data/{path}?{urllib.parse.urlencode(query)}"
            data = body and json.dumps(body).encode()
            request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
            with opener.open(request, timeout=10) as reply:
                return json.load(reply)

        until = time.monotonic() + 20
        while len(ask("plugin/scalars/tags")) < 3 and time.monotonic() < until:
            time.sleep(0.1)
        yield ask, (good, bad, going)
    finally:
        server.terminate()
        server.wait(10)
        server.stderr.close()


def test_tensorboard_shows_typed_hparams_metrics_and_status(served):
    ask, (good, bad, going) = served
    experiment = ask("plugin/hparams/experiment", {"experimentName": ""})
    axes = {axis["name"]: (axis["type"], axis["domainDiscrete"], axis["differs"])
            for axis in experiment["hparamInfos"]}  # fmt: skip
    assert axes == {
        "learning_rate": ("DATA_TYPE_FLOAT64", [0.001, 0.01], True),
        "hidden": ("DATA_TYPE_STRING", ["120", "120-60"], True),
        "batch_size": ("DATA_TYPE_FLOAT64", [100.0, 500.0], True),
    }
    columns = [{"metric": info["name"]} for info in experiment["metricInfos"]]
    states = [f"STATUS_{name}" for name in ("SUCCESS", "FAILURE", "RUNNING", "UNKNOWN")]
    query = {"allowedStatuses": states, "colParams": columns, "startIndex": 0, "sliceSize": 9}
    groups = ask("plugin/hparams/session_groups", query)["sessionGroups"]
    rows = {group["name"]: group for group in groups}
    assert set(rows) == {good.label, bad.label, going.label}
    assert rows[good.label]["hparams"] == dict(good.point)
    status = {name: row["sessions"][0]["status"] for name, row in rows.items()}
    assert status == {
        good.label: "STATUS_SUCCESS", bad.label: "STATUS_FAILURE", going.label: "STATUS_UNKNOWN",
    }  # fmt: skip
    values = {v["name"]["tag"]: v["value"] for v in rows[good.label]["metricValues"]}
    assert values["accuracy/validation"] == pytest.approx(good.last.validation_accuracy)
    assert values["accuracy/test"] == pytest.approx(0.875)
    assert values["loss/test"] == pytest.approx(0.25)
    assert len(values) == 6


def test_tensorboard_shows_each_epoch_once_and_survives_nan(served):
    ask, (good, bad, _) = served
    for tag, field in (("loss/train", "train_loss"), ("accuracy/train", "train_accuracy"),
                       ("loss/validation", "validation_loss"),
                       ("accuracy/validation", "validation_accuracy")):  # fmt: skip
        points = ask("plugin/scalars/scalars", run=good.label, tag=tag)
        assert [step for _, step, _ in points] == [1, 2, 3]
        expected = [getattr(metrics, field) for metrics in good.history]
        assert [value for *_, value in points] == pytest.approx(expected)
    (point,) = ask("plugin/scalars/scalars", run=bad.label, tag="loss/train")
    assert point[2] == "NaN"
    tags = ask("plugin/scalars/tags")
    assert "accuracy/test" in tags[good.label]
    assert "accuracy/test" not in tags[bad.label]


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


def test_experiment_is_written_anew_only_when_it_changed(tmp_path):
    def files():
        return {path.name: path.read_bytes() for path in tmp_path.glob("*tfevents*")}

    TensorBoardMirror(tmp_path, STUDY).close()
    first = files()
    TensorBoardMirror(tmp_path, STUDY).close()
    assert files() == first
    TensorBoardMirror(tmp_path, dataclasses.replace(STUDY, grid={"seed": (1, 2)})).close()
    assert len(files()) == 1
    assert files() != first


def test_odd_axes_are_written(tmp_path):
    study = SimpleNamespace(
        name="odd", grid={"a": (1, 0.5), "b": (True, False), "c": ("x", 1)}, validation_is_test=True
    )
    with TensorBoardMirror(tmp_path, study) as mirror:
        mirror.finish(TrialResult(0, {"a": 1, "b": True, "c": 1}, "COMPLETE", history(2), 0.1, 0.9))
    assert TEST_WAS_SEEN.encode() in next(tmp_path.glob("*tfevents*")).read_bytes()
    with TensorBoardMirror(tmp_path / "none", SimpleNamespace(**{**vars(study), "grid": {}})) as m:
        m.start(0, {})
    assert (tmp_path / "none" / "single").is_dir()


@given(st.dictionaries(st.text(max_size=40), st.text(max_size=200), max_size=4))
def test_run_names_are_folder_names(point):
    name = run_name(point)
    assert 0 < len(name.encode()) < NAME_BYTES
    assert name.isprintable()
    assert not set(name) & set('/\\:*?"<>|')
    assert name not in (".", "..")


def test_run_names_tell_long_points_apart():
    long = [{"key": "x" * 300 + end} for end in "ab"]
    assert run_name(long[0]) != run_name(long[1])
    assert run_name({"a/b": 1}) != run_name({"a_b": 1})
    assert (
        run_name({"learning_rate": 0.01, "batch_size": 100}) == "learning_rate=0.01,batch_size=100"
    )
