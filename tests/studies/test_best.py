"""The committed networks of the study ``best`` have the accuracy that its pages report."""

import re
from pathlib import Path

import numpy as np
import optree

import fmnist

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "studies" / "best"


def test_the_committed_networks_have_the_reported_accuracy():
    run, test = fmnist.load_run(STUDY), fmnist.load().test
    labels = test.labels.numpy()
    said = [run.predict(test.images, trial=number) for number in run.results.number]
    right = [int((own.argmax(axis=1) == labels).sum()) for own in said]
    assert right == [round(10_000 * share) for share in run.results.test_accuracy]
    together = int((np.mean(said, axis=0).argmax(axis=1) == labels).sum())
    mean = sum(right) / len(right) / 10_000
    assert len(right) >= 5
    assert mean >= 0.936
    assert together >= 9430
    for page in (ROOT / "README.md", STUDY / "README.md"):
        text = page.read_text()
        assert f"{mean:.4f}" in text
        assert f"**{together / 10_000:.4f}**" in text


def test_what_is_committed_is_small():
    files = (ROOT / "studies").rglob("*.safetensors")
    assert sum(path.stat().st_size for path in files) < 20_000_000
    parameters = re.search(r"([\d,]+) parameters", (STUDY / "README.md").read_text())
    _, params, _ = fmnist.load_run(STUDY).model()
    assert int(parameters[1].replace(",", "")) == sum(
        leaf.numel() for leaf in optree.tree_leaves(params)
    )
