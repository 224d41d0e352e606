"""A study of the user's own model: the MLP-mixer of docs/models.md and its study file."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from in_process import call
from PIL import Image
from slice_study import dataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fmnist
from fmnist.data import fashion_mnist
from fmnist.inference import trained
from fmnist.reports.terminal import Progress
from fmnist.rundir import models
from fmnist.tuning.events import EpochFinished

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")


def block(language):
    """Return the first code block of this language on the page."""
    return re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's files, nets.py and mixer.toml, with a smaller holdout for fewer images."""
    own = tmp_path_factory.mktemp("own")
    (own / "nets.py").write_text(block("python"))
    study = block("toml").replace("epochs = 2", "epochs = 2\nholdout = 500")
    (own / "mixer.toml").write_text(study)
    sys.path.insert(0, str(own))
    patched = pytest.MonkeyPatch()
    patched.setattr(fashion_mnist, "load", lambda folder=None: dataset())
    yield own
    patched.undo()
    sys.path.remove(str(own))
    sys.modules.pop("nets", None)


@pytest.fixture(scope="module")
def run(folder):
    done = call("study", "mixer.toml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "mixer"


def rows(run):
    """Return the results without their times."""
    lines = (run / "results.csv").read_text().splitlines()
    return [line.split(",")[:-2] for line in lines]


def test_a_trial_is_a_lane_of_fit_bit_for_bit(folder, run):
    study = fmnist.load_study(folder / "mixer.toml")
    training, validation = dataset().holdout(study.holdout)
    model = importlib.import_module("nets").mixer(width=24, blocks=1)
    lanes = {"learning_rate": [0.003, 0.01], "weight_decay": 0.0}
    epochs = list(
        fmnist.fit(
            model, fmnist.adamw, training, validation,
            lanes=lanes, batch_size=study.batch_size, epochs=study.epochs,
        )
    )  # fmt: skip
    found = {rate: numbers[:4] for _, width, rate, _, *numbers in rows(run) if width == "24"}
    for lane, rate in enumerate(("0.003", "0.01")):
        last = epochs[-1]
        numbers = (last.train, last.validation)
        ours = [n[lane].item() for m in numbers for n in (m.loss, m.accuracy)]
        assert list(map(float, found[rate])) == ours


def test_report_and_best_describe_the_model(run):
    for name in ("report.html", "report.md"):
        text = (run / name).read_text()
        assert "nets:mixer" in text
        assert "width=24" in text  # the page has the word in its styles, too
    model = json.loads((run / "best" / "config.json").read_text())["model"]
    assert model["factory"] == "nets:mixer"
    assert model["blocks"] == 1
    assert len(model["source"]) == 64


def test_tensorboard_has_the_axes_and_the_graph(run):
    board = EventAccumulator(str(run / "tensorboard" / "_winner"))
    board.Reload()
    assert "layer_norm" in str(board.Graph())
    assert len(list((run / "tensorboard").glob("* width=*"))) == 4


def test_predict_uses_the_model(folder, run, tmp_path):
    picture = tmp_path / "boot.png"
    images = dataset().test.images
    Image.fromarray(images[0, 0].numpy()).save(picture)
    done = call("predict", "--run", "runs/mixer", picture, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "boot.png" in done.stdout
    best = json.loads((run / "best" / "config.json").read_text())
    assert accuracy(run) == pytest.approx(best["test_accuracy"], abs=0.005)


def accuracy(run):
    """Return the accuracy on the test images with the parameters of the run."""
    test = dataset().test
    predicted = trained.probabilities([trained.best_model(run)], test.images).argmax(1)
    return (predicted == test.labels).double().mean().item()


class Interrupt(Progress):
    """Presses Ctrl-C after an epoch."""

    def __call__(self, event):
        if isinstance(event, EpochFinished):
            raise KeyboardInterrupt


def test_interrupted_study_ends_with_the_same_numbers(folder, run, tmp_path):
    study = fmnist.load_study(folder / "mixer.toml")
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            fmnist.run_study(study, tmp_path / "again", progress=Interrupt())
    fmnist.run_study(study, tmp_path / "again")
    assert rows(tmp_path / "again") == rows(run)


def test_a_changed_source_is_refused_in_one_line(folder, run, tmp_path):
    kept = (folder / "nets.py").read_text()
    copy = shutil.copytree(folder, tmp_path / "copy")
    (folder / "nets.py").write_text(kept + "# changed\n")
    sys.modules.pop("nets")
    try:
        for done in (
            call("study", "mixer.toml", cwd=folder),
            call("study", "mixer.toml", "--epochs", "3", cwd=folder),
            call(
                "predict",
                "--run",
                "runs/mixer",
                copy / "runs/mixer/figures/samples.png",
                cwd=folder,
            ),
        ):
            assert done.returncode == 2
            assert len(done.stderr.splitlines()) == 1
            assert "the source of nets:mixer has changed since" in done.stderr
            assert "runs/mixer/" in done.stderr
    finally:
        (folder / "nets.py").write_text(kept)
        sys.modules.pop("nets", None)
    assert call("study", "mixer.toml", cwd=folder).returncode == 0


def test_loaded_run_predicts_and_is_exported(run, tmp_path):
    loaded, images = fmnist.load_run(run), dataset().test.images[:50]
    assert set(loaded.results.width) == {16, 24}
    best = trained.best_model(run)
    assert best.label == ",".join(f"{k}={v}" for k, v in loaded.winner.configuration.items())
    with torch.no_grad():
        logits = loaded.module()(images / 255)
    expected = torch.from_numpy(loaded.predict(images))
    torch.testing.assert_close(logits.double().softmax(1), expected, rtol=0, atol=1e-6)
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (see the extra `test`)")
    import onnxruntime

    loaded.to_onnx(tmp_path / "mixer.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "mixer.onnx")
    (found,) = session.run(None, {"images": (images / 255).numpy()})
    torch.testing.assert_close(torch.from_numpy(found), logits, rtol=1e-5, atol=1e-5)


def test_reference_refuses_other_models(folder):
    done = call("reference", "mixer.toml", cwd=folder)
    assert done.returncode == 2
    assert 'factory = "nets:mixer": is not the built-in network' in done.stderr


BROKEN = """
import torch, torch.nn.functional as F, fmnist

def model(apply):
    def init(seed):
        return {"w": torch.ones(10, 784)}, ()
    return fmnist.Model(init, apply)

def dropped() -> fmnist.Model:
    def apply(p, s, x, *, train, noise=()):
        x = F.dropout(x, training=train)
        return x.flatten(1) @ p["w"].mT, s
    return model(apply)

def in_place() -> fmnist.Model:
    def apply(p, s, x, *, train, noise=()):
        y = x.flatten(1) @ p["w"].mT
        y += 1
        return y, s
    return model(apply)
"""


@pytest.mark.parametrize("name", ["dropped", "in_place"])
def test_error_of_the_users_code_in_training_gives_one_line(folder, tmp_path, name):
    (folder / "broken_nets.py").write_text(BROKEN)
    arguments = ("--set", f"factory=broken_nets:{name}", "--epochs", "1", "--set", "holdout=500")
    done = call("study", *arguments, "--out", tmp_path / "run", cwd=folder)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert f'factory = "broken_nets:{name}": cannot be used with ()' in line


def test_names_of_parameters_that_are_not_unique(tmp_path):
    params = {"a.w": torch.ones(2), "a": {"w": torch.zeros(3)}, "none": None, "": torch.ones(())}
    names, leaves, _ = models.named_leaves((params, ()), skip=1)
    assert len(set(names)) == len(leaves) == 3
    digest = models.save_model(tmp_path / "x.safetensors", params, (torch.ones(4),))
    assert len(digest) == 64
