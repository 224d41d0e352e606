"""The lock of a run's folder: one process at a time works in it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import filelock

from fmnist.utils.errors import UserError

NAME = ".lock"


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder during the block.

    The system releases the lock when the process dies. The file ``.lock`` stays in the folder.

    Args:
        folder: the run's folder; made where needed.

    Raises:
        UserError: Another process holds the lock, the folder cannot be made or locked, or its name
            is not UTF-8.
    """
    try:
        str(folder).encode()  # SQLite and reports cannot contain other names
    except UnicodeEncodeError as error:
        raise UserError(f"--out {folder}: its name is not UTF-8") from error
    path = folder / NAME
    lock = filelock.FileLock(path, timeout=0, preserve_lock_file=True, on_acquired=_note_holder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = lock.acquire()
    except filelock.Timeout as error:
        holder = path.read_text(encoding="ascii", errors="replace").strip() or "unknown"
        raise UserError(
            f"--out {folder}: process {holder} is working on it; wait until it ends, or choose "
            "another --out"
        ) from error
    except OSError as error:
        done = "locked" if folder.is_dir() else "made"  # some file systems have no locks
        raise UserError(
            f"--out {folder}: cannot be {done} ({error.strerror}); choose another --out"
        ) from error
    with held:
        yield


def _note_holder(descriptor: int) -> None:
    """Write the number of this process into the file, as a help for people."""
    with contextlib.suppress(OSError):  # such as a full disk
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
