"""Runs the tests' small real study in a process of its own: ``slice_study.py OUT``."""

from __future__ import annotations

import sys

from fmnist.utils import runtime

runtime.prepare()  # before torch, when this is the process

from fmnist.config.study import StudyConfig
from fmnist.data.fashion_mnist import Dataset, load
from fmnist.functional.types import ModelConfig, Split
from fmnist.study.run import run_study

CONFIG = StudyConfig(
    name="slice",
    epochs=2,
    holdout=500,
    model=ModelConfig(channels=(4, 6), hidden=(20,)),
    grid={"learning_rate": (0.01, 0.001), "batch_size": (50, 100, 200)},
)


def dataset() -> Dataset:
    """A tenth or less of the real images, every class in it."""
    whole = load()
    train, test = whole.train, whole.test
    return Dataset(
        Split(train.images[:2550], train.labels[:2550]),
        Split(test.images[:600], test.labels[:600]),
        "a slice",
    )


if __name__ == "__main__":
    run_study(CONFIG, sys.argv[1], dataset=dataset())
