"""Waiting for trouble to pass: when, how long, and how a wait ends."""

from __future__ import annotations

import errno
import logging
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmnist.utils import patience
from fmnist.utils.patience import patient, repeated

FULL = OSError(errno.ENOSPC, "No space left on device", "there")


class Failing:
    """A function that raises these errors, one at each call, and then returns 7."""

    def __init__(self, *errors):
        self.errors, self.calls = list(errors), 0

    def __call__(self):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return 7


@pytest.fixture
def clock(monkeypatch):
    """A clock that sleeping moves. Returns the list of the moments of waking up."""
    moments = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: moments[-1])
    monkeypatch.setattr(time, "sleep", lambda seconds: moments.append(moments[-1] + seconds))
    return moments


def test_full_disk_is_waited_for_and_the_log_says_so(clock, caplog):
    failing = Failing(*[FULL] * 3)
    with caplog.at_level(logging.WARNING), patient(60, lambda: None):
        assert repeated(failing) == 7
    assert caplog.messages == [
        "there: No space left on device; trying again for up to 60 s",
        "that has passed, after 1 s",
    ]


@pytest.mark.parametrize(
    "error", [OSError(errno.EROFS, "Read-only file system"), ValueError(), KeyboardInterrupt()]
)
def test_other_errors_are_raised_at_once(clock, caplog, error):
    failing = Failing(error)
    with patient(60, lambda: None), pytest.raises(type(error)):
        repeated(failing)
    assert (failing.calls, clock, caplog.messages) == (1, [0.0], [])


def test_without_patience_nothing_is_waited_for(clock, caplog):
    failing = Failing(FULL)
    with pytest.raises(OSError, match="No space"):
        repeated(failing)
    with patient(0, lambda: None), pytest.raises(OSError, match="No space"):
        repeated(Failing(FULL))
    assert (failing.calls, clock, caplog.messages) == (1, [0.0], [])


@given(st.floats(0.01, 1000))
def test_wait_ends_in_time_with_the_error(seconds):
    with pytest.MonkeyPatch.context() as patch:
        moments = [0.0]
        patch.setattr(time, "monotonic", lambda: moments[-1])
        patch.setattr(time, "sleep", lambda wait: moments.append(moments[-1] + wait))
        failing = Failing(*[FULL] * 10_000)
        with patient(seconds, lambda: None), pytest.raises(OSError, match="No space"):
            repeated(failing)
    assert moments[-1] == pytest.approx(seconds)
    # More and more slowly, but at least once in the longest pause.
    assert seconds / patience._LONGEST_PAUSE < failing.calls < 10 + seconds / 4


def test_check_ends_a_wait_several_times_a_second(clock):
    def check():
        if clock[-1] > 7.3:
            raise KeyboardInterrupt

    with patient(600, check), pytest.raises(KeyboardInterrupt):
        repeated(Failing(*[FULL] * 1000))
    assert clock[-1] < 7.5


def test_calls_around_one_that_has_given_up_do_not_wait_again(clock):
    inner = Failing(*[FULL] * 1000)
    calls = []

    def outer():
        calls.append(None)
        return repeated(inner)

    with patient(10, lambda: None), pytest.raises(OSError, match="No space"):
        repeated(outer)
    assert (len(calls), inner.calls > 3) == (1, True)
    assert clock[-1] == pytest.approx(10)


@pytest.mark.parametrize("inner", [True, False], ids=["inner", "outer"])
def test_call_that_knows_the_reason_waits_whatever_is_around_it_or_within(clock, inner):
    failing = Failing(*[KeyError("locked")] * 3)
    knows, does_not = (lambda _: "locked"), patience.full_disk
    first, second = (knows, does_not) if inner else (does_not, knows)
    with patient(60, lambda: None):
        assert repeated(lambda: repeated(failing, first), second) == 7
    assert (failing.calls, clock[-1]) == (4, pytest.approx(0.7))
