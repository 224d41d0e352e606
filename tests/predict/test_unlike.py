"""What looks like nothing that was trained on is told, with a lower confidence."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from fmnist import load, load_run
from fmnist.functional import outliers
from fmnist.functional.types import ModelConfig
from fmnist.inference import trained
from fmnist.predict import command as predict
from fmnist.reports import publish
from fmnist.rundir import models
from fmnist.utils.errors import UserError

STUDY = Path(__file__).parents[2] / "studies" / "baseline"


@pytest.fixture(scope="module")
def known():
    params, state = models.load_model(models.best_path(STUDY))
    return publish.what_it_knows(params, state, load().train, 5000, ModelConfig())


@pytest.fixture
def run(known, tmp_path):
    """The committed study, with what its winner knows."""
    out = tmp_path / "run"
    shutil.copytree(STUDY / "best", out / "best")
    for name in ("study.toml", "results.csv"):
        shutil.copy(STUDY / name, out)
    models.save_features(models.features_path(out), known)
    return out


def predicted(capsys, run, *args):
    assert predict.main(["--run", str(run), *map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["predictions"]


def test_what_the_winner_knows_is_small_and_read_as_it_was_written(run, known):
    path = models.features_path(run)
    assert path.stat().st_size < 200_000
    for found, written in zip(models.load_features(path), known, strict=True):
        assert torch.equal(found, written)


def test_hardly_a_test_image_is_unlike(run):
    images = load().test.images
    shares = trained.shares(run, images)
    assert (shares < outliers.UNUSUAL).double().mean() < 0.01
    raw = trained.probabilities([trained.best_model(run)], images)
    stated = outliers.less_confident(raw, shares)
    assert torch.equal(stated.argmax(1), raw.argmax(1))
    assert np.array_equal(load_run(run).predict(images[:9]), raw[:9].numpy())


def test_an_unlike_picture_is_told_with_a_lower_confidence(run, known, tmp_path, capsys):
    """The distances of the validation images are divided, so that every picture is far."""
    image = load().test.images[0, 0].numpy()
    Image.fromarray(image).save(tmp_path / "boot.png")
    (near,) = predicted(capsys, run, tmp_path / "boot.png")
    assert near["probabilities"] == near["raw_probabilities"]
    assert (near["unlike_training"], near["share_as_far"] >= 0.005) == (False, True)
    far = known._replace(distances=known.distances / 1e6)
    models.save_features(models.features_path(run), far)
    (found,) = predicted(capsys, run, tmp_path / "boot.png")
    share, raw = found["share_as_far"], np.array(found["raw_probabilities"])
    assert (found["unlike_training"], share) == (True, pytest.approx(1 / 5001))
    weight = share / 0.005
    assert found["probabilities"] == pytest.approx(weight * raw + (1 - weight) / 10)
    assert found["likeliest"][0]["probability"] == max(found["probabilities"])
    assert raw == pytest.approx(near["raw_probabilities"])
    assert predict.main(["--run", str(run), str(tmp_path / "boot.png"), "--test", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines[0].endswith("   looks like nothing it was trained on")
    assert lines[1].endswith("   right; looks like nothing it was trained on")


def test_a_run_of_an_earlier_version_says_nothing(run, capsys):
    models.features_path(run).unlink()
    (found,) = predicted(capsys, run, "--test", "0")
    assert not {"unlike_training", "share_as_far", "raw_probabilities"} & found.keys()


def changed(**tensors):
    return lambda known: safetensors.torch.save(known._asdict() | tensors)


DAMAGED = {
    "empty": lambda known: b"",
    "no tensors": lambda known: safetensors.torch.save({}),
    "cut": lambda known: changed()(known)[:-9],
    "a long header": lambda known: struct.pack("<Q", 2**40) + b"{}",
    "too large": lambda known: changed(distances=torch.zeros(400_000))(known),
    "another width": changed(means=torch.zeros(10, 59)),
    "no dimension": changed(means=torch.zeros(())),
    "no classes": changed(means=torch.zeros(0, 60)),
    "too many classes": changed(means=torch.zeros(11, 60)),
    "another type": changed(means=torch.zeros(10, 60, dtype=torch.float64)),
    "not a number": changed(whitening=torch.full((60, 60), float("nan"))),
    "no distances": changed(distances=torch.zeros(0)),
    "not in order": changed(distances=torch.tensor([2.0, 1.0])),
    "one more": changed(more=torch.zeros(1)),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_file_gives_one_line(how, run, known):
    path = models.features_path(run)
    path.write_bytes(DAMAGED[how](known))
    with pytest.raises(UserError, match="best/features.safetensors: ") as raised:
        predict.main(["--run", str(run), "--test", "0"])
    assert len(str(raised.value).splitlines()) == 1
