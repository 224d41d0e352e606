"""The time of each phase of a run, over blocks, iterators and processes."""

from __future__ import annotations

import itertools

import pytest

from fmnist.utils import phases as module
from fmnist.utils.phases import Phases


@pytest.fixture
def clock(monkeypatch):
    """Each reading of the clock is a second later."""
    ticks = itertools.count()
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(ticks)))


def test_phases_add_up(clock):
    before = {"training": 5.0}
    phases = Phases(before)
    with phases("views"):
        pass
    with pytest.raises(KeyError), phases("views"):
        raise KeyError
    phases.add("training", 2.0)
    assert phases.seconds == {"training": 7.0, "views": 2.0}
    assert list(phases.seconds) == ["training", "views"]
    assert before == {"training": 5.0}


def test_only_waiting_time_is_added(clock):
    phases = Phases()
    seen = []
    for item in phases.waiting_for("training", [1, 2, 3]):
        with phases("views"):
            seen.append(item)
    assert seen == [1, 2, 3]
    assert phases.seconds == {"training": 4.0, "views": 3.0}  # three items and the end
