"""A study on real images: its files, the reference model, a kill, and bad input."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import optuna
import pytest
import torch
from in_process import call
from PIL import Image
from slice_study import CONFIG, dataset
from strategies import random_split

from fmnist.config.results import winner
from fmnist.data.fashion_mnist import Dataset, holdout_split
from fmnist.reference import fit_reference
from fmnist.rundir import models
from fmnist.study.run import run_study
from fmnist.utils import device
from fmnist.utils.errors import UserError

HERE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def real():
    return dataset()


@pytest.fixture(scope="module")
def run(real, tmp_path_factory):
    """The folder and the results of a finished study."""
    out = tmp_path_factory.mktemp("run")
    return out, run_study(CONFIG, out, dataset=real)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_results_are_close_to_the_reference_model(run, real):
    """Training losses must be close, and validation losses after the first epoch.

    The reference model computes in float64. In float32 it would deviate more than the lanes do: at
    a learning rate of 0.01, training magnifies rounding to percents of a validation loss.
    """
    out, _ = run
    training, validation = holdout_split(real.train, CONFIG.holdout)
    table, history = rows(out / "results.csv"), rows(out / "history.csv")
    assert len(table) == 6
    for row in table:
        point = {"learning_rate": float(row["learning_rate"]), "batch_size": int(row["batch_size"])}
        trial = CONFIG.trial(point)
        first, last = fit_reference(
            trial.model, "adam", trial.hyperparams, training, validation,
            batch_size=trial.batch_size, seed=0, epochs=2, dtype=torch.float64,
        )  # fmt: skip
        assert (row["state"], row["epochs"]) == ("COMPLETE", "2")
        for csv_row, epoch in zip(
            [r for r in history if r["number"] == row["number"]], (first, last), strict=True
        ):
            loss = epoch.train.loss.item()
            assert float(csv_row["train_loss"]) == pytest.approx(loss, rel=5e-3)
        opening = next(r for r in history if r["number"] == row["number"])
        loss = first.validation.loss.item()
        assert float(opening["validation_loss"]) == pytest.approx(loss, rel=2e-2)
        accuracy = first.validation.accuracy.item()
        assert float(opening["validation_accuracy"]) == pytest.approx(accuracy, abs=0.03)


def test_files_of_a_run_exist_and_agree(run):
    out, results = run
    history = rows(out / "history.csv")
    assert [(r["number"], r["epoch"]) for r in history] == [
        (str(n), str(e)) for n in range(6) for e in (1, 2)
    ]
    table = rows(out / "results.csv")
    assert list(table[0]) == [
        "number", "learning_rate", "batch_size", "state", "train_loss", "train_accuracy",
        "validation_loss", "validation_accuracy", "test_loss", "test_accuracy", "epochs", "seconds",
        "reason",
    ]  # fmt: skip
    for row, result in zip(table, results, strict=True):
        assert float(row["test_accuracy"]) == result.test_accuracy
        last = [r for r in history if r["number"] == row["number"]][-1]
        assert last["validation_accuracy"] == row["validation_accuracy"]
    report = (out / "report.md").read_text()
    best = winner(results, CONFIG.metric)
    assert best.label in report
    for name in ("samples", "curves", "heatmap", "confusion", "confused_pairs", "members"):
        with Image.open(out / "figures" / f"{name}.png") as image:
            assert image.width > 400
        assert f"figures/{name}.png" in report
    assert (out / "study.toml").read_text() == CONFIG.to_toml()


def test_best_parameters_reproduce_the_accuracy_of_the_winner(run, real):
    out, results = run
    best = winner(results, CONFIG.metric)
    about = json.loads((out / "best" / "config.json").read_text())
    assert about["number"] == best.number
    params, state = models.load_model(out / "best" / "params.safetensors", CONFIG.model)
    from fmnist.reports.publish import outputs

    probabilities, features = outputs(params, state, real.test)
    assert features.shape == (len(real.test.labels), CONFIG.trial(best.point).model.hidden[-1])
    accuracy = (probabilities.argmax(dim=1) == real.test.labels).double().mean().item()
    assert accuracy == pytest.approx(best.test_accuracy, abs=2e-3)


def test_optuna_has_the_results(run):
    out, results = run
    loaded = optuna.load_study(study_name="slice", storage=f"sqlite:///{out}/study.db")
    assert [t.value for t in loaded.trials] == [r.final.validation_accuracy for r in results]
    assert loaded.best_trial.number == winner(results, CONFIG.metric).number


def test_a_complete_study_trains_nothing(run, real, monkeypatch):
    out, results = run
    monkeypatch.setattr(
        "fmnist.engine.trainer.train_lanes", lambda *_, **__: pytest.fail("it trained")
    )
    before = (out / "results.csv").stat().st_mtime_ns
    assert run_study(CONFIG, out, dataset=real) == results
    assert (out / "results.csv").stat().st_mtime_ns == before


def test_another_study_in_the_folder_is_refused_without_changes(run, real):
    from dataclasses import replace

    out, _ = run
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.name != ".lock"}
    with pytest.raises(UserError, match=r"another study.*epochs"):
        run_study(replace(CONFIG, epochs=3), out, dataset=real)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.name != ".lock"} == before


def test_locked_folder_is_refused(tmp_path):
    from fmnist.rundir import lock

    with lock.holding(tmp_path), pytest.raises(UserError, match="is working on it"):  # noqa: SIM117
        with lock.holding(tmp_path):
            pass
    with lock.holding(tmp_path):
        pass


def test_study_killed_between_trials_continues(run, tmp_path):
    """SIGKILL after the second trial has written its parameters, then the same command again."""
    _, undisturbed = run
    out = tmp_path / "killed"
    command = [sys.executable, str(HERE / "slice_study.py"), str(out)]
    with forked.Popen(command) as child:
        deadline = time.monotonic() + 120
        while len(list(out.glob("parameters/*.safetensors"))) < 2:
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    forked.run(command, check=True, capture_output=True, timeout=120)
    finished = optuna.load_study(study_name="slice", storage=f"sqlite:///{out}/study.db")
    assert [t.state.name for t in finished.trials] == ["COMPLETE"] * 6
    for row, result in zip(rows(out / "results.csv"), undisturbed, strict=True):
        assert float(row["learning_rate"]) == result.point["learning_rate"]
        assert float(row["train_loss"]) == pytest.approx(result.final.train_loss, rel=2e-3)


def test_report_marks_a_study_without_holdout(tmp_path):
    from dataclasses import replace

    tiny = Dataset(random_split(60), random_split(30, 1), "noise")
    config = replace(CONFIG, holdout=0, grid={"batch_size": (30,)}, epochs=1)
    (result,) = run_study(config, tmp_path, dataset=tiny)
    assert result.final.validation_accuracy == result.test_accuracy
    assert "holdout = 0" in (tmp_path / "report.md").read_text()


def fmnist(*args, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "fmnist.study", *args],
        capture_output=True, text=True, timeout=120, cwd=cwd, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--set", "learnig_rate=0.1"], "learning_rate"),
        (["nowhere.toml"], "nowhere.toml"),
        (["--device", "tpu"], "auto, cpu, cuda"),
        (["--data", "/nowhere"], "/nowhere"),
        (["--set", "holdout=59999"], "holdout"),
        (["--storage", "nonsense://"], "nonsense"),
    ],
)
def test_bad_input_exits_with_status_2_and_one_line(args, said, tmp_path):
    done = call("study", *args, "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_dry_run_shows_the_plan_and_writes_nothing(tmp_path):
    done = call("study", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0
    assert "group 3 of 3" in done.stdout
    assert "trial 5: learning_rate=0.001,batch_size=1000" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_commands_run_on_the_whole_data(tmp_path):
    """Both commands train one trial for one epoch."""
    args = ["--epochs", "1", "--set", "batch_size=1000", "--set", "learning_rate=0.01"]
    done = fmnist(*args, "--out", "ours", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "tensorboard --logdir" in done.stdout
    assert "optuna-dashboard sqlite:///" in done.stdout
    plain = subprocess.run(
        [sys.executable, "-m", "fmnist.reference", *args, "--out", "plain", "--quiet"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert (plain.returncode, plain.stdout, plain.stderr) == (0, "", "")
    over = call("reference", *args, "--out", "ours", cwd=tmp_path)
    assert over.returncode == 2
    assert "--out ours holds a run of fmnist.study" in over.stderr
    (ours,) = rows(tmp_path / "ours/results.csv")
    (theirs,) = rows(tmp_path / "plain/results.csv")
    assert list(ours) == list(theirs)
    assert float(ours["train_loss"]) == pytest.approx(float(theirs["train_loss"]), rel=0.02)
    assert 0.7 < float(ours["test_accuracy"]) < 0.95


def test_find_device_refuses_unknown_devices():
    assert device.find_device("cpu") == torch.device("cpu")
    for name in ("cuda:99", "cuda:x", "cuda:", "gpu", ""):
        with pytest.raises(UserError):
            device.find_device(name)
