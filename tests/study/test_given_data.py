"""A data set that is given in Python: it is checked, has an identity, and names its classes."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given as for_all
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from in_process import call
from PIL import Image
from strategies import random_split, tiny_data, tiny_study
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fmnist.data import fashion_mnist, given
from fmnist.data.fashion_mnist import CLASS_NAMES, Dataset
from fmnist.functional.types import Split
from fmnist.reports.terminal import Progress
from fmnist.study.run import DATA, run_study
from fmnist.tuning import storage_url
from fmnist.utils.errors import UserError

CONFIG = tiny_study("given", holdout=10)
A, B = tiny_data(), tiny_data(7)
NAMES = ("zero", "<b>one</b>", "two|2", "*three*", "$four$", "five", "six", "seven", "ate", "nine")

pytestmark = pytest.mark.usefixtures("drawn_once")


def of(images=A.train.images, labels=A.train.labels, **more):
    """The data set A with other training images or labels."""
    return A._replace(train=Split(images, labels), **more)


PIXELS = A.train.images
LABELS = A.train.labels


@pytest.mark.parametrize(
    "dataset",
    [
        of(PIXELS.numpy()),
        of(PIXELS[:, 0]),
        of(PIXELS[:, 0].numpy(), LABELS.numpy().astype("uint8")),
        of(PIXELS[:, 0, :, :, None].numpy()),
        of(PIXELS.long(), LABELS.int()),
        of(PIXELS.numpy().astype(">i4"), LABELS.numpy().astype(">i8")),
        of(PIXELS.tolist(), LABELS.tolist()),
        of(PIXELS.mT.contiguous().mT, torch.stack([LABELS, LABELS], 1)[:, 0]),
        of(np.frombuffer(PIXELS.numpy().tobytes(), np.uint8).reshape(60, 28, 28)),
        of(PIXELS.numpy()[::-1][::-1]),
        A._replace(train=(PIXELS, LABELS), classes=list(CLASS_NAMES)),
    ],
    ids=range(11),
)
def test_data_with_one_meaning_is_converted(dataset):
    found = given.checked(dataset, 10)
    assert given.identity(found) == given.identity(given.checked(A, 10))
    for tensor, dtype in zip(found.train, (torch.uint8, torch.int64), strict=True):
        assert tensor.dtype == dtype
        assert tensor.is_contiguous()
    assert torch.equal(found.train.images, PIXELS)


WRONG = {
    "no data set": (None, "must be a fmnist.data.fashion_mnist.Dataset, not tuple"),
    "in [0, 1]": (of(PIXELS / 255), r"images must be pixels from 0 to 255 .*\* 255.*float32"),
    "in [0, 1] by NumPy": (of(PIXELS.numpy() / 255), "pixels from 0 to 255 .* float64"),
    "normalised": (of(PIXELS.bfloat16() - 127), "pixels from 0 to 255 .* torch.bfloat16"),
    "cut to 0 and 1": (of((PIXELS / 255).byte()), r"has no pixel above 1;.*\* 255"),
    "black": (of(torch.zeros_like(PIXELS)), "has no pixel above 0"),
    "negative": (of(PIXELS.int() - 9), "has pixels from -9 to 246"),
    "16 bits": (of(PIXELS.int() * 257), "has pixels from 0 to 65535"),
    "bool": (of(PIXELS > 99), "pixels from 0 to 255 .* torch.bool"),
    "32x32": (of(PIXELS.new_ones(60, 1, 32, 32)), r"must be .*28\], not \[60, 1, 32, 32\]"),
    "flat": (of(PIXELS.flatten(1)), r"must be .*28\], not \[60, 784\]"),
    "one image": (of(PIXELS[0, 0], LABELS[:1]), r"must be .*, not \[28, 28\]"),
    "coloured": (of(PIXELS.expand(60, 3, 28, 28)), r"not \[60, 3, 28, 28\]"),
    "empty": (of(PIXELS[:0], LABELS[:0]), r"train.images is empty"),
    "no test images": (A._replace(test=Split(PIXELS[:0], LABELS[:0])), "test.images is empty"),
    "meta": (of(PIXELS.to("meta")), "images must be"),
    "ragged": (of([[1], [1, 2]]), "images must be"),
    "none": (of(None), "images must be .* not NoneType"),
    "words": (of(labels=["Coat"] * 60), "labels must be whole numbers .* not list"),
    "floats": (of(labels=LABELS.float()), "labels must be whole numbers .* torch.float32"),
    "one-hot": (of(labels=torch.eye(10).long()[LABELS]), r"must be \[n\], not \[60, 10\]"),
    "fewer": (of(labels=LABELS[:50]), "has 60 images, but 50 labels"),
    "from 1": (of(labels=LABELS + 1), "go from 1 to 10; they must be from 0 to 9"),
    "below 0": (of(labels=LABELS - 1), "go from -1 to 8; they must be from 0 to 9"),
    "no pair": (A._replace(train=PIXELS), "dataset.train must be images and labels"),
    "small": (of(PIXELS[:10], LABELS[:10]), "has 10 images, of which holdout"),
    "nine names": (A._replace(classes=CLASS_NAMES[:9]), "classes must be 10 names"),
    "name twice": (A._replace(classes=("x",) * 10), "classes must be 10 names"),
    "lines": (A._replace(classes=("x\n", *CLASS_NAMES[1:])), "classes must be 10 names"),
    "numbers": (A._replace(classes=range(10)), "classes must be 10 names"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_data_is_refused_in_one_line_and_nothing_is_written(kind, tmp_path):
    dataset, said = WRONG[kind]
    with pytest.raises(UserError, match=said) as raised:
        run_study(CONFIG, tmp_path / "run", dataset=dataset or (A.train, A.test))
    assert len(str(raised.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


@for_all(
    arrays.arrays(
        st.one_of(arrays.scalar_dtypes(), arrays.unicode_string_dtypes()),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3),
    )
)
def test_any_array_is_data_or_refused(array):
    for dataset in (of(array), of(labels=array), of(array, array)):
        with pytest.raises(UserError, match=r"dataset\.train"):
            given.checked(dataset, 10)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished study of A with other names. Tests must not change it."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run_study(CONFIG, out, dataset=A._replace(classes=NAMES))
    return out


class Interrupt(Progress):
    """Presses Ctrl-C after a trial."""

    def trial(self, result):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (B, r"sha256: \w{64} there, \w{64} here"),
        (B._replace(classes=NAMES), "classes: .*T-shirt/top.* there, .*zero.* here"),
        (Dataset(random_split(61), A.test), "training images: 60 there, 61 here"),
        (None, "training images: 60 there, 60000 here; test images: 30 there"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_study_continues_with_its_own_data_only(tmp_path, other, said, finished):
    if finished:
        results = run_study(CONFIG, tmp_path, dataset=A)
    else:
        with pytest.raises(KeyboardInterrupt):
            run_study(CONFIG, tmp_path, dataset=A, progress=Interrupt(), max_lanes=1)
    for _ in range(2):
        with pytest.raises(UserError, match=rf"began with other data \({said}.*; continue it"):
            run_study(CONFIG, tmp_path, dataset=other)
    again = run_study(CONFIG, tmp_path, dataset=of(PIXELS.numpy()))
    assert not finished or again == results


def test_a_study_of_an_earlier_version_takes_the_data_that_it_continues_with(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_study(CONFIG, tmp_path, dataset=A, progress=Interrupt(), max_lanes=1)
    study = optuna.load_study(study_name="given", storage=storage_url.of_run(tmp_path))
    study._storage.set_study_user_attr(study._study_id, DATA, None)
    run_study(CONFIG, tmp_path, dataset=A)
    assert study.user_attrs[DATA]["test images"] == 30
    study._storage.set_study_user_attr(study._study_id, DATA, None)
    assert len(run_study(CONFIG, tmp_path)) == 2  # it is complete


def test_the_known_identity_is_that_of_fashion_mnist():
    assert given.identity(given.checked(fashion_mnist.load(), 5000)) == given.FASHION_MNIST


def test_holdout_zero_and_a_larger_batch_are_fine(tmp_path):
    config = replace(CONFIG, holdout=0, batch_size=1000)
    assert {result.state for result in run_study(config, tmp_path, dataset=A)} == {"COMPLETE"}


def test_views_show_the_names_of_the_classes(whole):
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;one&lt;/b&gt;" in page
    assert "<b>one</b>" not in page
    for text in (page, (whole / "report.md").read_text(encoding="utf-8")):
        assert "seven" in text
        assert not [name for name in CLASS_NAMES if name in text]
    about = json.loads((whole / "best" / "config.json").read_text())
    assert about["classes"] == list(NAMES)
    board = EventAccumulator(str(whole / "tensorboard" / "_winner"))
    board.Reload()
    (projector,) = (whole / "tensorboard" / "_winner").rglob("metadata.tsv")
    assert {line.split("\t")[0] for line in projector.read_text().splitlines()[1:]} <= {*NAMES}


def test_predict_names_the_classes_of_the_run(whole, tmp_path):
    Image.fromarray(PIXELS[0, 0].numpy()).save(tmp_path / "x.png")
    for more in ([], ["--ensemble"]):
        done = call("predict", "--run", whole, tmp_path / "x.png", *more)
        assert done.returncode == 0, done.stderr
        assert len(re.findall("|".join(map(re.escape, NAMES)), done.stdout)) == 3
    told = json.loads(call("predict", "--run", whole, tmp_path / "x.png", "--json").stdout)
    assert {each["class"] for each in told["predictions"][0]["likeliest"]} <= {*NAMES}
    done = call("predict", "--run", whole, "--test", "0,1")
    assert done.returncode == 2
    assert done.stderr == f"error: --test is for runs of Fashion-MNIST; {whole} has other classes\n"
