"""Adam's update in one pass over gradients, parameters and moments, by Numba.

It is called by kernels/adam_update.py. Source: Kingma and Ba (2015), algorithm 1; Loshchilov and
Hutter (2019), algorithm 2.
"""

from __future__ import annotations

import numpy as np

from fmnist.functional.kernels.cpu.compiled import compiled
from fmnist.functional.kernels.cpu.jobs import (
    Job,
    doubles,
    floats,
    floats_at,
    integers,
    number,
    of_lane,
    places,
)
from fmnist.functional.kernels.cpu.simd import WIDTH, load, root, splat, store

PIECE = 8192
"""Parameters of a lane that are one task."""

(DECOUPLED,) = places(1)
"""The place of the number in a table: whether AdamW's weight decay is used."""

STEPS, RATE, BETA1, BETA2, EPS, DECAY, MEAN, SQUARE, UPDATES, MEANS, SQUARES, LEAVES = places(12)
"""The places of the arrays: the number of steps, including this one, and the numbers of Adam, of
each lane; moments before the step; the results; and ``[3, leaves]``, int64: addresses of the
gradients and of the parameters, which are contiguous, and their sizes in a lane."""


def tasks(lanes: int, parameters: int) -> int:
    """Return the number of tasks for so many parameters of a lane."""
    return lanes * -(-parameters // PIECE)


@compiled
def _number(table, which, lane):
    return doubles(table, which)[lane, 0, 0, 0, 0, 0]


@compiled
def _weights(table, lane):
    """Compute the coefficients of an update in float64.

    Returns:
        float32 ``[9]``. With ``t`` for the number of steps, they are

        * 0: ``decay``, or 0 if decoupled; times the parameter, added to the gradient
        * 1: ``1 - beta1``
        * 2: ``beta2``
        * 3: ``1 - beta2``
        * 4: ``sqrt(1 - beta2 ** t)``
        * 5: ``eps``
        * 6: ``-rate / (1 - beta1 ** t)``
        * 7: ``-rate * decay`` if decoupled, or 0; times the parameter, added to the update
        * 8: 1 if decoupled, or 0
    """
    decoupled = number(table, DECOUPLED) == 1
    steps = np.float64(integers(table, STEPS)[lane, 0, 0, 0, 0, 0])
    rate, beta1 = _number(table, RATE, lane), _number(table, BETA1, lane)
    beta2, decay = _number(table, BETA2, lane), _number(table, DECAY, lane)
    own = np.zeros(9, np.float32)
    own[0] = 0.0 if decoupled else decay
    own[1], own[2], own[3] = 1 - beta1, beta2, 1 - beta2
    own[4] = np.sqrt(1 - beta2**steps)
    own[5] = _number(table, EPS, lane)
    own[6] = -np.float32(rate / (1 - beta1**steps))
    own[7] = -rate * decay if decoupled else 0.0
    own[8] = decoupled
    return own


def _update(table, task):
    """Compute the updates and new moments of a piece of a lane, which is of one or more leaves."""
    leaves, count = integers(table, LEAVES), floats(table, MEAN).shape[1]
    lane, piece = divmod(task, -(-count // PIECE))
    factors = _weights(table, lane)
    first, last = piece * PIECE, min((piece + 1) * PIECE, count)
    start = np.int64(0)
    for leaf in range(leaves.shape[1]):
        size = leaves[2, leaf, 0, 0, 0, 0]
        begin, end = max(first - start, 0), min(last - start, size)
        if begin < end:
            offset, here = 4 * (lane * size + begin), slice(start + begin, start + end)
            _update_piece(
                floats_at(leaves[0, leaf, 0, 0, 0, 0] + offset, end - begin),
                floats_at(leaves[1, leaf, 0, 0, 0, 0] + offset, end - begin),
                of_lane(table, MEAN, lane)[here], of_lane(table, SQUARE, lane)[here],
                of_lane(table, UPDATES, lane)[here], of_lane(table, MEANS, lane)[here],
                of_lane(table, SQUARES, lane)[here], factors,
            )  # fmt: skip
        start += size


@compiled
def _update_piece(g, p, m, s, to_u, to_m, to_s, factors):
    """Update a part of a leaf of a lane."""
    rest = len(g) % WIDTH
    for at in range(0, len(g) - rest, WIDTH):
        _update_vector(g, p, m, s, to_u, to_m, to_s, at, factors)
    if rest:
        g, p, m, s = _padded(g, rest), _padded(p, rest), _padded(m, rest), _padded(s, rest)
        u = np.empty(WIDTH, np.float32)
        _update_vector(g, p, m, s, u, m, s, 0, factors)
        for i in range(rest):
            at = len(to_u) - rest + i
            to_u[at], to_m[at], to_s[at] = u[i], m[i], s[i]


@compiled
def _padded(part, rest):
    """Return the last ``rest`` numbers, padded with zeros to ``WIDTH``."""
    whole = np.zeros(WIDTH, np.float32)
    for i in range(rest):
        whole[i] = part[len(part) - rest + i]
    return whole


@compiled
def _update_vector(grad, param, mean, square, to_update, to_mean, to_square, at, factors):
    """Update ``WIDTH`` parameters from index ``at``, without fma, to round as torch does."""
    p = load(param, at)
    g = load(grad, at)
    if factors[8] == 0:
        g = g + p * splat(factors[0])
    m, s = load(mean, at), load(square, at)
    m = m + (g - m) * splat(factors[1])
    s = s * splat(factors[2]) + g * g * splat(factors[3])
    update = splat(factors[6]) * m / (root(s) / splat(factors[4]) + splat(factors[5]))
    if factors[8] != 0:
        update = update + p * splat(factors[7])
    store(to_update, at, update)
    store(to_mean, at, m)
    store(to_square, at, s)


update = Job(_update)
