"""Atomic file writes: after a kill or a power failure, a file has its old or its new content."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fmnist.utils.patience import repeated

TEMPORARY = ".fmnist-part"
"""The suffix of temporary files and folders; no other program uses it."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and rename it to ``path`` when the block succeeds.

    The bytes are synced to the disk before the rename, so that a reader, or a machine after a
    power failure, finds the old file or the new one. When the block raises, the temporary file
    is removed. One process at a time may replace a file, as the lock of a run's folder ensures.

    Args:
        path: the file to replace. Its folder is made where needed, but not the folder above: on
            a disk that was unmounted the write must fail.
    """
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch_folder(place: Path) -> Iterator[Path]:
    """Yield a temporary folder in ``place``.

    The block's end removes it; after a kill the next :func:`sweep` does.
    """
    with tempfile.TemporaryDirectory(dir=place, prefix=".", suffix=TEMPORARY) as folder:
        yield Path(folder)


def sweep(folder: Path) -> None:
    """Remove the temporary files that killed processes left in this folder and below."""
    for path in list(folder.rglob(f".*{TEMPORARY}")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: when that fails, the old file stays. A full disk is waited for."""

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(content)

    repeated(write)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 atomically: when that fails, the old file stays."""
    write_bytes(path, text.encode())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
