"""A Numba type for the sums that a loop keeps in registers: a small matrix of vectors.

A loop cannot index registers, and a variable for each sum makes long code. Here a matrix of vectors
is one value. LLVM keeps each vector in a register, as every position in the matrix is a constant.

In an array, the vector in row ``r`` and column ``c`` begins at ``at + r * row + c * step``. Nothing
checks bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, models, register_model

from fmnist.functional.kernels.cpu.simd import (
    VECTOR,
    WIDTH,
    broadcast,
    element_pointer,
    multiply_add,
    vector,
)

_FLOAT, _INTEGER = ir.FloatType(), ir.IntType(64)


class _Sums(types.Type):  # type: ignore[misc]
    """VECTOR[rows, columns]"""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        super().__init__(name=f"sums{rows}x{columns}")


@register_model(_Sums)
class _SumsModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.ArrayType(VECTOR, kind.rows * kind.columns))


class _Array:
    """An array that is an argument of an intrinsic."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any, which: int) -> None:
        self._context, self._builder, self._array = context, builder, args[which]
        self._signature = types.void(signature.args[which], types.intp)

    def pointer(self, at: Any, to: Any) -> Any:
        """Return a pointer of type ``to`` to an element."""
        args = self._array, at
        return element_pointer(self._context, self._builder, self._signature, args, to)

    def vector(self, at: Any) -> Any:
        """Load the vector that begins at an element."""
        return self._builder.load(self.pointer(at, VECTOR), align=4)


def _moved(builder: Any, at: Any, times: int, distance: Any) -> Any:
    """Return ``at + times * distance``."""
    if times == 0:
        return at
    return builder.add(at, builder.mul(distance, ir.Constant(_INTEGER, times)))


def _add_outer(builder: Any, sums: Any, rows: Any, columns: dict[int, Any], count: int) -> Any:
    """Add the products of a vector for each row and one for each of some of ``count`` columns."""
    for r, row in enumerate(rows):
        for c, column in columns.items():
            at = r * count + c
            value = multiply_add(builder, row, column, builder.extract_value(sums, at))
            sums = builder.insert_value(sums, value, at)
    return sums


@intrinsic(prefer_literal=True)
def zeros(typing, rows, columns):
    """Return sums that are zero; ``rows`` and ``columns`` are constants."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(context.get_value_type(signature.return_type), None)

    return _Sums(rows.literal_value, columns.literal_value)(rows, columns), generate


@intrinsic
def load_sums(typing, like, array, at, row, step, count):
    """Return sums with the shape of ``like``; the rows after the first ``count`` have any value."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums, _, at, row, step, count = args
        source, kind = _Array(context, builder, signature, args, 1), signature.return_type
        last = builder.sub(count, ir.Constant(_INTEGER, 1))
        for r in range(kind.rows):
            index = ir.Constant(_INTEGER, r)
            index = builder.select(builder.icmp_signed("<", index, last), index, last)
            first = builder.add(at, builder.mul(row, index))
            for c in range(kind.columns):
                value = source.vector(_moved(builder, first, c, step))
                sums = builder.insert_value(sums, value, r * kind.columns + c)
        return sums

    return like(like, array, *[types.intp] * 4), generate


