"""The winner's run, asked of the real TensorBoard and seen in a real browser."""

from __future__ import annotations

import io
import urllib.parse

import chromium
import numpy as np
import pytest
import torch
from chromium import needs_chromium
from fake_results import CLASS_NAMES, findings, results_of
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from real_tensorboard import served

from fmnist.config.results import winner
from fmnist.config.study import StudyConfig
from fmnist.functional.types import ModelConfig, Split
from fmnist.reference import Network
from fmnist.reports import figures
from fmnist.reports.findings import Outputs
from fmnist.reports.tensorboard.mirror import TensorBoardMirror
from fmnist.reports.tensorboard.runs import run_name
from fmnist.reports.tensorboard.winner import EMBEDDED, WINNER_RUN, balanced, write_winner
from fmnist.reports.words import TEST_WAS_SEEN

STUDY = StudyConfig(
    name="views",
    epochs=3,
    grid={"learning_rate": (0.01, 0.001), "batch_size": (100, 500, 1000)},
)
IMAGES = {
    "test set/sample images": (1210, 552),
    "test set/confusion matrix": (990, 924),
    "test set/surest mistakes": (1100, 968),
}


def made_up_test(count=1500, sure=2.5, seed=0):
    """Images, and what a model that is mostly right makes of them."""
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (count, 1, 28, 28), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, 10, count))
    logits = torch.from_numpy(rng.normal(size=(count, 10)))
    logits[torch.arange(count), labels] += sure
    features = torch.from_numpy(rng.normal(size=(count, 60))).float() + 3 * labels[:, None]
    return Split(images, labels), logits.softmax(dim=1).float(), features


