"""The figures: PNG files that open, of every grid and outcome. Beauty is for human eyes."""

from __future__ import annotations

from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from fake_results import CLASS_NAMES, history, results_of
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fmnist.config.results import TrialResult
from fmnist.config.study import StudyConfig
from fmnist.reports import figures, heatmap
from fmnist.reports.canvas import sheet
from fmnist.reports.comparison import compare
from fmnist.reports.confusion import confusion_matrix, most_confused
from fmnist.reports.words import TEST_WAS_SEEN


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (200, 1, 28, 28), dtype=np.uint8)
    labels = rng.integers(0, 10, 200)
    return images, labels, np.where(rng.random(200) < 0.7, labels, rng.integers(0, 10, 200))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4))))
def test_confusion_matrix_counts_every_pair(pairs):
    matrix = confusion_matrix([a for a, _ in pairs], torch.tensor([b for _, b in pairs]), 5)
    assert matrix.dtype == np.int64
    assert matrix.shape == (5, 5)
    assert all(matrix[a, b] == pairs.count((a, b)) for a in range(5) for b in range(5))
    worst = most_confused(matrix, 3)
    assert worst == sorted(most_confused(matrix, 25), key=lambda w: (-w[2], w[:2]))[:3]
    assert all(a != b and matrix[a, b] == n > 0 for a, b, n in worst)


def test_confusion_matrix_refuses_what_is_no_class():
    with pytest.raises(ValueError, match=r"label lies outside 0\.\.9"):
        confusion_matrix([10], [0])
    with pytest.raises(ValueError, match="1 labels, but 2 predictions"):
        confusion_matrix([1], [0, 1])


def check_png(path, width, height):
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        # One colour would be an empty sheet.
        assert len(picture.convert("L").getcolors()) > 10
        assert picture.size == (width, height)
    assert path.stat().st_size < 150_000
    assert not list(path.parent.glob("*.tmp"))


GRIDS = [
    {},
    {"seed": (1, 2, 3)},
    {"learning_rate": (0.01, 0.001), "batch_size": (100, 500, 1000)},
    {"seed": (1, 2), "learning_rate": (0.1, 0.01), "hidden": ("9", "8"), "batch_size": (100,)},
    {"seed": tuple(range(30)), "batch_size": tuple(range(1, 21))},
]


@pytest.mark.parametrize(
    "grid", GRIDS, ids=lambda grid: "x".join(str(len(v)) for v in grid.values())
)
def test_curves_and_heatmap_of_every_grid(grid, tmp_path):
    study = StudyConfig(name="views", epochs=2, grid=grid)
    rc = dict(mpl.rcParams)
    results = results_of(study, fail=range(1, study.size, 5))
    check_png(figures.curves(results, study, tmp_path / "curves.png"), 1210, 550)
    path = heatmap.draw(compare(study, results, 5000), study, tmp_path / "heatmap.png")
    with Image.open(path) as picture:
        check_png(path, *picture.size)
        assert 700 <= picture.width <= 1430
    assert dict(mpl.rcParams) == rc


@pytest.mark.parametrize("fail", [(), range(6)], ids=["no results", "all failed"])
def test_figures_without_a_winner(fail, tmp_path):
    study = StudyConfig(epochs=2)
    results = results_of(study, fail)[: len(fail)]
    check_png(figures.curves(results, study, tmp_path / "curves.png"), 1210, 550)
    comparison = compare(study, results, 5000)
    check_png(heatmap.draw(comparison, study, tmp_path / "heatmap.png"), 704, 352)


def test_pictures_of_images(pictures, tmp_path):
    images, labels, predictions = pictures
    study = StudyConfig()
    check_png(figures.samples(images, labels, CLASS_NAMES, tmp_path / "a.png"), 1210, 552)
    tensors = map(torch.from_numpy, (images, labels))
    figures.samples(*tensors, CLASS_NAMES, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    figures.samples(images[:3], labels[:3], CLASS_NAMES, tmp_path / "few.png")
    matrix = confusion_matrix(labels, predictions)
    check_png(figures.confusion(matrix, CLASS_NAMES, tmp_path / "c.png", "Test", study), 990, 924)
    path = figures.confused_pairs(
        images, labels, predictions, CLASS_NAMES, tmp_path / "d.png", study
    )
    check_png(path, 990, 709)
    path = figures.confused_pairs(images, labels, labels, CLASS_NAMES, tmp_path / "e.png", study)
    check_png(path, 990, 203)


def test_names_are_drawn_as_they_are(pictures, tmp_path):
    study = SimpleNamespace(name="a $b$ \\frac{ \x1b\n服装", grid={}, metric="validation_loss",
                            direction="minimize", validation_is_test=True,
                            validation_is_trained=False)  # fmt: skip
    figures.curves([TrialResult(0, {"$x": "$"}, "COMPLETE", history(1))], study, tmp_path / "a.png")
    figures.samples(*pictures[:2], ("服$",) * 10, tmp_path / "b.png")


def test_holdout_0_is_marked_on_every_figure(pictures, tmp_path, monkeypatch):
    notes = []
    for module in (figures, heatmap):
        monkeypatch.setattr(module, "sheet", lambda *a: notes.append(a[3:]) or sheet(*a))
    for holdout, mark in ((5000, ""), (0, TEST_WAS_SEEN)):
        study = StudyConfig(epochs=2, holdout=holdout)
        results = results_of(study)
        notes.clear()
        few = [images[:60] for images in pictures]
        figures.curves(results, study, tmp_path / "a.png")
        heatmap.draw(compare(study, results, 5000), study, tmp_path / "b.png")
        figures.confusion(np.eye(10, dtype=int), CLASS_NAMES, tmp_path / "c.png", "Test", study)
        figures.confused_pairs(*few, CLASS_NAMES, tmp_path / "d.png", study)
        assert notes == [(mark,)] * 4


def test_a_figure_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="half"), sheet(tmp_path / "a.png", (4, 3), "x"):
        raise RuntimeError("half drawn")
    assert not list(tmp_path.iterdir())
