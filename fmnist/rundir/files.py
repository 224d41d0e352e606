"""Atomic file writes: after a kill or a power failure a file is whole, or it is the old one."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = ".fmnist-part"
"""The suffix of temporary files and folders; no other program uses it."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and rename it to ``path`` when the block succeeds.

    The bytes are synced to the disk before the rename, so that a reader, or a machine after a
    power failure, finds the old file or the new one. When the block raises, the temporary file
    is removed.

    Args:
        path: the file to replace. Its folder is made where needed, but not the folder above: on
            a disk that was unmounted the write must fail.
    """
    path.parent.mkdir(exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
    temporary = Path(name)
    os.close(descriptor)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
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
    """Write a file atomically: when that fails, the old file stays."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 atomically: when that fails, the old file stays."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _umask() -> int:
    # Setting it is the only portable way to read it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
