"""Schedules equal those of torch.optim.lr_scheduler at every step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import vmap
from torch.optim import SGD, lr_scheduler

from fmnist.functional.schedules import SCHEDULES, factor

PEAK = 0.3


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def ours(schedule, steps, warmup=0.0, floor=0.0):
    numbers = number(warmup), number(floor)
    return [PEAK * factor(schedule, torch.tensor(t), steps, *numbers).item() for t in range(steps)]


def theirs(steps, make):
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    schedule, rates = make(optimizer), []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step + 1 < steps:  # torch refuses a step after the last
            schedule.step()
    return rates


def with_warmup(after, warm):
    def make(optimizer):
        rising = lr_scheduler.LinearLR(optimizer, 1 / warm, 1.0, warm - 1)
        return lr_scheduler.SequentialLR(optimizer, [rising, after(optimizer)], [warm])

    return make


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")
@given(st.integers(2, 12), st.integers(3, 40), st.sampled_from([0.0, 0.01, 0.5, 1.0]))
@settings(deadline=None)
def test_schedules_with_warmup_equal_torch(warm, left, floor):
    steps = warm + left
    for name, after in {
        "constant": lambda o: lr_scheduler.ConstantLR(o, 1.0),
        "linear": lambda o: lr_scheduler.LinearLR(o, 1.0, floor, left),
        "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, left, eta_min=floor * PEAK),
    }.items():
        expected = theirs(steps, with_warmup(after, warm))
        assert ours(name, steps, warm / steps, floor) == pytest.approx(expected, abs=1e-12)


@given(st.integers(10, 60), st.sampled_from([0.25, 0.3, 0.5]), st.sampled_from([1e-6, 0.01]))
@settings(deadline=None)
def test_one_cycle_equals_torch(steps, warmup, floor):
    def make(optimizer):
        return lr_scheduler.OneCycleLR(
            optimizer, PEAK, total_steps=steps, pct_start=warmup, cycle_momentum=False,
            final_div_factor=1 / (25 * floor),
        )  # fmt: skip

    expected = theirs(steps, make)
    assert ours("one-cycle", steps, warmup, floor) == pytest.approx(expected, abs=1e-9)


@given(
    st.sampled_from(SCHEDULES),
    st.integers(1, 200),
    st.floats(0, 0.99),
    st.floats(0, 1),
)
@settings(deadline=None)
def test_factor_is_from_0_to_1_reaches_its_peak_and_ends_low(schedule, steps, warmup, floor):
    factors = [rate / PEAK for rate in ours(schedule, steps, warmup, floor)]
    assert all(-1e-12 <= f <= 1 + 1e-12 for f in factors)
    if warmup == 0:
        assert factors[0] == 1
    if schedule == "one-cycle":
        # The peak is between two steps if the warm-up is no whole number of steps.
        assert max(factors) >= 1 - 5 / max(warmup * steps, (1 - warmup) * steps, 1)
        assert factors[-1] == pytest.approx(floor) or steps < 3 or warmup * steps > steps - 2
    elif warmup * steps >= 1:
        assert factors[0] == pytest.approx(1 / (warmup * steps))


def test_lanes_have_their_own_numbers():
    warmup, floor = number([0.0, 0.2, 0.5]), number([0.1, 0.0, 0.3])
    for schedule in SCHEDULES:
        at = torch.tensor(7)
        many = vmap(lambda w, f, s=schedule, t=at: factor(s, t, 30, w, f))(warmup, floor)
        for i in range(3):
            assert many[i] == factor(schedule, at, 30, warmup[i], floor[i])
