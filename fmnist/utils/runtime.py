"""What a command settles for its process before torch is loaded."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import os
import resource
import shutil
import tempfile
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # from glibc's malloc.h
_SMALL, _LARGE = 1 << 17, 1 << 30


def prepare() -> None:
    """One pool of threads, products that do not depend on where a matrix lies, buffers that are
    kept when freed, kernels that are kept compiled.
    """
    share_threads()
    same_products_everywhere()
    keep_freed_buffers()
    keep_compiled_kernels()


def share_threads() -> None:
    """Load the system's OpenMP before torch loads a copy of its own.

    Numba uses the system's. With two copies there are two pools, whose idle threads spin and
    take the cores from each other: a step then takes ten times as long, now and then.
    """
    with contextlib.suppress(OSError):  # without it Numba has threads of another kind
        ctypes.CDLL("libgomp.so.1")


def same_products_everywhere() -> None:
    """Have MKL, which multiplies torch's matrices, always sum in the same order.

    By itself it chooses another order for a matrix that does not begin at a multiple of 64 bytes,
    as a lane's place among others decides. This costs nothing that can be measured.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def keep_freed_buffers() -> bool:
    """Keep glibc from handing large buffers back to the system; False where it does.

    A training step frees and asks again for the same tens of megabytes. glibc serves such blocks
    by mmap and returns them at once, and getting them anew costs page
    faults. The process stays at its high-water mark instead, which a trainer needs anyway: unless
    its address space is limited (``ulimit -v``). Then all buffers are returned at once, as gaps
    between kept ones would use it up.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    if address_space_is_limited():
        mallopt(_M_MMAP_THRESHOLD, _SMALL)
        mallopt(_M_ARENA_MAX, 1)  # each further one sets 64 MiB aside
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE) and mallopt(_M_TRIM_THRESHOLD, _LARGE))


def address_space_is_limited() -> bool:
    """Whether ``ulimit -v`` or the like is in force."""
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def cache_folder() -> Path:
    """Where this user's programs keep what they can make again.

    Raises:
        RuntimeError: when the user has no home.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "fmnist"


def keep_compiled_kernels() -> None:
    """Have Numba keep what it compiles, in a folder for exactly these sources.

    Numba compiles a function anew when its own file changed, and does not see a change in the
    files of the functions that it calls: after an update it would run a mixture of old and new.
    Where nothing can be kept they are compiled for this process alone.
    """
    kernels = Path(__file__).parents[1] / "functional" / "kernels"
    sources = sorted(kernels.rglob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    named = os.environ.get("NUMBA_CACHE_DIR")
    try:
        folder = Path(named) if named else cache_folder() / f"kernels-{digest[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # as Numba tries it, which gives up without
    except (OSError, RuntimeError):  # RuntimeError: no home
        folder = Path(tempfile.mkdtemp(prefix="fmnist-kernels-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = str(folder)


def kernels_are_compiled() -> bool:
    """Whether Numba has kept something from an earlier process."""
    folder = os.environ.get("NUMBA_CACHE_DIR")
    return folder is None or any(Path(folder).rglob("loops*.nbi"))