def write(root, test, probabilities, features, study=STUDY, network=None, classes=CLASS_NAMES):
    outputs = Outputs(probabilities, features)
    found = findings(study, results_of(study), {}, test, outputs=outputs, classes=classes)
    path = root.parent / "figures" / "confusion.png"
    figures.confusion(found.confusion, CLASS_NAMES, path, "Test set", study)
    return write_winner(root.parent, found, network or Network(ModelConfig()))


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A six-trial study whose winner was written twice, and a real TensorBoard of it."""
    root = tmp_path_factory.mktemp("winner") / "tensorboard"
    with TensorBoardMirror(root, STUDY) as mirror:
        for result in results_of(STUDY):
            mirror.finish(result)
    network = Network(ModelConfig())
    write(root, *made_up_test(sure=0.5, seed=1))
    folder = write(root, *made_up_test(), network=network)
    assert folder == root / WINNER_RUN
    assert network.training
    with served(root) as ask:
        ask.wait(lambda ask: len(ask("runs")) == 8)
        yield ask, root


def test_the_winner_has_its_own_run_and_no_row_in_the_table(board):
    ask, root = board
    labels = {run_name(STUDY, r.number, r.point) for r in results_of(STUDY)}
    assert set(ask("runs")) == {".", WINNER_RUN, *labels}
    assert set(ask.groups()) == labels
    assert WINNER_RUN not in ask("plugin/scalars/tags")
    assert sorted([*labels, WINNER_RUN])[0] == WINNER_RUN
    assert {path.name for path in root.parent.iterdir()} == {"tensorboard", "figures"}


def test_writing_again_replaces_the_run_and_it_is_small(board):
    _, root = board
    files = [path for path in (root / WINNER_RUN).rglob("*") if path.is_file()]
    assert len([path for path in files if "tfevents" in path.name]) == 1
    assert len([path for path in files if path.name == "tensors.tsv"]) == 1
    assert sum(path.stat().st_size for path in files) < 4_000_000


def test_images_decode_and_are_there_once(board):
    ask, _ = board
    assert set(ask("plugin/images/tags")[WINNER_RUN]) == set(IMAGES)
    for tag, size in IMAGES.items():
        (entry,) = ask("plugin/images/images", run=WINNER_RUN, tag=tag, sample=0)
        query = dict(urllib.parse.parse_qsl(entry["query"]))
        with Image.open(io.BytesIO(ask.get("plugin/images/individualImage", **query))) as picture:
            picture.load()
            assert picture.size == size
            assert len(picture.convert("L").getcolors()) > 10


def test_every_class_has_a_precision_recall_curve(board):
    ask, _ = board
    test, probabilities, _ = made_up_test()
    tags = {f"precision-recall/{name}": i for i, name in enumerate(CLASS_NAMES)}
    assert set(ask("plugin/pr_curves/tags")[WINNER_RUN]) == set(tags)
    for tag, index in tags.items():
        (curve,) = ask("plugin/pr_curves/pr_curves", run=WINNER_RUN, tag=tag)[WINNER_RUN]
        true = (test.labels == index).numpy()
        assert curve["recall"][0] == 1
        assert curve["precision"][0] == pytest.approx(true.mean())
        assert all(a >= b for a, b in zip(curve["recall"], curve["recall"][1:], strict=False))
        middle = len(curve["thresholds"]) // 2
        said = probabilities[:, index].numpy() >= curve["thresholds"][middle]
        assert curve["true_positives"][middle] == (said & true).sum()
        assert curve["false_positives"][middle] == (said & ~true).sum()


def test_the_projector_has_features_names_and_pictures(board):
    ask, _ = board
    test, probabilities, features = made_up_test()
    assert ask("plugin/projector/runs") == [WINNER_RUN]
    (info,) = ask("plugin/projector/info", run=WINNER_RUN)["embeddings"]
    chosen = balanced(test.labels, EMBEDDED)
    assert info["tensorShape"] == [len(chosen), 60]
    assert info["sprite"]["singleImageDim"] == [28, 28]
    query = {"run": WINNER_RUN, "name": info["tensorName"]}
    points = np.frombuffer(ask.get("plugin/projector/tensor", **query), dtype=np.float32)
    np.testing.assert_allclose(points.reshape(-1, 60), features[chosen].numpy(), atol=1e-4)
    lines = ask.get("plugin/projector/metadata", **query).decode().splitlines()
    assert lines[0].split("\t") == ["class", "predicted class", "right", "test image"]
    predicted = probabilities.argmax(dim=1)
    for line, index in zip(lines[1:], chosen.tolist(), strict=True):
        true, said, right, number = line.split("\t")
        assert (true, said) == (CLASS_NAMES[test.labels[index]], CLASS_NAMES[predicted[index]])
        assert (right, number) == ("yes" if true == said else "no", str(index))
    with Image.open(io.BytesIO(ask.get("plugin/projector/sprite_image", **query))) as sprite:
        side = 28 * 32
        assert sprite.size == (side, side)
        corner = np.asarray(sprite.convert("L"))[:28, :28]
        np.testing.assert_array_equal(corner, 255 - test.images[chosen[0], 0].numpy())


def test_the_graph_is_the_reference_models(board):
    ask, _ = board
    assert ask("plugin/graphs/info")[WINNER_RUN]["run_graph"]
    graph = ask.get("plugin/graphs/graph", run=WINNER_RUN).decode()
    for layer in ("conv1", "norm2", "linear3"):
        assert f"[{layer}]" in graph


def test_the_text_says_which_trial_it_is(board):
    ask, _ = board
    best = winner(results_of(STUDY), STUDY.metric)
    (entry,) = ask("plugin/text/text", run=WINNER_RUN, tag="winner/text_summary")
    assert f"The winner is trial {best.number} ({best.label})" in entry["text"]


def test_a_seen_test_set_is_told_and_odd_names_stay_on_their_line(tmp_path):
    study = StudyConfig(holdout=0, grid={"hidden": ("120",)})
    classes = tuple(f"{name}\t<b>\n" for name in CLASS_NAMES)
    run = write(tmp_path / "tensorboard", *made_up_test(60), study=study, classes=classes)
    lines = (run / "00000" / "penultimate-layer" / "metadata.tsv").read_text().splitlines()
    assert len(lines) == 61
    assert all(line.count("\t") == 3 for line in lines)
    assert b"test set itself chose it" in next(run.glob("*tfevents*")).read_bytes()


def test_other_sizes_are_refused(tmp_path):
    test, probabilities, features = made_up_test(60)
    with pytest.raises(ValueError, match=r"differ: \[59, 60\]"):
        write(tmp_path / "tensorboard", test, probabilities, features[:59])
    assert not (tmp_path / "tensorboard").exists()


@given(st.lists(st.integers(0, 9), max_size=80), st.integers(0, 100))
def test_the_chosen_are_balanced_bounded_and_in_order(labels, count):
    chosen = balanced(labels, count)
    assert len(chosen) <= count
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    share = count // max(len(set(labels)), 1)
    for label in set(labels):
        members = [i for i, other in enumerate(labels) if other == label]
        assert [i for i in chosen if labels[i] == label] == members[:share]


def test_mistakes_are_the_surest_first(tmp_path, monkeypatch):
    shown, show = [], figures.show
    monkeypatch.setattr(figures, "show", lambda axes, p: (shown.append(p[0, 0]), show(axes, p)))
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((28, 28), dtype=np.uint8)
    chances = np.full((5, 10), 0.01)
    chances[range(5), [1, 2, 3, 4, 5]] = [0.5, 0.9, 0.8, 0.9, 0.99]
    labels = [0, 0, 0, 0, 5]  # the last is right
    path = figures.mistakes(images, labels, chances, CLASS_NAMES, tmp_path / "a.png", STUDY, (2, 3))
    assert shown == [1, 3, 2, 0]
    with Image.open(path) as picture:
        assert picture.size == (412, 440)
    figures.mistakes(images[4:], labels[4:], chances[4:], CLASS_NAMES, tmp_path / "b.png", STUDY)
    assert len(shown) == 4


def test_mistakes_are_marked_where_the_test_set_was_seen(tmp_path, monkeypatch):
    notes, sheet = [], figures.sheet
    monkeypatch.setattr(figures, "sheet", lambda *a: notes.append(a[3:]) or sheet(*a))
    study = StudyConfig(holdout=0)
    test, probabilities, _ = made_up_test(30, sure=0)
    figures.mistakes(
        test.images, test.labels, probabilities, CLASS_NAMES, tmp_path / "a.png", study
    )
    assert notes == [(TEST_WAS_SEEN,)]


@needs_chromium
def test_the_browser_shows_the_six_rows_of_the_table(board):
    ask, _ = board
    with chromium.opened() as page:
        page.goto(f"{ask.address}/#hparams")
        labels = {run_name(STUDY, r.number, r.point) for r in results_of(STUDY)}
        assert page.wait(lambda page: all(label in page.text() for label in labels)), page.text()
        text = page.text()
        for column in ("learning_rate", "batch_size", "accuracy/validation", "accuracy/test"):
            assert column in text
        assert WINNER_RUN not in text
        assert not page.errors
