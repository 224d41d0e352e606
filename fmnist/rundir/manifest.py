"""What a finished study left, file by file, so that it shows when something is lost or damaged.

``checksums.sha256`` is in the format of ``sha256sum --check``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from fmnist.rundir import files

NAME = "checksums.sha256"
_HEAD = "# fmnist, files: "  # a comment to sha256sum; how many, so that it shows when it is cut


def of(path: Path) -> str:
    """A file's SHA-256; empty when it cannot be read."""
    try:
        return _digest(path)
    except OSError:
        return ""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(out: Path, paths: Iterable[Path], known: Mapping[Path, str]) -> None:
    """Note the sums of these files as they are, and of others as they are known to be right."""
    sums = {path.relative_to(out).as_posix(): _digest(path) for path in paths}
    sums |= {path.relative_to(out).as_posix(): digest for path, digest in known.items()}
    lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
    files.write_text(out / NAME, "".join([f"{_HEAD}{len(lines)}\n", *lines]))


def wrong(out: Path) -> list[str] | None:
    """The files that are not there any more, or not as they were; None when nothing was noted."""
    try:
        head, *lines, end = (out / NAME).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):  # ValueError: it is empty, or no text
        return None
    noted = [re.fullmatch("([0-9a-f]{64})  (.+)", line) for line in lines]
    if head != f"{_HEAD}{len(lines)}" or end or not all(noted):
        return None
    return [found[2] for found in noted if found and of(out / found[2]) != found[1]]
