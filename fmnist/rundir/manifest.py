"""The manifest of a finished run: ``checksums.sha256``, in the format of ``sha256sum --check``."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from fmnist.rundir import files

NAME = "checksums.sha256"
_HEAD = "# fmnist, files: "  # sha256sum skips it; the count shows when lines are missing


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal; empty when the file cannot be read."""
    try:
        return _digest(path)
    except OSError:
        return ""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(out: Path, paths: Iterable[Path], known: Mapping[Path, str]) -> None:
    """Write the manifest.

    Args:
        out: the run's folder.
        paths: files in it, whose sums are computed now.
        known: the right sums of other files in it, which may be damaged by now.
    """
    sums = {path.relative_to(out).as_posix(): _digest(path) for path in paths}
    sums |= {path.relative_to(out).as_posix(): digest for path, digest in known.items()}
    lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
    files.write_text(out / NAME, "".join([f"{_HEAD}{len(lines)}\n", *lines]))


def damaged_files(out: Path) -> list[str] | None:
    """Find the files of the manifest that are missing or changed.

    Returns:
        Their names, relative to ``out``; None when there is no readable manifest.
    """
    try:
        head, *lines, end = (out / NAME).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):  # ValueError: an empty file, or one that is not text
        return None
    noted = [re.fullmatch("([0-9a-f]{64})  (.+)", line) for line in lines]
    if head != f"{_HEAD}{len(lines)}" or end or not all(noted):
        return None
    return [line[2] for line in noted if line and sha256_of(out / line[2]) != line[1]]
