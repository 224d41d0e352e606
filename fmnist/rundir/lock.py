"""The lock of a run's folder: one process at a time works in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

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
        str(folder).encode()  # neither SQLite nor a report could name it
    except UnicodeEncodeError as error:
        raise UserError(f"--out {folder}: its name is not UTF-8") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be used ({error.strerror})") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise UserError(f"--out {folder}: process {holder} is working on it") from error
        except OSError as error:  # such as a file system without locks
            raise UserError(
                f"--out {folder}: cannot be locked ({error.strerror}); choose another --out"
            ) from error
        with contextlib.suppress(OSError):  # the number is a help for people, no more
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
