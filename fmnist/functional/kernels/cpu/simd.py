"""A Numba type for a SIMD vector of floats, with loads, stores and arithmetic.

LLVM vectorises a loop only where it can prove that no arrays overlap; for a convolution it fails.
A value of this type is held in one vector register, or in a few on processors with narrower ones.

Arrays are contiguous and one-dimensional; ``at`` is an index of elements and needs no alignment.
Nothing checks bounds.
"""

from __future__ import annotations

import operator
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, overload, register_model

WIDTH = 16 if llvm.get_host_cpu_features().get("avx512f") else 8
"""Number of floats in a vector: 16 with AVX-512, else 8."""

_INT = ir.IntType(32)
VECTOR = ir.VectorType(ir.FloatType(), WIDTH)
_BYTES = ir.VectorType(ir.IntType(8), WIDTH)
_BITS = ir.VectorType(ir.IntType(1), WIDTH)


class _Vector(types.Type):  # type: ignore[misc]
    """float32[WIDTH]"""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{WIDTH}")


class _Mask(types.Type):  # type: ignore[misc]
    """bool[WIDTH]"""

    def __init__(self) -> None:
        super().__init__(name=f"boolx{WIDTH}")


vector, _mask = _Vector(), _Mask()


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, VECTOR)


@register_model(_Mask)
class _MaskModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _BITS)


def element_pointer(context: Any, builder: Any, signature: Any, args: Any, to: Any) -> Any:
    """Return a pointer of type ``to`` to the element ``args[1]`` of the array ``args[0]``."""
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return builder.bitcast(builder.gep(array.data, [args[1]]), to.as_pointer())


def broadcast(builder: Any, number: Any) -> Any:
    """Return a vector whose elements are all a number."""
    nothing = ir.Constant(VECTOR, ir.Undefined)
    first = builder.insert_element(nothing, number, ir.Constant(_INT, 0))
    return builder.shuffle_vector(
        first, nothing, ir.Constant(ir.VectorType(_INT, WIDTH), [0] * WIDTH)
    )


def declared_function(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Return a function of LLVM or of a library by its name, with this type."""
    kind = ir.FunctionType(result, arguments)
    return cgutils.get_or_insert_function(builder.module, kind, name)


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Return ``a * b + c``, with one rounding if the processor has such an instruction."""
    name = f"llvm.fmuladd.v{WIDTH}f32"
    return builder.call(declared_function(builder, name, *[VECTOR] * 4), (a, b, c))


@intrinsic
def load(typing, array, at):
    """Return ``array[at : at + WIDTH]`` of a float32 array."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(element_pointer(context, builder, signature, args, VECTOR), align=4)

    return vector(array, types.intp), generate


@intrinsic
def store(typing, array, at, value):
    """Set ``array[at : at + WIDTH] = value`` in a float32 array."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], element_pointer(context, builder, signature, args, VECTOR), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic
def load_bytes(typing, array, at):
    """Return ``array[at : at + WIDTH]`` of a uint8 array, as floats."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = element_pointer(context, builder, signature, args, _BYTES)
        return builder.uitofp(builder.load(pointer, align=1), VECTOR)

    return vector(array, types.intp), generate


@intrinsic
def store_bytes(typing, array, at, value):
    """Set ``array[at : at + WIDTH] = value`` in a uint8 array; the values are integers 0-255."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = element_pointer(context, builder, signature, args, _BYTES)
        builder.store(builder.fptoui(args[2], _BYTES), pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic
def splat(typing, number):
    """Return a vector whose elements are all ``number``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return broadcast(builder, args[0])

    return vector(types.float32), generate


@intrinsic
def fma(typing, a, b, c):
    """Return ``a * b + c``, with one rounding if the processor has such an instruction."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return multiply_add(builder, *args)

    return vector(vector, vector, vector), generate


@intrinsic
def root(typing, value):
    """Return the square root of each element."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.call(
            declared_function(builder, f"llvm.sqrt.v{WIDTH}f32", VECTOR, VECTOR), args
        )

    return vector(vector), generate


@intrinsic
def total(typing, value):
    """Return the sum of the elements, always in the same order."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        name, number = f"llvm.vector.reduce.fadd.v{WIDTH}f32", ir.FloatType()
        reduce = declared_function(builder, name, number, number, VECTOR)
        zero = ir.Constant(number, 0.0)
        return builder.call(reduce, [zero, args[0]], fastmath=("reassoc",))

    return types.float32(vector), generate


@intrinsic
def where(typing, mask, a, b):
    """Return the elements of ``a`` where the mask is true, else those of ``b``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(*args)

    return vector(_mask, vector, vector), generate


def _define_operator(
    symbol: Any, arguments: types.Type, result: types.Type, instruction: Any
) -> None:
    """Define an infix operator for Numba."""
    kind = type(arguments)

    @intrinsic
    def apply(typing, a, b):
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return instruction(builder, *args)

        return result(arguments, arguments), generate

    @overload(symbol)
    def _(a, b):
        if isinstance(a, kind) and isinstance(b, kind):
            return lambda a, b: apply(a, b)
        return None


def _comparison(how: str) -> Any:
    """Return an instruction that is false where an element is NaN, except for ``"!="``."""
    if how == "!=":
        return lambda builder, a, b: builder.fcmp_unordered(how, a, b)
    return lambda builder, a, b: builder.fcmp_ordered(how, a, b)


_define_operator(operator.add, vector, vector, lambda builder, a, b: builder.fadd(a, b))
_define_operator(operator.sub, vector, vector, lambda builder, a, b: builder.fsub(a, b))
_define_operator(operator.mul, vector, vector, lambda builder, a, b: builder.fmul(a, b))
_define_operator(operator.truediv, vector, vector, lambda builder, a, b: builder.fdiv(a, b))
_define_operator(operator.gt, vector, _mask, _comparison(">"))
_define_operator(operator.le, vector, _mask, _comparison("<="))
_define_operator(operator.eq, vector, _mask, _comparison("=="))
_define_operator(operator.ne, vector, _mask, _comparison("!="))
_define_operator(operator.__or__, _mask, _mask, lambda builder, a, b: builder.select(a, a, b))
