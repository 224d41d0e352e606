"""Fixtures and settings of the whole suite."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "benchmarks")]  # under importlib import mode

from fmnist.utils import runtime

runtime.prepare()  # as the commands do it, before torch

import pytest
from hypothesis import settings

settings.register_profile("suite", derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("suite")


@pytest.fixture
def sliced(monkeypatch: pytest.MonkeyPatch) -> None:
    """What loads the data in this process gets the small slice of it."""
    from slice_study import dataset

    monkeypatch.setattr("fmnist.data.fashion_mnist.load", lambda folder=None: dataset())