@intrinsic
def store_sums(typing, sums, array, at, row, step, count):
    """Store the first ``count`` rows of sums."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums, _, at, row, step, count = args
        target, kind = _Array(context, builder, signature, args, 1), signature.args[0]
        for r in range(kind.rows):
            present = builder.icmp_signed(">", count, ir.Constant(_INTEGER, r))
            with builder.if_then(present, likely=True):
                first = _moved(builder, at, r, row)
                for c in range(kind.columns):
                    value = builder.extract_value(sums, r * kind.columns + c)
                    place = target.pointer(_moved(builder, first, c, step), VECTOR)
                    builder.store(value, place, align=4)
        return context.get_dummy_value()

    return types.void(sums, array, *[types.intp] * 4), generate


def _define_add_scaled(first: int, end: int | None) -> Callable[..., Any]:
    @intrinsic
    def add_scaled(typing, sums, weights, tap, array, at, step):
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            sums, _, tap, _, at, step = args
            factors, source = (_Array(context, builder, signature, args, i) for i in (1, 3))
            kind = signature.args[0]
            columns = {
                c: source.vector(_moved(builder, at, c, step))
                for c in range(kind.columns)[first:end]
            }

            def spread(row: int) -> Any:
                at = builder.add(tap, ir.Constant(_INTEGER, row))
                return broadcast(builder, builder.load(factors.pointer(at, _FLOAT)))

            return _add_outer(builder, sums, map(spread, range(kind.rows)), columns, kind.columns)

        return sums(sums, weights, types.intp, array, types.intp, types.intp), generate

    return add_scaled


add_scaled = _define_add_scaled(0, None)
"""Add ``weights[tap + r]`` times the vector at ``at + c * step`` to each sum."""

add_scaled_first = _define_add_scaled(0, 1)
"""Do the same in the first column only."""

add_scaled_last = _define_add_scaled(-1, None)
"""Do the same in the last column only."""


@intrinsic
def add_products(typing, sums, left, at, row, right, places, first, distance):
    """Add the products of vectors of two arrays.

    That of ``left`` begins at ``at + r * row``, that of ``right`` at ``places[first + c] +
    distance``.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums, _, at, row, _, _, first, distance = args
        arrays = (_Array(context, builder, signature, args, i) for i in (1, 4, 5))
        source, other, begins = arrays
        kind, columns = signature.args[0], {}
        for c in range(kind.columns):
            place = begins.pointer(builder.add(first, ir.Constant(_INTEGER, c)), _INTEGER)
            columns[c] = other.vector(builder.add(builder.load(place), distance))
        rows = (source.vector(_moved(builder, at, r, row)) for r in range(kind.rows))
        return _add_outer(builder, sums, rows, columns, kind.columns)

    integer = types.intp
    return sums(sums, left, integer, integer, right, places, integer, integer), generate


@intrinsic
def add_crossed(typing, sums, left, at, row, right, start, column):
    """Add the products of the vectors at ``at + r * row`` and at ``start + c * column``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums, _, at, row, _, start, column = args
        source, other = (_Array(context, builder, signature, args, i) for i in (1, 4))
        kind = signature.args[0]
        columns = {c: other.vector(_moved(builder, start, c, column)) for c in range(kind.columns)}
        rows = (source.vector(_moved(builder, at, r, row)) for r in range(kind.rows))
        return _add_outer(builder, sums, rows, columns, kind.columns)

    integer = types.intp
    return sums(sums, left, integer, integer, right, integer, integer), generate


@intrinsic
def totals(typing, array, at, step):
    """Return the totals of ``WIDTH`` vectors, ``step`` apart, each added up as by ``total``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, at, step = args
        source = _Array(context, builder, signature, args, 0)
        vectors = [source.vector(_moved(builder, at, i, step)) for i in range(WIDTH)]
        half = WIDTH // 2
        while half:  # add the second half of each part to the first; a vector gets the next's parts
            lower = [i + j for i in range(0, 2 * WIDTH, 2 * half) for j in range(half)]
            upper = [i + half for i in lower]
            vectors = [
                builder.fadd(_shuffled(builder, a, b, lower), _shuffled(builder, a, b, upper))
                for a, b in zip(vectors[::2], vectors[1::2], strict=True)
            ]
            half //= 2
        return vectors[0]

    return vector(array, types.intp, types.intp), generate


def _shuffled(builder: Any, a: Any, b: Any, places: list[int]) -> Any:
    """Return the elements of ``a`` and ``b``, one after the other, at these places."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), places))


@intrinsic
def shifted(typing, window, array, at):
    """Return a row of vectors without its first, and with the one at ``at`` of an array behind."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        window, _, at = args
        last = signature.args[0].columns - 1
        for c in range(last):
            window = builder.insert_value(window, builder.extract_value(window, c + 1), c)
        source = _Array(context, builder, signature, args, 1)
        return builder.insert_value(window, source.vector(at), last)

    return window(window, array, types.intp), generate


@intrinsic
def add_window(typing, sums, array, at, row, window):
    """Add the products of the vectors at ``at + r * row`` of an array and those of a row."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums, _, at, row, window = args
        source, kind = _Array(context, builder, signature, args, 1), signature.args[0]
        columns = {c: builder.extract_value(window, c) for c in range(kind.columns)}
        rows = (source.vector(_moved(builder, at, r, row)) for r in range(kind.rows))
        return _add_outer(builder, sums, rows, columns, kind.columns)

    return sums(sums, array, types.intp, types.intp, window), generate
