"""Settings of the process that must be made before torch is loaded."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import resource
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

from fmnist.utils.errors import UserError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # from glibc's malloc.h
_SMALL, _LARGE = 1 << 17, 1 << 30
_MKL_STRICT = 0x10000  # from mkl_service.h
_PRODUCTS = "the last bits of a lane"
_used_in: int | None = None


def prepare() -> None:
    """Make all settings of this module; every command calls this first."""
    share_threads()
    same_products_everywhere()
    keep_freed_buffers()
    keep_compiled_kernels()


def prepare_library() -> None:
    """Make the settings on which bits depend; ``import fmnist`` calls this.

    Those that only make training faster are left to the program that imports the package.
    """
    same_products_everywhere()
    with contextlib.suppress(OSError):  # no folder for temporary files; commands say so
        keep_compiled_kernels()


def share_threads() -> None:
    """Load the system's OpenMP library before torch loads another copy.

    Numba uses the system's. Two copies have two pools of threads. The spinning threads of one pool
    take the cores from the other, and then a step sometimes takes ten times as long.
    """
    with contextlib.suppress(OSError):  # without this library Numba uses other threads
        ctypes.CDLL("libgomp.so.1")


def same_products_everywhere() -> None:
    """Make MKL, which computes torch's matrix products, always sum in the same order.

    By default the order depends on whether a matrix begins at a multiple of 64 bytes, and so on
    the position of a lane among the others. The cost is too small to measure.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


@functools.cache
def warn_of_products() -> None:
    """Warn once if MKL does not have the setting of :func:`same_products_everywhere`.

    MKL reads it at its first product, which may have been before this package was imported.
    """
    import torch

    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        setting = ctypes.CDLL(str(library)).mkl_serv_cbwr_get(-1)
    except (OSError, AttributeError):  # torch without MKL
        return
    if not setting & _MKL_STRICT:
        warnings.warn(
            f"{_PRODUCTS} may depend on the other lanes, because matrices were "
            "multiplied before fmnist was imported, or MKL_CBWR is not AUTO,STRICT",
            RuntimeWarning,
            stacklevel=2,
        )


def hide_library_warnings() -> None:
    """Show no warning of a library: its text says nothing to who types a command.

    ``python -W default`` and PYTHONWARNINGS show them. Our own warnings are shown.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", f"^{_PRODUCTS}")
    if logging.lastResort:  # what shows records that no handler takes
        logging.lastResort.addFilter(lambda record: record.name.partition(".")[0] == "fmnist")


def keep_freed_buffers() -> None:
    """Stop glibc from returning large freed buffers to the system.

    Every training step frees and allocates the same tens of megabytes. glibc serves such blocks
    by mmap and unmaps them when freed, so that each step pays for page faults. With this setting
    the process keeps its peak memory. Under a limit of the address space (``ulimit -v``) buffers
    are returned at once instead: gaps between kept buffers would use the space up.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        if address_space_is_limited():
            mallopt(_M_MMAP_THRESHOLD, _SMALL)
            mallopt(_M_ARENA_MAX, 1)  # every further arena reserves 64 MiB
        elif mallopt(_M_MMAP_THRESHOLD, _LARGE):
            mallopt(_M_TRIM_THRESHOLD, _LARGE)


def address_space_is_limited() -> bool:
    """Whether the address space of this process is limited, as by ``ulimit -v``."""
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def cache_folder() -> Path:
    """The folder of this package in the user's cache.

    Raises:
        RuntimeError: The user has no home folder.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "fmnist"


def keep_compiled_kernels() -> None:
    """Make Numba cache compiled kernels, in a folder named by a hash of their sources.

    Numba compiles a function again when its own file changes, but not when the file of a function
    that it calls changes: after an update it would mix old and new kernels. Without a writable
    cache folder, the kernels are compiled for this process only.
    """
    kernels = Path(__file__).parents[1] / "functional" / "kernels"
    sources = sorted(kernels.rglob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    named = os.environ.get("NUMBA_CACHE_DIR")
    try:
        folder = Path(named) if named else cache_folder() / f"kernels-{digest[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # Numba makes the same test, and fails otherwise
    except (OSError, RuntimeError):  # RuntimeError: no home folder
        folder = Path(tempfile.mkdtemp(prefix="fmnist-kernels-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    if numba := sys.modules.get("numba"):  # it has read the environment already
        numba.config.CACHE_DIR = str(folder)


def refuse_forked() -> None:
    """Note that this process computes; called before the first parallel loop.

    Raises:
        UserError: This process was forked from one that has computed. The threads of OpenMP are
            missing in it, and it would wait for them forever.
    """
    global _used_in
    if _used_in not in (None, os.getpid()):
        raise UserError(
            "this process was forked from one that has trained or evaluated already, and would "
            'hang; start processes with multiprocessing.get_context("spawn")'
        )
    _used_in = os.getpid()
