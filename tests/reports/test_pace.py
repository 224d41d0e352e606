"""How far a study is, how fast, and how long it takes, for groups, resumes and slow beginnings."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmnist.reports.pace import Pace
from fmnist.tuning import events

IMAGES = 1000


def group(index, lanes, epochs, left, **more):
    trials = [SimpleNamespace(number=n) for n in range(lanes)]
    return events.GroupStarted(index, 3, trials, epochs, left, IMAGES, {}, "", **more)


@st.composite
def studies(draw):
    """Groups of lanes, some of them begun by an earlier run; and epochs that are done already."""
    epochs = draw(st.integers(1, 5))
    groups = draw(
        st.lists(st.tuples(st.integers(1, 4), st.integers(0, epochs - 1)), min_size=1, max_size=4)
    )
    return epochs, groups, draw(st.integers(0, 20)), draw(st.integers(2, 6))


@given(studies(), st.floats(0.01, 100), st.floats(0, 1000))
def test_a_constant_speed_is_found_whatever_comes_before_the_first_step(study, second, compiling):
    """Each image takes ``second``/1000; the first step of each group takes as long as you like."""
    epochs, groups, done, steps = study
    left = sum(lanes * (epochs - epoch) for lanes, epoch in groups)
    whole = left + done + sum(lanes * epoch for lanes, epoch in groups)
    pace, fractions, rest = Pace(), [0.0], left
    for index, (lanes, epoch) in enumerate(groups):
        pace.group(group(index, lanes, epochs, rest, epochs_all=whole, epoch=epoch, seconds=7.0))
        fractions.append(pace.fraction)
        assert pace.rate == 0
        assert math.isfinite(pace.left) == (index > 0)
        clock = 7.0 + compiling
        for now in range(epoch, epochs):
            for step in range(1, steps + 1):
                clock += second * lanes / steps
                pace.batches(events.BatchesTrained(now, IMAGES * step // steps, clock))
                fractions.append(pace.fraction)
                if step > 1 or now > epoch:
                    assert pace.rate == pytest.approx(IMAGES / second, rel=0.02)
            pace.epoch(events.EpochFinished(now + 1, {}, clock))
            rest -= lanes
            assert pace.left == pytest.approx(rest * second, rel=0.02, abs=1e-6)
            assert pace.fraction == pytest.approx(1 - rest / whole)
    assert fractions == sorted(fractions)
    assert pace.fraction == pytest.approx(1)


def test_a_time_that_is_unknown_moves_the_bar_only():
    """On a GPU, steps that were dispatched are not yet computed."""
    pace = Pace()
    pace.group(group(0, 2, 4, 8, epochs_all=8))
    pace.batches(events.BatchesTrained(0, 500, math.nan))
    assert (pace.fraction, pace.rate) == (pytest.approx(1 / 8), 0)
    pace.epoch(events.EpochFinished(1, {}, 20.0))  # compiling included: there is nothing better
    assert (pace.rate, pace.left) == (pytest.approx(100), pytest.approx(60))
    pace.batches(events.BatchesTrained(1, 1000, math.nan))
    assert (pace.fraction, pace.left) == (pytest.approx(1 / 2), pytest.approx(60))
    pace.epoch(events.EpochFinished(2, {}, 22.0))
    assert (pace.rate, pace.left) == (pytest.approx(1000), pytest.approx(4))
