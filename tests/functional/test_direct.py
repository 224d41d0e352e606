"""Each function that a traced program calls in place of an operator does exactly the same."""

from __future__ import annotations

import optree
import pytest
import torch
from strategies import normal

from fmnist.functional.kernels import direct

aten = torch.ops.aten
X, Y = normal(2, 3, 4, seed=1), normal(2, 3, 4, seed=2)
CALLS = {
    aten.add.Tensor: [(X, Y), (X, 2.0), (X, Y, {"alpha": 0.5})],
    aten.argmax.default: [(X,), (X, 1), (X, -1, True)],
    aten.bmm.default: [(X, Y.transpose(1, 2))],
    aten.clone.default: [
        (X.transpose(0, 1), {"memory_format": torch.contiguous_format}),
        (X.transpose(0, 1),),
    ],
    aten.constant_pad_nd.default: [(X, [1, 0, 0, 2]), (X, [0, 1], 3.0)],
    aten.div.Tensor: [(X, Y), (X, 3)],
    aten.eq.Tensor: [(X, X), (X.round(), Y.round())],
    aten.expand.default: [(X[:, :1], [2, 3, 4]), (X[:, :1], [2, -1, 4], {"implicit": False})],
    aten.gather.default: [
        (X, 1, torch.tensor([2, 0, 1]).view(1, 3, 1).expand(2, 3, 4)),
        (X, 2, torch.zeros(2, 3, 1, dtype=torch.int64), {"sparse_grad": False}),
    ],
    aten.index_select.default: [(X, 1, torch.tensor([2, 0, 2, 1])), (X, -1, torch.tensor([3]))],
    aten.lerp.Scalar: [(X, Y, 0.25)],
    aten.mul.Tensor: [(X, Y), (X, 2)],
    aten.neg.default: [(X,)],
    aten.permute.default: [(X, [2, 0, 1])],
    aten.relu.default: [(X,)],
    aten.scatter_add.default: [(X, 2, torch.zeros(2, 3, 1, dtype=torch.int64), Y)],
    aten.split_with_sizes.default: [(X, [1, 3], -1), (X, [1, 1])],
    aten.squeeze.dims: [(X[:, :1], [1]), (X[:1, :1], [0, 1]), (X, [2])],
    aten.sub.Tensor: [(X, Y), (X, Y, {"alpha": 2})],
    aten.sum.dim_IntList: [(X, [0]), (X, [0, 2], True), (X, [1], {"dtype": torch.float64})],
    aten.transpose.int: [(X, 0, -1)],
    aten.unsqueeze.default: [(X, 1)],
    aten.view.default: [(X, [6, -1])],
}


@pytest.mark.parametrize("operator", CALLS, ids=str)
def test_it_is_the_operator(operator):
    for call in CALLS[operator]:
        named = call[-1] if isinstance(call[-1], dict) else {}
        args = call[: len(call) - bool(named)]
        expected = operator(*args, **named)
        found = direct.FUNCTIONS[operator](*args, **named)
        for a, b in zip(optree.tree_leaves(found), optree.tree_leaves(expected), strict=True):
            assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
            assert torch.equal(a, b)


def test_every_operator_of_torch_is_here():
    assert {key for key in direct.FUNCTIONS if "aten" in str(key)} == set(CALLS)
