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
from PIL import Image, ImageDraw, ImageFilter, ImageFont

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
    return models.load_features(models.features_path(STUDY))


@pytest.fixture
def run(tmp_path):
    """A copy of the committed study."""
    out = tmp_path / "run"
    shutil.copytree(STUDY / "best", out / "best")
    for name in ("study.toml", "results.csv"):
        shutil.copy(STUDY / name, out)
    return out


def predicted(capsys, run, *args):
    assert predict.main(["--run", str(run), *map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["predictions"]


def test_what_the_winner_knows_is_small_and_read_as_it_was_written(tmp_path):
    params, state = models.load_model(models.best_path(STUDY))
    known = publish.what_it_knows(params, state, load().train, 5000, ModelConfig())
    path = tmp_path / "features.safetensors"
    models.save_features(path, known)
    assert path.stat().st_size < 600_000
    found = models.load_features(path)
    assert torch.equal(found.distances, known.distances)
    for look, written in zip(found.prototypes, known.prototypes, strict=True):
        torch.testing.assert_close(look, written, atol=1e-3, rtol=0)


def test_about_one_of_a_hundred_test_images_is_unlike(run):
    images = load().test.images
    shares = trained.familiarity(run, images).shares
    assert (shares < outliers.UNUSUAL).double().mean() < 0.015
    raw = trained.probabilities([trained.best_model(run)], images)
    stated = outliers.less_confident(raw, outliers.weights(shares))
    assert torch.equal(stated.argmax(1), raw.argmax(1))
    assert np.array_equal(load_run(run).predict(images[:9]), raw[:9].numpy())


@pytest.mark.parametrize("kind", ["face", "letter", "ring", "star"])
def test_what_is_no_garment_is_told(kind, run, tmp_path, capsys):
    """Most of 40 drawings, each on an even ground."""
    rng, paths = np.random.default_rng(0), [tmp_path / f"{i}.png" for i in range(40)]
    for path in paths:
        NO_GARMENT[kind](rng).save(path)
    found = predicted(capsys, run, *paths)
    told = [item["unlike_training"] or item["cut"] == "whole" for item in found]
    assert sum(told) >= AT_LEAST[kind] * len(told)
    for item, is_told in zip(found, told, strict=True):
        raw, stated = max(item["raw_probabilities"]), max(item["probabilities"])
        assert (stated < raw) if is_told else (stated == raw)


def face(rng):
    shot, picture, ink = drawing(rng)
    r = rng.integers(45, 80)
    shot.ellipse((140 - 0.8 * r, 105 - r, 140 + 0.8 * r, 105 + r), fill=int(rng.integers(120, 190)))
    for x in (-0.35 * r, 0.35 * r):
        box = (140 + x - 0.1 * r, 105 - 0.35 * r, 140 + x + 0.1 * r, 105 - 0.15 * r)
        shot.ellipse(box, fill=ink)
    shot.ellipse((140 - 0.3 * r, 105 + 0.35 * r, 140 + 0.3 * r, 105 + 0.5 * r), fill=ink)
    return picture.filter(ImageFilter.GaussianBlur(1))


def letter(rng):
    shot, picture, ink = drawing(rng)
    font = ImageFont.load_default(int(rng.integers(100, 150)))
    shot.text((140, 105), str(rng.choice(list("ABEGKMQRSW"))), font=font, anchor="mm", fill=ink)
    return picture


def ring(rng):
    shot, picture, ink = drawing(rng)
    r = rng.integers(40, 90)
    box = (140 - r, 105 - r, 140 + r, 105 + r)
    shot.ellipse(box, outline=ink, width=int(rng.integers(6, 14)))
    return picture


def star(rng):
    shot, picture, ink = drawing(rng)
    points, r = int(rng.integers(4, 9)), rng.integers(50, 95)
    angles = rng.uniform(0, 6) + np.pi * np.arange(2 * points) / points
    radii = r * np.tile([0.4, 1.0], points)
    at = np.stack([140 + radii * np.cos(angles), 105 + radii * np.sin(angles)], axis=1)
    shot.polygon([tuple(point) for point in at], fill=ink)
    return picture


def drawing(rng):
    picture = Image.new("L", (280, 210), int(rng.integers(200, 256)))
    return ImageDraw.Draw(picture), picture, int(rng.integers(20, 100))


NO_GARMENT = {"face": face, "letter": letter, "ring": ring, "star": star}
AT_LEAST = {"face": 0.9, "letter": 0.75, "ring": 0.9, "star": 0.9}


def test_an_unlike_picture_is_told_with_a_lower_confidence(run, known, tmp_path, capsys):
    """The distances of the validation images are divided, so that every picture is far."""
    image = load().test.images[0, 0].numpy()
    Image.fromarray(image).save(tmp_path / "boot.png")
    (near,) = predicted(capsys, run, tmp_path / "boot.png")
    assert near["probabilities"] == near["raw_probabilities"]
    assert (near["unlike_training"], near["share_as_far"] >= 0.01) == (False, True)
    models.save_features(models.features_path(run), known._replace(distances=known.distances / 1e6))
    (found,) = predicted(capsys, run, tmp_path / "boot.png")
    share, raw = found["share_as_far"], np.array(found["raw_probabilities"])
    assert (found["unlike_training"], share) == (True, pytest.approx(len(known.prototypes) / 5001))
    weight = share / 0.01
    assert found["probabilities"] == pytest.approx(weight * raw + (1 - weight) / 10)
    assert found["likeliest"][0]["probability"] == max(found["probabilities"])
    assert raw == pytest.approx(near["raw_probabilities"])
    assert predict.main(["--run", str(run), str(tmp_path / "boot.png"), "--test", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines[0].endswith("   looks like nothing it was trained on")
    assert lines[1].endswith("   right; looks like nothing it was trained on")
    photo = Image.new("L", (280, 210), 255)
    photo.paste(Image.fromarray(255 - image).resize((112, 112)), (84, 49))
    photo.save(tmp_path / "photo.png")
    assert predict.main(["--run", str(run), str(tmp_path / "photo.png")]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "   no single object found that looks like what it was trained on" in last


def test_a_garment_that_was_turned_is_turned_back(run, tmp_path, capsys):
    garment = Image.fromarray(255 - load().test.images[1, 0].numpy())  # a pullover
    photo = Image.new("L", (280, 210), 255)
    photo.paste(garment.resize((112, 112)), (84, 49))
    for angle in (0, 15, -15):
        photo.rotate(angle, fillcolor=255).save(tmp_path / f"{angle}.png")
    found = predicted(capsys, run, *(tmp_path / f"{angle}.png" for angle in (0, 15, -15)))
    assert [np.sign(item["turned"]) for item in found] == [0, -1, 1]
    assert [item["likeliest"][0]["class"] for item in found] == ["Pullover"] * 3
    assert predict.main(["--run", str(run), str(tmp_path / "15.png")]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("   turned by 15°; inverted: it was dark on light")


def test_the_committed_file_is_made_of_the_committed_parameters(known):
    found = models.load_features(models.features_path(STUDY))
    torch.testing.assert_close(found.distances, known.distances, atol=1e-3, rtol=1e-2)


def test_a_run_of_an_earlier_version_says_nothing(run, tmp_path, capsys):
    models.features_path(run).unlink()
    (found,) = predicted(capsys, run, "--test", "0")
    assert not {"unlike_training", "share_as_far"} & found.keys()
    assert found["probabilities"] == found["raw_probabilities"]


def test_a_picture_without_a_single_object_has_half_the_weight(run, tmp_path, capsys):
    stripes = np.tile(np.repeat([40, 220], 8), (280, 20)).astype(np.uint8)
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    models.features_path(run).unlink()
    (found,) = predicted(capsys, run, tmp_path / "stripes.png")
    assert found["cut"] == "whole"
    expected = 0.5 * np.array(found["raw_probabilities"]) + 0.05
    assert found["probabilities"] == pytest.approx(expected)


def changed(**tensors):
    def change(known):
        written = {f"prototypes{i}": look.half() for i, look in enumerate(known.prototypes)}
        return safetensors.torch.save({**written, "distances": known.distances} | tensors)

    return change


DAMAGED = {
    "empty": lambda known: b"",
    "no tensors": lambda known: safetensors.torch.save({}),
    "cut": lambda known: changed()(known)[:-9],
    "a long header": lambda known: struct.pack("<Q", 2**40) + b"{}",
    "too large": changed(distances=torch.zeros(3, 400_000)),
    "another width": changed(prototypes2=torch.zeros(300, 59, dtype=torch.float16)),
    "no dimension": changed(prototypes2=torch.zeros((), dtype=torch.float16)),
    "no prototypes": changed(prototypes2=torch.zeros(0, 60, dtype=torch.float16)),
    "too many prototypes": changed(prototypes2=torch.zeros(301, 60, dtype=torch.float16)),
    "another type": changed(prototypes2=torch.zeros(300, 60)),
    "not a number": changed(prototypes2=torch.full((300, 60), float("nan")).half()),
    "no distances": changed(distances=torch.zeros(3, 0)),
    "too few looks": changed(distances=torch.zeros(2, 50)),
    "a distance": changed(distances=torch.zeros(())),
    "not in order": changed(distances=torch.tensor([[2.0, 1.0]] * 3)),
    "one more": changed(more=torch.zeros(1)),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_file_gives_one_line(how, run, known):
    path = models.features_path(run)
    path.write_bytes(DAMAGED[how](known))
    with pytest.raises(UserError, match=r"best/features.safetensors: ") as raised:
        predict.main(["--run", str(run), "--test", "0"])
    assert len(str(raised.value).splitlines()) == 1
