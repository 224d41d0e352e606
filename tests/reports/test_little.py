"""Studies with little to show: each figure and page shows something, or says why it does not."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import chromium
import numpy as np
import pytest
import torch
from fake_results import CLASS_NAMES, findings, results_of
from PIL import Image

from fmnist.config.results import EpochMetrics
from fmnist.config.study import StudyConfig
from fmnist.functional.types import Split
from fmnist.reports import figures, heatmap
from fmnist.reports.comparison import compare
from fmnist.reports.confusion import confusion_matrix
from fmnist.reports.dashboard.notes import TimePlot
from fmnist.reports.findings import Outputs
from fmnist.reports.html.page import write_html

MANY = {"seed": tuple(range(24)), "learning_rate": (0.1, 0.01, 0.001, 0.0001)}
NAN = EpochMetrics(*[math.nan] * 4)


def failed(*history):
    """Turn the results of a study into failed ones with this history."""
    return lambda results: [replace(r, state="FAIL", history=history) for r in results]


def diverged(results):
    """Their accuracy is known, and their loss is not."""
    last = NAN._replace(train_accuracy=0.1, validation_accuracy=0.1)
    return failed(last)(results)


CASES = {
    "one epoch, 96 trials": (StudyConfig(epochs=1, grid=MANY), None),
    "one epoch, 6 trials": (StudyConfig(epochs=1), None),
    "one epoch, one trial": (StudyConfig(epochs=1, grid={}), None),
    "two epochs, 96 trials": (StudyConfig(epochs=2, grid=MANY), None),
    "one trial": (StudyConfig(epochs=3, grid={}), None),
    "one value": (StudyConfig(epochs=3, grid={"learning_rate": (0.1,)}), None),
    "one value, one epoch": (StudyConfig(epochs=1, grid={"learning_rate": (0.1,)}), None),
    "all equal": (StudyConfig(epochs=1), failed(EpochMetrics(1, 0.1, 1, 0.1))),
    "6 failed in the first epoch": (StudyConfig(epochs=3), failed()),
    "96 failed in the first epoch": (StudyConfig(epochs=3, grid=MANY), failed()),
    "6 without a finite value": (StudyConfig(epochs=3), failed(NAN)),
    "96 without a finite value": (StudyConfig(epochs=3, grid=MANY), failed(NAN)),
    "6 with an infinite loss": (StudyConfig(epochs=3), diverged),
    "96 with an infinite loss": (StudyConfig(epochs=3, grid=MANY), diverged),
    "no results": (StudyConfig(epochs=3), lambda results: []),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    """A study and its results."""
    study, change = request.param
    results = results_of(study)
    return study, change(results) if change else results


PANELS = {"loss": (75, 70, 600, 400), "accuracy": (680, 70, 1200, 400)}
"""Where ``curves`` draws, in pixels, inside of the axes."""


def ink(picture, box):
    """How many pixels of a part of the picture are darker than the lines of a grid."""
    return int((np.asarray(picture.convert("L").crop(box)) < 200).sum())


@pytest.mark.filterwarnings("error")
def test_the_figures_of_little_are_not_empty(case, tmp_path):
    study, results = case
    with Image.open(figures.curves(results, study, tmp_path / "curves.png")) as picture:
        for kind, box in PANELS.items():
            assert ink(picture, box) > 40, kind
    comparison = compare(study, results, 5000)
    with Image.open(heatmap.draw(comparison, study, tmp_path / "heatmap.png")) as picture:
        assert ink(picture, (0, 40, *picture.size)) > 200


def test_every_trial_of_one_epoch_is_a_point(tmp_path):
    study = StudyConfig(epochs=1, grid=MANY)
    for count in (6, 96):
        results = results_of(study)[:count]
        with Image.open(figures.curves(results, study, tmp_path / "curves.png")) as picture:
            part = np.asarray(picture.convert("L").crop(PANELS["accuracy"])) < 200
        columns = np.flatnonzero(part.any(axis=0))
        assert columns.max() - columns.min() > 0.6 * part.shape[1]  # they are side by side
        if count == 6:
            assert (np.diff(columns) > 1).sum() == count - 1


def test_a_trial_that_failed_after_an_epoch_is_a_point_among_lines(tmp_path):
    for grid in ({"seed": (1, 2)}, {"seed": tuple(range(14))}):
        study = StudyConfig(epochs=25, grid=grid)
        results = results_of(study)
        first = results[0].history[0]._replace(validation_accuracy=0.85)
        lost = [replace(results[0], state="FAIL", history=()), *results[1:]]
        short = [replace(results[0], state="FAIL", history=(first,)), *results[1:]]
        drawn = []
        for some in (lost, short):
            path = figures.curves(some, study, tmp_path / "curves.png")
            with Image.open(path) as picture:
                drawn.append(ink(picture, (600, 70, 760, 420)))
        assert drawn[1] - drawn[0] > 3


def examples(count, classes):
    """So many test images, and random outputs for them."""
    chance = np.random.default_rng(0)
    images = torch.from_numpy(chance.integers(0, 256, (count, 1, 28, 28), dtype=np.uint8))
    labels = torch.from_numpy(chance.integers(0, classes, count))
    probabilities = torch.from_numpy(chance.random((count, classes))).softmax(1)
    return Split(images, labels), Outputs(probabilities, probabilities)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("classes", [1, 2, 10])
@pytest.mark.parametrize("count", [1, 60])
def test_figures_of_few_classes_and_images(classes, count, tmp_path):
    study, names = StudyConfig(), CLASS_NAMES[:classes]
    (images, labels), (probabilities, _) = examples(count, classes)
    predicted = probabilities.argmax(dim=1)
    matrix = confusion_matrix(labels, predicted, classes)
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    figures.samples(images, labels, names, paths[0])
    figures.confusion(matrix, names, paths[1], "Test", study)
    figures.confused_pairs(images, labels, predicted, names, paths[2], study)
    figures.mistakes(images, labels, probabilities, names, paths[3], study)
    for path in paths:
        with Image.open(path) as picture:
            assert picture.width >= 300  # its title fits
            assert ink(picture, (0, 0, *picture.size)) > 400


def test_the_page_of_little_shows_curves_or_says_why_not(case, tmp_path):
    study, results = case
    test, outputs = examples(60, 10)
    page = write_html(tmp_path, findings(study, results, {}, test=test, outputs=outputs))
    text = page.read_text("utf-8")
    (section,) = re.findall(r'<section id="curves">.*?</section>', text, re.DOTALL)
    if not any(math.isfinite(v) for r in results for m in r.history for v in m):
        assert "There are none: no trial finished an epoch with finite values." in section
        return
    for kind, panel in zip(("loss", "accuracy"), section.split("<figure")[1:], strict=True):
        known = any(math.isfinite(getattr(r.final, f"validation_{kind}")) for r in results)
        assert ("No value is finite." in panel) != known
        paths = re.findall(r"<path([^>]*) d=\"(M[^\"]*)\"/>", panel.split("<g", 1)[1])
        assert bool(paths) == known
        for attributes, drawn in paths:
            assert ("l" in drawn) != ("dot" in attributes)
    mapped = len([key for key in study.grid if key != "seed"]) == 2
    assert ("standard errors behind" in text) == (results[0].state == "COMPLETE" and mapped)


def test_the_plot_over_time_says_that_no_trial_was_completed(case):
    study, results = case
    figure = json.loads(TimePlot(findings(study, results, {})).to_json())
    complete = any(result.state == "COMPLETE" for result in results)
    assert bool(figure["data"]) == complete
    assert bool(figure["layout"].get("annotations")) != complete


POINT_AT = """(() => {
  const canvas = document.querySelector('[data-kind=loss] .canvas');
  const dot = document.querySelector('[data-kind=loss] .line[data-i="%d"]').getBoundingClientRect();
  const place = {clientX: dot.x + dot.width / 2, clientY: canvas.getBoundingClientRect().y + 5};
  canvas.dispatchEvent(new PointerEvent('pointermove', place));
  return document.querySelector('.line.hot').dataset.i;
})()"""
"""JavaScript: move the pointer above the dot of a trial; the trial that then stands out."""


@chromium.needs_chromium
def test_the_points_of_one_epoch_are_seen_and_pointed_at(tmp_path):
    study = StudyConfig(epochs=1)
    page = write_html(tmp_path, findings(study, results_of(study), {}))
    with chromium.opened() as browser:
        browser.goto(page.as_uri())
        browser.wait(lambda page: page.evaluate("document.readyState") == "complete")
        widths = browser.evaluate(
            "[...document.querySelectorAll('.line path')].map(p => "
            "parseFloat(getComputedStyle(p).strokeWidth))"
        )
        assert len(widths) == 2 * 2 * study.size
        assert min(widths) >= 5
        assert max(widths) >= 9
        for number in range(study.size):
            hot = browser.evaluate(POINT_AT % number)
            assert hot == str(number)
        assert not browser.errors
