"""The matrices of Winograd's convolutions (winograd.py), and their products with vectors.

Toom and Cook multiply polynomials by their values at points. The transposed algorithm convolves: a
row of ``m`` outputs of a kernel of ``k`` taps needs ``n = m + k - 1`` multiplications, not ``m *
k``: ``y = A^T ((G g) * (B^T d))`` with the kernel ``g`` and ``n`` inputs ``d``. In two dimensions
each matrix is applied to rows and to columns.

Sources: Winograd, Arithmetic Complexity of Computations (1980); Lavin and Gray, Fast Algorithms
for Convolutional Neural Networks (2016); the construction: Blahut, Fast Algorithms for Signal
Processing (2010), chapter 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from fmnist.functional.kernels.cpu.compiled import compiled
from fmnist.functional.kernels.cpu.simd import VECTOR, WIDTH, element_pointer, multiply_add

_FLOAT, _INTEGER = ir.FloatType(), ir.IntType(64)
Matrix = tuple[tuple[Fraction, ...], ...]

_POINTS = [Fraction(p) for p in ("0", "1", "-1", "2", "-2", "1/2", "-1/2")]
"""And infinity. More points need larger numbers, which cost digits."""

_LARGEST = len(_POINTS) + 1

KERNELS = range(3, 8)
"""The kernel sizes for which there are matrices."""


class Matrices(NamedTuple):
    """``A^T [m, n]``, ``G [n, k]`` and ``B^T [n, n]``."""

    outputs: Matrix
    kernel: Matrix
    inputs: Matrix


@compiled
def tile_side(k: int) -> int:
    """Return ``m``, the side of the square of outputs that are computed at once."""
    return min(4, _LARGEST + 1 - k)


def matrices(k: int) -> Matrices:
    """Return the matrices for kernels of ``k`` x ``k``.

    ``G`` and ``A`` evaluate polynomials with ``k`` and ``m`` coefficients at the points; infinity
    gives the highest coefficient. ``B`` is the inverse of that for ``n`` coefficients, transposed.
    Rows of ``B^T`` are scaled by powers of two, and those of ``G`` inversely, so that they have
    about the length 1, which costs the fewest digits.
    """
    m = tile_side(k)
    n = m + k - 1
    inputs, kernel = [], []
    for row, values in zip(_transposed(_inverse(_powers(n, n))), _powers(n, k), strict=True):
        length = sum(x * x for x in row)
        scale = Fraction(1)
        while length * scale * scale > 2:
            scale /= 2
        while length * scale * scale < Fraction(1, 2):
            scale *= 2
        inputs.append(tuple(x * scale for x in row))
        kernel.append(tuple(x / scale for x in values))
    return Matrices(_transposed(_powers(n, m)), tuple(kernel), tuple(inputs))


def _powers(rows: int, columns: int) -> Matrix:
    """Return the matrix that evaluates a polynomial at ``rows - 1`` points and at infinity."""
    finite = [tuple(p**j for j in range(columns)) for p in _POINTS[: rows - 1]]
    return *finite, (*[Fraction(0)] * (columns - 1), Fraction(1))


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def _inverse(matrix: Matrix) -> Matrix:
    """Return the inverse, by Gauss and Jordan; exact, as the numbers are fractions."""
    size = len(matrix)
    rows = [[*row, *(Fraction(int(i == j)) for j in range(size))] for i, row in enumerate(matrix)]
    for c in range(size):
        pivot = next(r for r in range(c, size) if rows[r][c])
        rows[c], rows[pivot] = rows[pivot], rows[c]
        rows[c] = [x / rows[c][c] for x in rows[c]]
        for r in range(size):
            if r != c:
                rows[r] = [x - rows[r][c] * y for x, y in zip(rows[r], rows[c], strict=True)]
    return tuple(tuple(row[size:]) for row in rows)


INPUTS, INPUTS_BACK, OUTPUTS, OUTPUTS_BACK, KERNEL, KERNEL_BACK = range(6)
"""``B^T``, ``B``, ``A^T``, ``A``, ``G`` and ``G^T``, the first argument of ``transform``."""


def _matrix(kind: int, k: int) -> Matrix:
    of = matrices(k)
    straight = (of.inputs, of.outputs, of.kernel)[kind // 2]
    return _transposed(straight) if kind % 2 else straight


def _define_transform(add: bool) -> Callable[..., Any]:
    @intrinsic(prefer_literal=True)
    def transform(typing, which, k, source, at, step, target, to, distance):
        number = which.literal_value

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def pointer(array: int, place: Any) -> Any:
                kinds = types.void(signature.args[array], types.intp)
                return element_pointer(context, builder, kinds, (args[array], place), _FLOAT)

            places = args[1], pointer(2, args[3]), args[4], pointer(5, args[6]), args[7]
            builder.call(_function(builder.module, number, add), places)
            return context.get_dummy_value()

        size = types.intp
        return types.void(which, size, source, size, size, target, size, size), generate

    return transform


def _function(module: Any, which: int, add: bool) -> Any:
    """Return the function of a module that does it. One for all calls is compiled faster."""
    pointer = _FLOAT.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [_INTEGER, pointer, _INTEGER, pointer, _INTEGER])
    function = get_or_insert_function(module, kind, f"fmnist.transform{which}.{int(add)}")
    if function.is_declaration:
        function.linkage = "linkonce_odr"
        function.attributes.add("noinline")
        builder = ir.IRBuilder(function.append_basic_block())
        end = function.append_basic_block()
        choice = builder.switch(function.args[0], end)
        for k in KERNELS:
            builder.position_at_end(function.append_basic_block())
            choice.add_case(k, builder.block)
            _write(builder, _matrix(which, k), function.args[1:], add)
            builder.branch(end)
        builder.position_at_end(end)
        builder.ret_void()
    return function


def _write(builder: Any, matrix: Matrix, args: Sequence[Any], add: bool) -> None:
    """Load the vectors, and store their products with a matrix."""
    source, step, target, distance = args

    def place(array: Any, apart: Any, times: int) -> Any:
        at = builder.mul(apart, ir.Constant(_INTEGER, times))
        return builder.bitcast(builder.gep(array, [at]), VECTOR.as_pointer())

    vectors = [builder.load(place(source, step, c), align=4) for c in range(len(matrix[0]))]
    for r, value in enumerate(_product(builder, matrix, vectors)):
        at = place(target, distance, r)
        if add:
            value = builder.fadd(builder.load(at, align=4), value)
        builder.store(value, at, align=4)


transform = _define_transform(add=False)
"""Multiply a matrix and the vectors at ``at + c * step`` of an array, and store the results.

