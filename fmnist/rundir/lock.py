"""One process at a time in a run's folder."""

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
    """Hold the folder, making it where needed; the system lets go of it when we die.

    The file ``.lock`` is left in it, whoever's it turns out to be.

    Raises:
        UserError: when another process holds it, or it cannot be made or used.
    """
    try:
        str(folder).encode()  # else neither SQLite nor a report can name it
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
        except OSError as error:  # a file system without locks
            raise UserError(
                f"--out {folder}: cannot be locked ({error.strerror}); choose another --out"
            ) from error
        with contextlib.suppress(OSError):  # a full disk will be told of by what needs it more
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
