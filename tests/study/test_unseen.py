"""``test = false``: no number, picture or word of a study is about the test set."""

import json
from dataclasses import replace

import pytest
from strategies import random_split, tiny_data, tiny_study

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
    assert figures == {"samples", "curves", "heatmap"}
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


def test_an_ensemble_of_it_is_not_measured(run):
    with pytest.raises(UserError, match="keeps the test set unseen"):
        ensembles.measure(run, tiny_data(), "all")
