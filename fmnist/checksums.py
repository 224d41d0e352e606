"""What a finished study left, file by file, so that it shows when something is lost or damaged.

``checksums.sha256`` is in the format of ``sha256sum --check``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from fmnist import files

NAME = "checksums.sha256"
KEPT = (
    "*.csv",
    "*.md",
    "*.html",
    "*.toml",
    "best/*",
    "figures/*",
    "parameters/*",
    "tensorboard/**/*",
)
"""Not the database, which changes when a person writes a note, nor its artifacts."""


def write(out: Path) -> None:
    """Note what is there."""
    found = {path for pattern in KEPT for path in out.glob(pattern) if path.is_file()}
    lines = [f"{_digest(path)}  {path.relative_to(out)}\n" for path in sorted(found)]
    files.write_text(out / NAME, "".join(lines))


def wrong(out: Path) -> list[str] | None:
    """The files that are not there any more, or not as they were; None when nothing was noted."""
    try:
        lines = (out / NAME).read_text(encoding="utf-8").splitlines()
        noted = [line.split("  ", 1) for line in lines]
        return [name for digest, name in noted if _digest(out / name) != digest]
    except (OSError, ValueError):
        return None


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
