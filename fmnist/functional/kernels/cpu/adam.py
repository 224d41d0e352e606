"""Adam's update in one pass over gradients, parameters and moments, by Numba.

It is called by kernels/adam_update.py. Source: Kingma and Ba (2015), algorithm 1; Loshchilov and
Hutter (2019), algorithm 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, prange

from fmnist.functional.kernels.cpu.simd import WIDTH, load, pointer, root, splat, store

PIECE = 8192  # parameters in one parallel task

_compiled: Any = njit(cache=True, nogil=True, error_model="numpy")
_parallel: Any = njit(parallel=True, cache=True, nogil=True)


@_compiled
def weights(steps, rates, beta1, beta2, eps, decay, decoupled):
    """Compute the coefficients of an update in float64.

    Args:
        steps: number of updates, including this one; int64 ``[lanes]``.
        rates, beta1, beta2, eps, decay: the numbers of Adam, float64 ``[lanes]``.
        decoupled: true for AdamW's weight decay, false for Adam's.

    Returns:
        float32 ``[lanes, 9]``. With ``t`` for the number of steps, the columns are

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
    factors = np.zeros((len(steps), 9), np.float32)
    for lane in range(len(steps)):
        correction = 1 - beta1[lane] ** np.float64(steps[lane])
        own = factors[lane]
        own[0] = 0.0 if decoupled else decay[lane]
        own[1], own[2], own[3] = 1 - beta1[lane], beta2[lane], 1 - beta2[lane]
        own[4] = np.sqrt(1 - beta2[lane] ** np.float64(steps[lane]))
        own[5], own[6] = eps[lane], -np.float32(rates[lane] / correction)
        own[7] = -rates[lane] * decay[lane] if decoupled else 0.0
        own[8] = decoupled
    return factors


@_parallel
def update(addresses, sizes, mean, square, updates, means, squares, factors):
    """Compute the updates and new moments of all leaves and write them to the output arrays.

    Args:
        addresses: int64 ``[2 * leaves]``: addresses of the gradients, then of the parameters. Each
            is contiguous float32 ``[lanes, size of the leaf]``.
        sizes: int64 ``[leaves]``: number of elements of each leaf in one lane.
        mean, square: moments before the step, float32 ``[lanes, all]``, where ``all`` is the sum
            of ``sizes`` and the leaves are one after another.
        updates, means, squares: outputs, float32 ``[lanes, all]``.
        factors: the result of :func:`weights`.
    """
    lanes, leaves = len(mean), len(sizes)
    starts = np.zeros(leaves + 1, np.int64)
    pieces = np.zeros(leaves + 1, np.int64)
    for leaf in range(leaves):
        starts[leaf + 1] = starts[leaf] + sizes[leaf]
        pieces[leaf + 1] = pieces[leaf] - (-sizes[leaf] // PIECE)
    for task in prange(lanes * pieces[-1]):
        lane, piece = divmod(np.int64(task), pieces[-1])
        leaf = 0
        while pieces[leaf + 1] <= piece:
            leaf += 1
        first = (piece - pieces[leaf]) * PIECE
        last = min(first + PIECE, sizes[leaf])
        begin, end = starts[leaf] + first, starts[leaf] + last
        shape = (lanes, sizes[leaf])
        _update_piece(
            carray(pointer(addresses[leaf]), shape)[lane, first:last],
            carray(pointer(addresses[leaves + leaf]), shape)[lane, first:last],
            mean[lane, begin:end], square[lane, begin:end], updates[lane, begin:end],
            means[lane, begin:end], squares[lane, begin:end], factors[lane],
        )  # fmt: skip


@_compiled
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


@_compiled
def _padded(part, rest):
    """Return the last ``rest`` numbers, padded with zeros to ``WIDTH``."""
    whole = np.zeros(WIDTH, np.float32)
    for i in range(rest):
        whole[i] = part[len(part) - rest + i]
    return whole


@_compiled
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
