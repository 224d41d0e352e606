"""A model as an ONNX file computes what the model does."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fmnist
from fmnist.functional import cnn
from fmnist.functional.types import ModelConfig
from fmnist.inference import export
from fmnist.reference import Network
from fmnist.utils.errors import UserError

BASELINE = Path(__file__).parents[2] / "studies" / "baseline"


def session(path):
    """Load an ONNX file in onnxruntime."""
    runtime = pytest.importorskip(
        "onnxruntime", reason="onnxruntime is not installed (it is in the extra `test`)"
    )
    return runtime.InferenceSession(path, providers=["CPUExecutionProvider"])


def need_exporter():
    for name in export.PACKAGES:
        pytest.importorskip(name, reason=f"{name} is not installed (it is in the extra `test`)")


@pytest.fixture(scope="module")
def images():
    return fmnist.load().test.images[:300]


def test_baseline_predicts_the_same_in_onnxruntime(images, tmp_path, capfd):
    need_exporter()
    run, path = fmnist.load_run(BASELINE), tmp_path / "winner.onnx"
    path.write_text("an older file")
    run.to_onnx(path)
    assert capfd.readouterr() == ("", "")
    assert [file.name for file in tmp_path.iterdir()] == ["winner.onnx"], "weights are in it"
    network = session(path)
    (entry,), (end,) = network.get_inputs(), network.get_outputs()
    assert (entry.name, entry.type, entry.shape) == (
        "images",
        "tensor(float)",
        ["batch", 1, 28, 28],
    )
    assert (end.name, end.type, end.shape) == ("logits", "tensor(float)", ["batch", 10])
    for count in (1, 2, 300):
        (logits,) = network.run(None, {"images": images[:count].numpy().astype(np.float32) / 255})
        with torch.no_grad():
            expected = run.module()(images[:count] / 255)
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
        chances = torch.from_numpy(logits).double().softmax(dim=1)
        np.testing.assert_allclose(chances, run.predict(images[:count]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(channels=(3,), hidden=(), kernel_size=27),
        ModelConfig(channels=(2, 3, 4, 5), hidden=(7,), kernel_size=1, precision="tf32"),
        ModelConfig(channels=(8, 4), hidden=(9, 8, 7), dropout=0.5, precision="bfloat16"),
        ModelConfig(channels=(1, 5, 2), hidden=(1,), kernel_size=2, dropout=0.9),
        ModelConfig(channels=(2, 3), hidden=(4,), kernel_size=3, padding=2),
        ModelConfig(channels=(2, 3), hidden=(4,), padding="same"),
        ModelConfig((2, 3), (4, 3), linear_norm=True, flip_average=True, feature_dropout=0.5),
    ],
    ids=str,
)
def test_every_setting_of_the_model_is_exported(config, images, tmp_path):
    need_exporter()
    network = Network(config)
    with torch.no_grad():  # other statistics than those of the beginning
        network(images[:100] / 255)
    export.write_onnx(network.eval(), tmp_path / "x.onnx")
    pixels = images / 255
    (logits,) = session(tmp_path / "x.onnx").run(None, {"images": pixels.numpy()})
    with torch.no_grad():
        expected = network(pixels)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_a_model_that_the_exporter_does_not_know_gives_one_line(tmp_path):
    need_exporter()

    class Odd(torch.nn.Module):
        def forward(self, images):
            return images if images.sum() > 0 else -images

    with pytest.raises(UserError, match="cannot be written as ONNX") as raised:
        export.write_onnx(Odd().eval(), tmp_path / "x.onnx")
    assert len(str(raised.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_packages_that_are_missing_are_named(tmp_path, monkeypatch):
    for name in export.PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)  # import does not find it then
        with pytest.raises(ImportError):
            importlib.import_module(name)
    said = "ONNX needs onnx and onnxscript: pip install onnx onnxscript"
    with pytest.raises(UserError, match=said):
        fmnist.load_run(BASELINE).to_onnx(tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_every_precision_is_exported_in_float32():
    config = ModelConfig(precision="bfloat16")
    assert cnn.compute_dtype(config) == torch.bfloat16
    assert {leaf.dtype for leaf in Network(config).parameters()} == {torch.float32}
