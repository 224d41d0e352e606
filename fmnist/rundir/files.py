"""Files that are whole or not there, whenever the process is killed or the power fails."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = ".fmnist-part"
"""How the names end of what is not in its place yet: like no file of anybody else's."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well.

    The bytes are on the disk before the name is, so a reader, or a machine that lost power,
    finds the old file or the new one. When the block raises, nothing is left behind. The folder is
    made where needed; the one that it lies in must be there: else a disk that was unmounted
    would seem to be there still.
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
    """A folder in ``place`` that is gone after the block, or with the next :func:`sweep`."""
    with tempfile.TemporaryDirectory(dir=place, prefix=".", suffix=TEMPORARY) as folder:
        yield Path(folder)


def sweep(folder: Path) -> None:
    """Remove what a killed process was about to put in place, in this folder and below."""
    for path in list(folder.rglob(f".*{TEMPORARY}")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file, or leave the one that was there."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, or leave the one that was there."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _umask() -> int:
    # The only portable way to read it is to set it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
