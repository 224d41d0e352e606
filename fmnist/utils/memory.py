"""The memory of the host: how much is available, whether it ran out, and how to return it.

For a GPU, torch answers these questions itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import sys
from pathlib import Path

_OUT_OF_MEMORY = (
    "not enough memory",  # torch's allocator on a CPU
    "can't allocate memory",
    "std::bad_alloc",
    "Cannot allocate memory",  # ENOMEM in words
    "failed to map segment",  # the loader, of a library
    "can't start new thread",  # its stack is memory
    "out of memory",  # CUDA's runtime and driver, and Triton
    "_STATUS_ALLOC_FAILED",  # cuDNN and cuBLAS
)


def ran_out(error: BaseException) -> bool:
    """Whether the error says that memory ran out: of a GPU, of the host, or of the loader."""
    torch = sys.modules.get("torch")  # it may be what found no memory
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return True
    known = isinstance(error, RuntimeError | OSError | ImportError)
    return known and any(words in str(error) for words in _OUT_OF_MEMORY)


def release() -> None:
    """Return the memory that this process has freed to the system.

    Another program on the GPU needs it, or, under a limit of the address space, a library that
    this process is about to load.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def available(root: Path = Path("/")) -> int:
    """Bytes that this process can still allocate without making the machine swap.

    This is the least of three: the machine's available memory, the rest of this process's address
    space (``ulimit -v``), and the rest of its control groups (the limit of a container or a job).

    Args:
        root: the folder that ``proc`` and ``sys`` are mounted in.
    """
    bounds = [_machine(root), *_control_groups(root)]
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        pages = int(_read(root / "proc/self/statm").split()[0] or 0)
        bounds.append(max(limit - pages * os.sysconf("SC_PAGE_SIZE"), 0))
    return min(bounds)


def kills(root: Path = Path("/")) -> tuple[str, int] | None:
    """Tell how many processes the kernel has killed for lack of memory, in a control group or not.

    Args:
        root: the folder that ``proc`` is mounted in.

    Returns:
        An identifier of this start of the machine, and the number since then; None where the
        kernel does not tell them.
    """
    boot = _read(root / "proc/sys/kernel/random/boot_id").strip()
    for line in _read(root / "proc/vmstat").splitlines():
        name, _, number = line.partition(" ")
        if boot and name == "oom_kill":
            return boot, int(number)
    return None


def _machine(root: Path) -> int:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _control_groups(root: Path) -> list[int]:
    """Bytes left in each control group (version 1 or 2) of this process.

    https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
    https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
    """
    bounds = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, kinds, name = line.split(":", 2)
        mount = root / "sys/fs/cgroup"
        names = ("memory.max", "memory.current", "inactive_file")
        if "memory" in kinds.split(","):
            mount /= "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        elif kinds:
            continue
        group = mount / name.strip("/")
        for folder in (group, *group.parents):
            limit, used = _read(folder / names[0]), _read(folder / names[1])
            if limit.strip().isdecimal() and used.strip().isdecimal():
                # The page cache counts as used, but the kernel frees it on demand.
                cached = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
                taken = int(used) - int(cached.get(names[2], 0))
                bounds.append(max(int(limit) - taken, 0))
            if folder == mount:
                break
    return bounds


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
