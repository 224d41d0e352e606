"""``test = false``: no number, picture or word of a study is about the test set."""

import csv
import json
from dataclasses import replace

import optuna
import pytest
from strategies import random_split, tiny_data, tiny_study
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fmnist
from fmnist.inference import ensembles
from fmnist.reports.words import UNSEEN
from fmnist.utils.errors import UserError

CONFIG = replace(tiny_study("unseen", holdout=20), test=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "unseen"
    fmnist.run_study(CONFIG, out, dataset=tiny_data())
    return out


def strict(text):
    """The JSON, in which there is no NaN."""
    return json.loads(text, parse_constant=pytest.fail)


def test_every_view_says_so(run):
    for page in ("report.md", "report.html"):
        text = (run / page).read_text()
        assert UNSEEN in text
        assert "test accuracy" not in text
        assert "test loss" not in text
    assert "test_accuracy" not in strict((run / "best" / "config.json").read_text())
    figures = {path.stem for path in (run / "figures").iterdir()}
    assert figures == {"samples", "curves", "heatmap", "members"}
    assert "test_accuracy" not in fmnist.load_run(run)._repr_html_()
    assert "test" not in repr(fmnist.load_run(run)).replace(str(run), "")


def test_another_test_set_changes_nothing(run, tmp_path, undrawn):
    again = tmp_path / "again"
    results = fmnist.run_study(CONFIG, again, dataset=tiny_data()._replace(test=random_split(9, 7)))
    assert [r.history for r in results] == [
        r.history for r in fmnist.run_study(CONFIG, run, dataset=tiny_data())
    ]
    for number in range(CONFIG.size):
        name = f"parameters/{number}.safetensors"
        assert (again / name).read_bytes() == (run / name).read_bytes()


def test_an_ensemble_is_measured_on_held_out_images(run):
    found = ensembles.measure(run, tiny_data(), "greedy:3")
    assert (found.test, found.split, found.images) == ([], "validation", 20)
    assert len(found.validation) == len(found.order)
    assert "validation accuracy" in (run / "report.md").read_text().partition("## Averaged")[2]


def test_storage_and_tensorboard_hold_no_number_of_it(run):
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{run}/study.db")
    for trial in study.trials:
        assert not {"test_loss", "test_accuracy"} & trial.user_attrs.keys()
    tags = {tag for folder in (run / "tensorboard").iterdir() if folder.is_dir()
            for tag in EventAccumulator(str(folder)).Reload().Tags()["scalars"]}  # fmt: skip
    assert tags
    assert not [tag for tag in tags if "test" in tag]
    rows = list(csv.DictReader((run / "results.csv").read_text().splitlines()))
    assert {row["test_accuracy"] for row in rows} == {""}


def test_nothing_is_left_to_measure_by(tmp_path, undrawn):
    alone = replace(CONFIG, holdout=0, validation="train", name="alone")
    fmnist.run_study(alone, tmp_path, dataset=tiny_data())
    with pytest.raises(UserError, match="held out no images and keeps the test set unseen"):
        ensembles.measure(tmp_path, tiny_data(), "all")


def test_a_run_keeps_it(run):
    with pytest.raises(UserError, match="test"):
        fmnist.run_study(replace(CONFIG, test=True), run, dataset=tiny_data())