They are stored at ``to + r * distance`` of another array. The first arguments say which matrix, and
the size of the kernels.
"""

add_transform = _define_transform(add=True)
"""Do the same, and add the results to what is there."""


def _product(builder: Any, matrix: Matrix, vectors: Sequence[Any]) -> list[Any]:
    """Return the products of a matrix and vectors.

    The points ``p`` and ``-p`` make pairs of rows, or of columns, that differ only in signs. The
    parts that are equal, and those that are not, are computed once.
    """
    for c in _pairs(_transposed(matrix)):
        a, b = vectors[c : c + 2]
        both = [builder.fadd(a, b), builder.fsub(a, b)]
        vectors = [*vectors[:c], *both, *vectors[c + 2 :]]
        matrix = tuple(_folded(row, c) for row in matrix)
    results = [None] * len(matrix)
    for r in _pairs(matrix):
        pairs = list(zip(matrix[r], matrix[r + 1], strict=True))
        same = _dot(builder, [x if x == y else Fraction(0) for x, y in pairs], vectors)
        other = _dot(builder, [x if x != y else Fraction(0) for x, y in pairs], vectors)
        results[r], results[r + 1] = builder.fadd(same, other), builder.fsub(same, other)
    return [
        _dot(builder, row, vectors) if value is None else value
        for row, value in zip(matrix, results, strict=True)
    ]


def _pairs(matrix: Matrix) -> list[int]:
    """Return the first rows of pairs that differ in some signs, and only in signs."""
    found: list[int] = []
    for r in range(len(matrix) - 1):
        pairs = list(zip(matrix[r], matrix[r + 1], strict=True))
        signs = {x == y for x, y in pairs if x}
        if all(abs(x) == abs(y) for x, y in pairs) and len(signs) == 2 and r - 1 not in found:
            found.append(r)
    return found


def _folded(row: Sequence[Fraction], c: int) -> tuple[Fraction, ...]:
    """Return a row for the sum and the difference of the columns ``c`` and ``c + 1``."""
    x, y = row[c : c + 2]
    nothing = Fraction(0)
    return *row[:c], *((x, nothing) if x == y else (nothing, x)), *row[c + 2 :]


def _dot(builder: Any, row: Sequence[Fraction], vectors: Sequence[Any]) -> Any:
    """Return the sum of the vectors times numbers, without those that are zero."""
    total = None
    for number, value in zip(row, vectors, strict=True):
        if number == 0:
            continue
        if total is None:
            total = value if number == 1 else builder.fmul(value, _constant(number))
        elif number == 1:
            total = builder.fadd(total, value)
        elif number == -1:
            total = builder.fsub(total, value)
        else:
            total = multiply_add(builder, value, _constant(number), total)
    return total


def _constant(number: Fraction) -> Any:
    return ir.Constant(VECTOR, [float(number)] * WIDTH)
