"""Fixtures and settings of the whole suite."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
# What tests share is found from any folder, under importlib import mode.
sys.path[:0] = [*map(str, (HERE, HERE / "stress", HERE.parent / "benchmarks"))]

# `make test` hands its own variables on, which a make that a test starts would take for its own.
for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "VENV", "ARGS", "PYTHON", "WORKERS"):
    os.environ.pop(name, None)

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers are as many as cores: one thread each, here and in the processes that tests start,
    # and no spinning. Tests of what threads do to numbers set their own.
    for name, value in (("NUM_THREADS", "1"), ("WAIT_POLICY", "passive")):
        os.environ.setdefault(f"OMP_{name}", value)
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")

from fmnist.utils import runtime

runtime.prepare()  # as the commands do it, before torch

import gc

import pytest
from hypothesis import settings
from optuna.storages._rdb import storage

settings.register_profile("suite", derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("suite")


def once(method):
    """A method whose first result is that of all calls, of whatever object."""
    found = []

    def remembered(self):
        if not found:
            found.append(method(self))
        return found[0]

    return remembered


# Optuna reads its migrations, for some 40 ms, whenever a storage is opened.
storage._VersionManager.get_head_version = once(storage._VersionManager.get_head_version)

LONG = ("gpu", "disk", "crash", "memory", "damage", "postgresql", "study", "fuzz", "resume", "vmap")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take long come first, so that no worker ends with one alone."""
    first = {f"test_{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: first.get(item.path.name, len(first)))


def pytest_collection_finish() -> None:
    """What is there now, libraries above all, need not be looked through for garbage again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def sliced(monkeypatch: pytest.MonkeyPatch) -> None:
    """What loads the data in this process gets the small slice of it."""
    from slice_study import dataset

    monkeypatch.setattr("fmnist.data.fashion_mnist.load", lambda folder=None: dataset())


@pytest.fixture(scope="session")
def drawn() -> dict[tuple[object, ...], bytes]:
    """The figures that were drawn."""
    return {}


@pytest.fixture
def drawn_once(monkeypatch: pytest.MonkeyPatch, drawn: dict[tuple[object, ...], bytes]) -> None:
    """A figure that was drawn before is only written."""
    from drawn_once import FIGURES, remembering

    for module, name in FIGURES:
        monkeypatch.setattr(module, name, remembering(getattr(module, name), drawn))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are single pixels, and TensorBoard gets no run of the winner."""
    from drawn_once import FIGURES, one_pixel

    for module, name in FIGURES:
        monkeypatch.setattr(module, name, one_pixel(getattr(module, name)))
    monkeypatch.setattr(
        "fmnist.reports.tensorboard.winner.write_winner",
        lambda out, *_: Path(out) / "tensorboard" / "_winner",
    )
