"""A slice of each row equals Python's, in lanes as alone, with its derivatives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import normal, seeds
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacfwd, jacrev, jvp, vmap

from fmnist.functional.kernels.slices import slices


@st.composite
def rows_and_starts(draw, least=0):
    """Rows of any strides, and where their slices of a length begin."""
    count, length, more = (
        draw(st.integers(least, 6)),
        draw(st.integers(1, 5)),
        draw(st.integers(0, 4)),
    )
    rows = normal(count + 1, 2 * (length + more), seed=draw(seeds))
    rows = draw(st.sampled_from([
        rows[:count, : length + more], rows[1:, ::2], rows[:count, ::2].mT.contiguous().mT
    ]))  # fmt: skip
    starts = draw(st.lists(st.integers(0, more), min_size=count, max_size=count))
    return rows, torch.tensor(starts, dtype=torch.int64), length


@given(rows_and_starts())
@settings(deadline=None)
def test_slices_are_those_of_each_row(case):
    rows, starts, length = case
    before = rows.clone()
    out = slices(rows, starts, length)
    assert out.shape == (len(rows), length)
    for own, row, start in zip(out, rows, starts.tolist(), strict=True):
        assert torch.equal(own, row[start : start + length])
    assert torch.equal(rows, before)


@given(
    rows_and_starts(), st.integers(1, 3), st.sampled_from([(0, 0), (1, 0), (None, 0), (0, None)])
)
@settings(deadline=None)
def test_lanes_equal_each_alone(case, lanes, dims):
    rows, starts, length = case
    many = [
        x if dim is None else torch.stack([x.roll(i, 0) for i in range(lanes)], dim)
        for x, dim in zip((rows, starts), dims, strict=True)
    ]
    together = vmap(slices, (*dims, None))(*many, length)
    for i in range(lanes):
        own = (x if dim is None else x.select(dim, i) for x, dim in zip(many, dims, strict=True))
        assert torch.equal(together[i], slices(*own, length))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@given(rows_and_starts(least=1))
@settings(deadline=None, max_examples=20)
def test_derivatives_of_both_modes_alone_and_in_lanes(case):
    rows, starts, length = case
    rows = rows.double()

    def function(x):
        return slices(x, starts, length)

    at = (rows.clone().requires_grad_(),)
    assert gradcheck(function, at)
    assert gradgradcheck(function, at)
    assert torch.equal(jacfwd(function)(rows), jacrev(function)(rows))
    many = torch.stack([rows, 2 * rows])

    def loss(x):
        return function(x).square().sum()

    assert torch.equal(vmap(grad(loss))(many), torch.stack([grad(loss)(x) for x in many]))
    pushed = vmap(lambda x: jvp(loss, (x,), (torch.ones_like(x),))[1])(many)
    torch.testing.assert_close(pushed, vmap(grad(loss))(many).sum((1, 2)))
