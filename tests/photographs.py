"""Measures how runs do on photographs that are made of test images.

python tests/photographs.py studies/best studies/baseline --first 8000
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scenes import SCENES

from fmnist import load
from fmnist.inference import judging, pictures, trained


def accuracy(run: Path, items: Sequence[judging.Item], labels: torch.Tensor) -> float:
    """The share that is right, as fmnist.predict states it."""
    models = [trained.best_model(run)]
    stated = judging.stated(models, judging.turn_upright(run, items))
    return (torch.tensor(stated).argmax(dim=1) == labels[: len(items)]).double().mean().item()


def as_they_are(images: np.ndarray) -> list[judging.Item]:
    """The images of the data set."""
    return [item(image[:, None], "as it is") for image in images]


def photographed(images: np.ndarray, scene: str, folder: Path) -> list[judging.Item]:
    """The images in a scene, found again in it."""
    rng, items = np.random.default_rng(0), []
    for garment in images[:, 0]:
        SCENES[scene](garment, rng).save(folder / "photo.png")
        found = pictures.read(folder / "photo.png")
        items.append(item(found.views, found.cut))
    return items


def item(views: np.ndarray, cut: str) -> judging.Item:
    """What fmnist.predict makes of a picture."""
    return judging.Item("x", {"cut": cut}, torch.from_numpy(views))


def main() -> int:
    """Print a line for each scene and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--first", type=int, default=8000, help="the first test image")
    parser.add_argument("--images", type=int, default=2000)
    args = parser.parse_args()
    test = load().test
    images = test.images[args.first :][: args.images].numpy()
    labels = test.labels[args.first :][: args.images]
    plain = {run: accuracy(run, as_they_are(images), labels) for run in args.runs}
    for run, right in plain.items():
        print(f"{run!s:20s} {'as they are':14s} {right:.4f}", flush=True)
    for scene in SCENES:
        with tempfile.TemporaryDirectory() as folder:
            items = photographed(images, scene, Path(folder))
        for run, right in plain.items():
            found = accuracy(run, items, labels)
            unlike = np.mean([item.about.get("unlike_training", False) for item in items])
            print(
                f"{run!s:20s} {scene:14s} {found:.4f} {right - found:+.4f} unlike {unlike:.1%}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
