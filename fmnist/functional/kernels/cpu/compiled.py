"""The decorator of functions that only compiled functions call, by Numba.

A function with ``numba.njit`` can also be called from Python and from C, for which Numba compiles
two more functions, and its code is stored. These here are compiled only as a part of what calls
them, and from Python they are plain functions. Compiling all takes a quarter less so
(benchmarks/README.md).
"""

from typing import Any

from numba.extending import register_jitable

compiled: Any = register_jitable(nogil=True, no_cfunc_wrapper=True, error_model="numpy")
"""A division by zero raises nothing, so no branch for it keeps LLVM from vectorising."""
