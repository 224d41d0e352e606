"""Tables of jobs: a compiled function reads what Python wrote."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from fmnist.functional.kernels.cpu import jobs

WHICH, LAST = jobs.places(2)


@njit
def _block(table, which, lane, block):
    return jobs.of_block(table, which, lane, block).copy()


@njit
def _lane(table, which, lane):
    return jobs.of_lane(table, which, lane).copy()


@njit
def _numbers(table, at):
    return jobs.number(table, at), jobs.real(table, at)


@settings(deadline=None)
@given(shape=st.lists(st.integers(1, 3), min_size=2, max_size=6), data=st.data())
def test_what_is_of_a_lane_or_a_block(shape, data):
    array = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    table = jobs.table((), (None, array))
    address, _ = table.buffer_info()
    lane, block = (data.draw(st.integers(0, size - 1)) for size in shape[:2])
    assert _lane(address, LAST, lane).tolist() == array[lane].flatten().tolist()
    assert _block(address, LAST, lane, block).tolist() == array[lane, block].flatten().tolist()


@settings(deadline=None)
@given(shape=st.lists(st.integers(0, 3), min_size=1, max_size=6).filter(lambda s: 0 in s))
def test_nothing_is_of_an_empty_array(shape):
    for array in (torch.empty(shape), None):
        table = jobs.table((), (array, None))
        address, _ = table.buffer_info()
        assert _lane(address, WHICH, 0).size == _block(address, WHICH, 0, 0).size == 0


def test_numbers_are_integers_or_floats():
    table = jobs.table((3, 0.1), ())
    address, _ = table.buffer_info()
    assert (_numbers(address, 0)[0], _numbers(address, 1)[1]) == (3, 0.1)
