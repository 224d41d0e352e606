"""Jobs: functions that threads share, each compiled apart and called by its address.

Numba compiles a loop with ``prange`` and everything that it calls together, four times over. Here
there is one such loop, which knows of a job only where it is in memory. Compiling so takes little
more than half of the time (benchmarks/README.md).

A job is a function of the address of a *table* and of the number of a task. The table lists where
its arrays are, and their shapes. Results do not depend on which thread does a task.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, prange
from numba.core import types
from numba.extending import intrinsic
from torch import Tensor

from fmnist.functional.kernels.cpu.compiled import compiled

NUMBERS = 8
"""Numbers at the begin of a table, int64 or float64."""

_ENTRY = 7  # of an array: its address, and its shape, with ones at the end

_NONE, _ONES = (0,) * _ENTRY, [(1,) * (_ENTRY - 1 - axes) for axes in range(_ENTRY)]
_REAL, _BITS = struct.Struct("d"), struct.Struct("q")


def places(count: int) -> tuple[np.int64, ...]:
    """Return the places of a table from 0. As plain integers, each would be compiled apart."""
    return tuple(map(np.int64, range(count)))


class Job:
    """A function ``(table, task)``, which is compiled when its address is first asked for."""

    def __init__(self, function: Callable[[int, int], None]) -> None:
        self._function = function

    @cached_property
    def _compiled(self) -> Any:
        return cfunc("void(int64, int64)", nopython=True, cache=True)(self._function)

    def compile(self) -> None:
        """Compile the function now, or load it if that was done before."""
        self._compiled  # noqa: B018

    @cached_property
    def _address(self) -> int:
        return int(self._compiled.address)

    def run(self, table: array[int], tasks: int) -> None:
        """Do the tasks ``0`` to ``tasks - 1``, in any order, on all threads."""
        _run(self._address, table.buffer_info()[0], tasks)


def table(numbers: tuple[float, ...], arrays: tuple[Tensor | None, ...]) -> array[int]:
    """Return a table, int64; the arrays must live as long.

    Args:
        numbers: at most ``NUMBERS``; floats are for :func:`real`, integers for :func:`number`.
        arrays: contiguous tensors on a CPU with at most 6 axes; None is like an empty one.
    """
    entries = [_BITS.unpack(_REAL.pack(x))[0] if isinstance(x, float) else x for x in numbers]
    entries += [0] * (NUMBERS - len(entries))
    for one in arrays:
        entries += _NONE if one is None else (one.data_ptr(), *one.shape, *_ONES[one.dim()])
    return array("q", entries)


@njit(parallel=True, cache=True, nogil=True)
def _run(job, table, tasks):
    for task in prange(tasks):
        _call(job, table, np.int64(task))


@intrinsic
def _call(typing, job, table, task):
    """Call a job by its address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        integer = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [integer, integer])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


def _define_pointer(kind: Any) -> Any:
    @intrinsic
    def pointer(typing, address):
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return pointer


_to_integers, _to_reals = _define_pointer(types.int64), _define_pointer(types.float64)
_to_floats, _to_bytes = _define_pointer(types.float32), _define_pointer(types.uint8)


@compiled
def number(table, which):
    """Return an integer of a table."""
    return carray(_to_integers(table), NUMBERS)[which]


@compiled
def real(table, which):
    """Return a float of a table."""
    return carray(_to_reals(table), NUMBERS)[which]


@compiled
def _entry(table, which):
    return carray(_to_integers(table + 8 * (NUMBERS + _ENTRY * which)), _ENTRY)


@compiled
def floats(table, which):
    """Return a float32 array of a table, with 6 axes."""
    entry = _entry(table, which)
    return carray(
        _to_floats(entry[0]), (entry[1], entry[2], entry[3], entry[4], entry[5], entry[6])
    )


@compiled
def floats_at(address, size):
    """Return the flat float32 array at an address."""
    return carray(_to_floats(address), (size,))


@compiled
def of_lane(table, which, lane):
    """Return what a float32 array of a table has for a lane, flat; of an empty one, nothing."""
    entry = _entry(table, which)
    size = entry[2] * entry[3] * entry[4] * entry[5] * entry[6] if entry[1] else 0
    return floats_at(entry[0] + 4 * lane * size, size)


@compiled
def of_block(table, which, lane, block):
    """Return what a float32 array of a table has for a block of a lane, flat, or nothing."""
    entry = _entry(table, which)
    size = entry[3] * entry[4] * entry[5] * entry[6] if entry[1] * entry[2] else 0
    return floats_at(entry[0] + 4 * (lane * entry[2] + block) * size, size)


@compiled
def doubles(table, which):
    """Return a float64 array of a table, with 6 axes."""
    entry = _entry(table, which)
    return carray(_to_reals(entry[0]), (entry[1], entry[2], entry[3], entry[4], entry[5], entry[6]))


@compiled
def integers(table, which):
    """Return an int64 array of a table, with 6 axes."""
    entry = _entry(table, which)
    return carray(
        _to_integers(entry[0]), (entry[1], entry[2], entry[3], entry[4], entry[5], entry[6])
    )


@compiled
def octets(table, which):
    """Return a uint8 array of a table, with 6 axes."""
    entry = _entry(table, which)
    return carray(_to_bytes(entry[0]), (entry[1], entry[2], entry[3], entry[4], entry[5], entry[6]))
